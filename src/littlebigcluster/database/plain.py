"""Plain SQLite files: an application's own that becomes a cluster's database, and the other way round.

A plain file has none of the library's tables, and no WAL beside it. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from littlebigcluster.database.guards import REQUESTS, SYSTEM_PREFIX, check_names
from littlebigcluster.database.initial import REQUESTS_TABLE, SYSTEM_TABLE
from littlebigcluster.errors import NotAllowed

_BUSY_SECONDS = 5.0
_OURS = {SYSTEM_PREFIX: SYSTEM_TABLE, REQUESTS: REQUESTS_TABLE}

_log = logging.getLogger(__name__)


def make_plain(path: Path) -> None:
    """Turn a cluster's database, in a file that nobody else uses, into a plain one: one file that every tool opens.

    Raises ValueError when it is damaged, sqlite3.Error.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, _explained(path):
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        _remove_system_tables(connection)
        _check_integrity(connection, path)


def copy_plain(source: Path, target: Path, *, page_size: int, foreign_keys: bool) -> None:
    """Copy an application's database, as of one moment, to the new file `target`, plain and with this page size.

    The source is only read; another process may be using it. What only its WAL holds is copied, too. The copy is
    checked: its integrity, its foreign keys if they are to be enforced, and whether this SQLite knows all that its
    schema asks for. Rows keep their rowids.

    Raises FileNotFoundError, OSError, ValueError for what can be no cluster's database, NotAllowed for names that are
    reserved, sqlite3.OperationalError when the source is locked or cannot be opened, or the disk is full.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if not source.is_file():
        raise OSError(f"{source} is not a file")
    with _explained(source):
        _copy(source, target, page_size)
        with closing(sqlite3.connect(target, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            _check_integrity(connection, source)
            _check_modules(connection)
            _check_foreign_keys(connection, source, enforced=foreign_keys)
            _remove_system_tables(connection)


def _copy(source: Path, target: Path, page_size: int) -> None:
    uri = f"file:{quote(os.fsencode(source.absolute()))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
        # In a transaction, which fails when the source stays locked: `backup` alone would try for ever.
        connection.execute("BEGIN")
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            raise ValueError(f"{source} is empty; a cluster that holds nothing yet is made by init")
        if connection.execute("PRAGMA page_size").fetchone()[0] == page_size:
            with closing(sqlite3.connect(target)) as copy:
                connection.backup(copy)
        else:
            # Not VACUUM, which gives new rowids to tables that do not declare theirs; VACUUM INTO keeps them.
            connection.execute("COMMIT")
            connection.execute(f"PRAGMA page_size = {page_size}")
            connection.execute("VACUUM INTO ?", (str(target),))


def _check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise ValueError(f"{path} is damaged: {'; '.join(found)}")


def _check_modules(connection: sqlite3.Connection) -> None:
    """What a virtual table is made by must be there on every node."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0").fetchall()
    for (name,) in tables:
        quoted = '"' + name.replace('"', '""') + '"'
        connection.execute(f"SELECT * FROM {quoted} LIMIT 0").close()


def _check_foreign_keys(connection: sqlite3.Connection, path: Path, *, enforced: bool) -> None:
    try:
        violations = connection.execute("PRAGMA foreign_key_check")
        first = violations.fetchone()
        count = 0 if first is None else 1 + sum(1 for _ in violations)
    except sqlite3.OperationalError as error:  # a key that refers to no unique column
        if enforced:
            raise
        _log.warning("%s: the foreign keys, which will not be enforced, are not sound: %s", path, error)
        return
    if count and enforced:
        raise ValueError(
            f"{path}: {count} rows violate foreign keys, the first in table {first[0]}, which refers to {first[2]};"
            " mend them, or import without foreign keys enforced"
        )
    if count:
        _log.warning("%s: %d rows violate foreign keys, which will not be enforced", path, count)


def _remove_system_tables(connection: sqlite3.Connection) -> None:
    """Raises NotAllowed for what only has a name like theirs."""
    objects = connection.execute("SELECT name, tbl_name, sql FROM sqlite_schema").fetchall()
    check_names((name, table) for name, table, _ in objects)
    present = {name: sql for name, _, sql in objects if name in _OURS}
    for name, sql in present.items():
        if sql != _OURS[name]:
            raise NotAllowed(f"{name}: names that begin with {SYSTEM_PREFIX} are reserved for the library; rename it")
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA secure_delete = ON").fetchone()  # nothing of them stays in free pages
    connection.execute("BEGIN IMMEDIATE")
    for name in present:
        connection.execute(f"DROP TABLE {name}")
    connection.execute("COMMIT")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of SQLite with the file's name, and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        match None if code is None else code & 0xFF:
            case sqlite3.SQLITE_NOTADB:
                raise ValueError(f"{path} is not a SQLite database, or it is encrypted") from error
            case sqlite3.SQLITE_CORRUPT:
                raise ValueError(f"{path} is damaged, or a -wal file beside it is not its own ({error})") from error
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise sqlite3.OperationalError(
                    f"{path} is locked by another process; try again when that has finished its write"
                ) from error
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
                raise sqlite3.OperationalError(
                    f"{path} cannot be read as it is ({error}): the last write to it was broken off, or its directory"
                    " cannot be written to; open a copy of it with sqlite3 once, and import that"
                ) from error
            case sqlite3.SQLITE_ERROR | None:
                raise ValueError(f"{path}: this SQLite cannot use its schema: {error}") from error
            case _:
                raise
