"""What every node shares: an object store behind one small protocol."""

from .base import Created, CreateOutcome, Exists, ObjectInfo, Store, Unknown
from .directory import DirectoryStore
from .object_store import ObjectStore
from .open import Location, open_store

__all__ = [
    "CreateOutcome",
    "Created",
    "DirectoryStore",
    "Exists",
    "Location",
    "ObjectInfo",
    "ObjectStore",
    "Store",
    "Unknown",
    "open_store",
]
