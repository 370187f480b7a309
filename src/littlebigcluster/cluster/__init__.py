"""Puts it together: the public `Cluster` and `Node`."""

from littlebigcluster.cluster.changes import Changes, TableChanges, compare
from littlebigcluster.cluster.cluster import Cluster
from littlebigcluster.cluster.inspect import LogEntry, Rows, State, Status
from littlebigcluster.cluster.join import Join
from littlebigcluster.cluster.membership import Member, Members
from littlebigcluster.cluster.node import Node
from littlebigcluster.cluster.repair import Repaired
from littlebigcluster.cluster.session import ReadYourWrites
from littlebigcluster.cluster.snapshotting import SNAPSHOT_PATH, SNAPSHOT_SECONDS, Snapshot
from littlebigcluster.cluster.statements import Result

__all__ = [
    "SNAPSHOT_PATH",
    "SNAPSHOT_SECONDS",
    "Changes",
    "Cluster",
    "Join",
    "LogEntry",
    "Member",
    "Members",
    "Node",
    "ReadYourWrites",
    "Repaired",
    "Result",
    "Rows",
    "Snapshot",
    "State",
    "Status",
    "TableChanges",
    "compare",
]
