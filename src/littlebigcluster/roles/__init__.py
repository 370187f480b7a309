"""Who may write: the pure decision core, and the loops around it."""

from littlebigcluster.roles.catch_up import OnBytes, Restored, SinceSnapshot, apply_entry, read_epoch, take_next
from littlebigcluster.roles.decisions import Findings, Question, Timing
from littlebigcluster.roles.encoding import encode_epoch
from littlebigcluster.roles.follower import Follower
from littlebigcluster.roles.leader import Leadership
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.roles.restore import held, load_snapshot, restore, restore_at
from littlebigcluster.roles.snapshotter import Made, Snapshotter
from littlebigcluster.roles.strong import SharedProof

__all__ = [
    "Findings",
    "Follower",
    "Leadership",
    "LocalCopy",
    "Made",
    "OnBytes",
    "Question",
    "Restored",
    "SharedProof",
    "SinceSnapshot",
    "Snapshotter",
    "Timing",
    "apply_entry",
    "encode_epoch",
    "held",
    "load_snapshot",
    "read_epoch",
    "restore",
    "restore_at",
    "take_next",
]
