"""The database of epoch 0."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from littlebigcluster.database.versions import required_sqlite_version

SYSTEM_TABLE = "CREATE TABLE _lbc(key TEXT PRIMARY KEY, value)"
"""Without a type `value` keeps what it is given; with "ANY", outside of a STRICT table, SQLite would turn the
cluster id "007" into a number (https://sqlite.org/datatype3.html, 3.1)."""

REQUESTS_TABLE = (
    "CREATE TABLE _lbc_request(key TEXT PRIMARY KEY, answer TEXT NOT NULL, generation INTEGER NOT NULL) WITHOUT ROWID"
)
"""Answers of writes that other nodes have sent, so that one that is sent again is not done again."""


def write_initial_database(path: Path, *, page_size: int, system: Mapping[str, Any]) -> str:
    """Make `path` the database of epoch 0: in WAL mode, all in one file, with the system tables beside what is in it.

    A file that does not exist yet gets this page size. Returns the oldest SQLite that can read it. Raises
    sqlite3.Error.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(SYSTEM_TABLE)
        connection.execute(REQUESTS_TABLE)
        connection.executemany("INSERT INTO _lbc VALUES (?, ?)", sorted(system.items()))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return required_sqlite_version(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema"))
    finally:
        connection.close()
