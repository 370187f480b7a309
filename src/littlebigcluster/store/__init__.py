"""What every node shares: an object store behind one small protocol."""

from .base import Created, CreateOutcome, Exists, ObjectInfo, Store, Unknown
from .directory import DirectoryStore
from .doctor import Check, Examination, examine_store
from .faulty import Fault, Faulty
from .object_store import ObjectStore
from .once import Mine, NoLongerValid, Resolution, Theirs, Unresolved, put_if_absent
from .open import Location, open_store
from .probe import probe_exists, probe_race
from .retry import allowed_seconds, retried
from .scoped import Scoped
from .wrappers import Counting, Latency, LogNormal, Slow, Wrapper

__all__ = [
    "Check",
    "Counting",
    "CreateOutcome",
    "Created",
    "DirectoryStore",
    "Examination",
    "Exists",
    "Fault",
    "Faulty",
    "Latency",
    "Location",
    "LogNormal",
    "Mine",
    "NoLongerValid",
    "ObjectInfo",
    "ObjectStore",
    "Resolution",
    "Scoped",
    "Slow",
    "Store",
    "Theirs",
    "Unknown",
    "Unresolved",
    "Wrapper",
    "allowed_seconds",
    "examine_store",
    "open_store",
    "probe_exists",
    "probe_race",
    "put_if_absent",
    "retried",
]
