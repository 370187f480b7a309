"""Does the SQLite of this process do what applying relies on? Else it is refused, by name, before any use."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path

from littlebigcluster.database.walindex import WalIndex, WalIndexError
from littlebigcluster.errors import LbcError
from littlebigcluster.temporary import TemporaryDirectory

MIN_SQLITE = (3, 35, 0)


class UnsuitableSqlite(LbcError):
    """This Python is linked with an SQLite that cannot be used here."""


@cache
def check_sqlite() -> None:
    """Compare what this SQLite writes into a wal-index with what we would, on a small database of its own.

    Once a process; takes some milliseconds. Raises UnsuitableSqlite.
    """
    name = f"the SQLite {sqlite3.sqlite_version} of this Python"
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        raise UnsuitableSqlite(f"{name} is too old; use a Python with {'.'.join(map(str, MIN_SQLITE))} or later")
    if sqlite3.threadsafety == 0:
        raise UnsuitableSqlite(f"{name} is compiled without threads; use a Python with a usual one")
    with TemporaryDirectory() as directory:
        try:
            _compare(directory / "check.db")
        except (WalIndexError, sqlite3.Error) as error:
            raise UnsuitableSqlite(f"{name} keeps its WAL in another way than known: {error}") from error


def _compare(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    index = None
    try:
        for statement in (
            "PRAGMA page_size = 512",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = OFF",
            "PRAGMA wal_autocheckpoint = 0",
            "CREATE TABLE t(a)",
            "INSERT INTO t VALUES (zeroblob(2500000))",  # about 4900 frames: two blocks
            "BEGIN IMMEDIATE",
        ):
            connection.execute(statement)
        index = WalIndex(path)
        index.check()
    finally:
        connection.close()
        if index is not None:
            index.close()
