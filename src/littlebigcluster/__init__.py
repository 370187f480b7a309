"""LittleBigCluster: cluster applications on nothing but an object store.

import littlebigcluster as lbc

cluster = lbc.Cluster("s3://bucket/prefix")
await cluster.init("lol")
async with cluster.join(az="AZ0", can_lead=True) as node:
    await node.wait_until_leader()
    await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT)")
"""

from littlebigcluster.cluster import Cluster, Join, Member, Members, Node, ReadYourWrites, Result
from littlebigcluster.database import Done, Pending
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import (
    Aborted,
    AlreadyInitialized,
    CorruptLog,
    DeadlineExceeded,
    DirectoryInUse,
    EpochTooLarge,
    Fenced,
    FormatTooNew,
    LbcError,
    NoMember,
    NotAllowed,
    NotInitialized,
    NotLeader,
    NotRetained,
    OutcomeUnknown,
    Overloaded,
    PeerUnavailable,
    RequestTimeout,
    SnapshotExpired,
    StoreUnavailable,
    UnsafeStore,
    WrongCluster,
)
from littlebigcluster.settings import ClusterSettings, NodeSettings
from littlebigcluster.store import Check, Examination, examine_store
from littlebigcluster.version import __version__
from littlebigcluster.watch import Watch

__all__ = [
    "Aborted",
    "AlreadyInitialized",
    "Check",
    "Cluster",
    "ClusterSettings",
    "CorruptLog",
    "DeadlineExceeded",
    "DirectoryInUse",
    "Done",
    "EpochTooLarge",
    "Examination",
    "Fenced",
    "FormatTooNew",
    "Join",
    "LbcError",
    "Leader",
    "Member",
    "Members",
    "NoMember",
    "Node",
    "NodeSettings",
    "NotAllowed",
    "NotInitialized",
    "NotLeader",
    "NotRetained",
    "OutcomeUnknown",
    "Overloaded",
    "PeerUnavailable",
    "Pending",
    "ReadYourWrites",
    "RequestTimeout",
    "Result",
    "SnapshotExpired",
    "StoreUnavailable",
    "UnsafeStore",
    "Watch",
    "WrongCluster",
    "__version__",
    "examine_store",
]
