"""SQLite on one node: the replica that is read, the primary that a leader writes."""

from littlebigcluster.database.checksum import StateChecksum
from littlebigcluster.database.diff import Counts, Diff, RowChange, TableDiff, diff
from littlebigcluster.database.guards import read_guard
from littlebigcluster.database.initial import write_initial_database
from littlebigcluster.database.merging import Merging
from littlebigcluster.database.pages import PageSource
from littlebigcluster.database.pending import Batch, Done, Pending
from littlebigcluster.database.plain import copy_plain, make_plain
from littlebigcluster.database.primary import Primary
from littlebigcluster.database.readers import Readers
from littlebigcluster.database.replica import Replica, StateMismatch
from littlebigcluster.database.rollback import way_back
from littlebigcluster.database.tables import SchemaChange
from littlebigcluster.database.touched import SCHEMA, Touched
from littlebigcluster.database.versions import check_sqlite_version, required_sqlite_version
from littlebigcluster.database.wal import Wal, WalError, parse
from littlebigcluster.database.writer import REMEMBER_SECONDS, Writer

__all__ = [
    "REMEMBER_SECONDS",
    "SCHEMA",
    "Batch",
    "Counts",
    "Diff",
    "Done",
    "Merging",
    "PageSource",
    "Pending",
    "Primary",
    "Readers",
    "Replica",
    "RowChange",
    "SchemaChange",
    "StateChecksum",
    "StateMismatch",
    "TableDiff",
    "Touched",
    "Wal",
    "WalError",
    "Writer",
    "check_sqlite_version",
    "copy_plain",
    "diff",
    "make_plain",
    "parse",
    "read_guard",
    "required_sqlite_version",
    "way_back",
    "write_initial_database",
]
