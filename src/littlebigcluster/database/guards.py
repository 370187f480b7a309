"""What user code may not do on our connections, and why: the authorizers.

Write code runs inside a transaction of ours, beside the transactions of others, on one node only. What would end
the transaction, reach another file, change how the file is written, or stay behind on this node is refused.
Read code runs on a pinned snapshot that it must not end; that it cannot write is up to `query_only`. (An authorizer
that denied INSERT to readers would break R-Tree, which prepares its INSERTs when a table is opened.)

SQLite asks an authorizer when a statement is prepared. Python's module keeps prepared statements by their text, so a
cached one is not asked for again: statements of our own must have texts that no user knows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

from littlebigcluster.errors import NotAllowed

SYSTEM_PREFIX = "_lbc"
"""Names of tables, views, indexes and triggers that begin so, in upper or lower case, are the library's."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Pragmas that only tell something, as long as they are given no value. FTS5 and R-Tree use two of them.
_TELLING = _words("""
    application_id auto_vacuum busy_timeout cache_size collation_list compile_options data_version
    database_list defer_foreign_keys encoding foreign_keys freelist_count function_list journal_mode
    max_page_count module_list page_count page_size pragma_list query_only recursive_triggers
    schema_version synchronous table_list user_version
""")
# Pragmas that tell something about what is named in brackets.
_ASKING = _words("""
    foreign_key_check foreign_key_list index_info index_list index_xinfo integrity_check quick_check
    table_info table_list table_xinfo
""")
# Pragmas that change the database, as a transaction may, or only this transaction.
_CHANGING = _words("""
    application_id defer_foreign_keys incremental_vacuum optimize user_version
""")

Check = Callable[[str | None, str | None, str | None], str | None]
"""Gets the two arguments and the database of an action; says why it is refused, or None."""


class Guard:
    """The authorizer of one connection. Only the thread that uses the connection may touch it."""

    def __init__(self, checks: dict[int, Check]) -> None:
        self._checks = checks
        self.system = False
        """True while a statement of the library is prepared or run: everything is allowed."""
        self.reason: str | None = None
        """Why the last statement was refused."""
        self.names_changed = False
        """Something was created, renamed or dropped: `check_names` is due."""

    def install(self, connection: sqlite3.Connection) -> None:
        """Once in the life of a connection: it makes SQLite prepare all statements anew."""
        sqlite3.Connection.set_authorizer(connection, self._authorize)

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> int:
        if self.system:
            return sqlite3.SQLITE_OK
        if action in _CHANGING_NAMES:
            self.names_changed = True
        check = self._checks.get(action)
        reason = check(first, second, database) if check is not None else None
        if reason is None:
            return sqlite3.SQLITE_OK
        self.reason = f"{reason} (in trigger or view {trigger})" if trigger else reason
        return sqlite3.SQLITE_DENY

    def translate(self, error: BaseException) -> BaseException:
        """What to raise for `error`: NotAllowed with the reason for SQLite's bare "not authorized"."""
        if isinstance(error, sqlite3.Error) and self.reason is not None:
            code = getattr(error, "sqlite_errorcode", None)
            # Some ways to prepare a statement, such as `Connection.commit()`, lose the code.
            if code == sqlite3.SQLITE_AUTH or "not authorized" in str(error):
                return NotAllowed(self.reason)
        return error


def write_guard() -> Guard:
    """For user code inside a transaction on the leader."""
    return Guard(_WRITE)


def read_guard() -> Guard:
    """For user code on a read-only connection."""
    return Guard(_READ)


def check_names(objects: Iterable[tuple[str, str]]) -> None:
    """Raise NotAllowed if (name, table) pairs of `sqlite_schema` hold a name of ours that is not ours.

    ALTER TABLE ... RENAME gives the authorizer the old name only.
    """
    for name, table in objects:
        if _ours(name) or _ours(table):
            if (name, table) in _SYSTEM_OBJECTS:
                continue
            raise NotAllowed(f"{name}: {_RESERVED}; take another name")


REQUESTS = f"{SYSTEM_PREFIX}_request"
_SYSTEM_OBJECTS = (
    (SYSTEM_PREFIX, SYSTEM_PREFIX),
    (f"sqlite_autoindex_{SYSTEM_PREFIX}_1", SYSTEM_PREFIX),
    (REQUESTS, REQUESTS),
)
_RESERVED = f"names that begin with {SYSTEM_PREFIX} are reserved for the library"


def _ours(name: str | None) -> bool:
    return name is not None and name[: len(SYSTEM_PREFIX)].lower() == SYSTEM_PREFIX


def _transaction(operation: str | None, _second: str | None, _database: str | None) -> str:
    return (
        f"{operation} is not allowed: the function runs inside a transaction, which is committed when it returns and"
        " rolled back when it raises. SAVEPOINT, RELEASE and ROLLBACK TO may be used"
    )


def _snapshot(operation: str | None, _second: str | None, _database: str | None) -> str:
    return f"{operation} is not allowed: the connection reads one snapshot until it is given back"


def _attach(*_: str | None) -> str:
    return "ATTACH and DETACH are not allowed: only the cluster's own database is replicated"


def _temporary(name: str | None, _second: str | None, _database: str | None) -> str:
    return f"temp.{name}: temporary objects are not allowed: they would stay behind on this node only"


def _named(first: str | None, second: str | None, _database: str | None) -> str | None:
    return f"{first}: {_RESERVED}" if _ours(first) or _ours(second) else None


def _written(table: str | None, _column: str | None, _database: str | None) -> str | None:
    if table == "sqlite_dbpage":
        return "sqlite_dbpage: pages cannot be written past SQLite"
    return f"{table}: the library's own table cannot be written" if _ours(table) else None


def _inserted(table: str | None, column: str | None, database: str | None) -> str | None:
    # CREATE TABLE temp.x is not called temporary, but goes to temp.sqlite_master.
    return _temporary(table, column, database) if database == "temp" else _written(table, column, database)


def _function(_first: str | None, name: str | None, _database: str | None) -> str | None:
    return "load_extension() is not allowed" if name == "load_extension" else None


def _pragma_of_writer(name: str | None, value: str | None, database: str | None) -> str | None:
    return None if (name or "").lower() in _CHANGING else _pragma_of_reader(name, value, database)


def _pragma_of_reader(name: str | None, value: str | None, _database: str | None) -> str | None:
    pragma = (name or "").lower()
    if pragma in _ASKING or (value is None and pragma in _TELLING):
        return None
    change = "cannot be changed" if pragma in _TELLING else "is not allowed"
    return f"PRAGMA {pragma} {change} here: it could break replication, or would act on this node only"


_BOTH: dict[int, Check] = {
    sqlite3.SQLITE_ATTACH: _attach,
    sqlite3.SQLITE_DETACH: _attach,
    sqlite3.SQLITE_FUNCTION: _function,
}
_READ: dict[int, Check] = {
    **_BOTH,
    sqlite3.SQLITE_TRANSACTION: _snapshot,
    sqlite3.SQLITE_SAVEPOINT: _snapshot,
    sqlite3.SQLITE_PRAGMA: _pragma_of_reader,
}
_WRITE: dict[int, Check] = {
    **_BOTH,
    sqlite3.SQLITE_TRANSACTION: _transaction,
    sqlite3.SQLITE_PRAGMA: _pragma_of_writer,
    sqlite3.SQLITE_INSERT: _inserted,
    sqlite3.SQLITE_UPDATE: _written,
    sqlite3.SQLITE_DELETE: _written,
    sqlite3.SQLITE_CREATE_TEMP_INDEX: _temporary,
    sqlite3.SQLITE_CREATE_TEMP_TABLE: _temporary,
    sqlite3.SQLITE_CREATE_TEMP_TRIGGER: _temporary,
    sqlite3.SQLITE_CREATE_TEMP_VIEW: _temporary,
    sqlite3.SQLITE_CREATE_VTABLE: _named,
    sqlite3.SQLITE_CREATE_INDEX: _named,
    sqlite3.SQLITE_CREATE_TABLE: _named,
    sqlite3.SQLITE_CREATE_TRIGGER: _named,
    sqlite3.SQLITE_CREATE_VIEW: _named,
    sqlite3.SQLITE_DROP_INDEX: _named,
    sqlite3.SQLITE_DROP_TABLE: _named,
    sqlite3.SQLITE_DROP_TRIGGER: _named,
    sqlite3.SQLITE_DROP_VIEW: _named,
    sqlite3.SQLITE_DROP_VTABLE: _named,
    sqlite3.SQLITE_ALTER_TABLE: _named,
}
_CHANGING_NAMES = frozenset(
    {
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_CREATE_VIEW,
        sqlite3.SQLITE_CREATE_VTABLE,
        sqlite3.SQLITE_ALTER_TABLE,
    }
)
