"""The `sqlite3.Connection` objects that users are handed: real ones, without what would break things.

They look at each `execute` whether the transaction or the snapshot they stand for is still there: SQLite would
go on in autocommit mode. They know their open cursors, because one that is not read to its end holds a snapshot.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Self
from weakref import ref

from littlebigcluster.errors import NotAllowed

_TRACKED_MAX = 1000
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | --[^\n]* | /\*.*?(?:\*/|\Z) | (;)
    | [^'"`\[\-/;]+ | .""",
    re.VERBOSE | re.DOTALL,
)


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script, one by one; a CREATE TRIGGER is one."""
    start = 0
    for token in _TOKEN.finditer(script):
        if token[1] and sqlite3.complete_statement(script[start : token.end()]):
            yield script[start : token.end()]
            start = token.end()
    if script[start:].strip():
        yield script[start:]


_cursor = sqlite3.Connection.cursor
_execute = sqlite3.Cursor.execute


class GuardedCursor(sqlite3.Cursor):
    """A cursor that refuses to go on when its connection is over."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def connection(self) -> GuardedConnection: ...

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        self.connection.check()
        return _execute(self, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        self.connection.check()
        return super().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Self:
        """As in `sqlite3`, but without the COMMIT in front: the script is a part of the transaction."""
        for statement in statements(sql_script):
            self.execute(statement)
        return self


def _refused(name: str, why: str) -> Callable[..., NoReturn]:
    def method(*_: Any, **__: Any) -> NoReturn:
        raise NotAllowed(f"{name} is not allowed here: {why}")

    method.__name__ = name
    return method


_OURS = "the connection belongs to the library, which sets it up for all its uses"
_LENT = "the connection is lent, and taken back by the library"


class SnapshotCursor(GuardedCursor):
    """Looks again behind each call: an interrupt from another thread may have ended it without an error."""

    __slots__ = ()

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        super().execute(sql, parameters)
        self.connection.check()
        return self

    def fetchone(self) -> Any:
        row = super().fetchone()
        self.connection.check()
        return row

    def fetchmany(self, size: int | None = None) -> list[Any]:
        rows = super().fetchmany(self.arraysize if size is None else size)
        self.connection.check()
        return rows

    def fetchall(self) -> list[Any]:
        rows = super().fetchall()
        self.connection.check()
        return rows


class GuardedConnection(sqlite3.Connection):
    """Base of the connections handed out. `check` raises when it must no longer be used."""

    _cursor_class = GuardedCursor

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._tracked: list[ref[sqlite3.Cursor] | ref[sqlite3.Blob]] = []

    def check(self) -> None:
        """Raises when what the connection stands for has ended."""
        raise NotImplementedError

    def cursor(self, factory: Callable[[sqlite3.Connection], Any] | None = None) -> Any:
        self.check()
        cursor = _cursor(self, factory or self._cursor_class)
        self._track(ref(cursor))
        return cursor

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        # sqlite3's own would make a cursor that we do not know.
        cursor: GuardedCursor = self.cursor()
        _execute(cursor, sql, parameters)
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        cursor: GuardedCursor = self.cursor()
        return sqlite3.Cursor.executemany(cursor, sql, parameters)

    def blobopen(self, *args: Any, **keywords: Any) -> sqlite3.Blob:
        self.check()
        blob = super().blobopen(*args, **keywords)
        self._track(ref(blob))
        return blob

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        cursor: GuardedCursor = self.cursor()
        return cursor.executescript(sql_script)

    def take_back(self) -> None:
        """End what is left open, and put back what a user may have set."""
        for reference in self._tracked:
            left = reference()
            if left is not None:
                left.close()
        self._tracked.clear()
        self.row_factory = None
        self.text_factory = str

    def _track(self, reference: ref[sqlite3.Cursor] | ref[sqlite3.Blob]) -> None:
        self._tracked.append(reference)
        if len(self._tracked) > _TRACKED_MAX:
            self._tracked = [alive for alive in self._tracked if alive() is not None]

    isolation_level = property(lambda self: None, _refused("setting isolation_level", _OURS))
    autocommit = property(lambda self: True, _refused("setting autocommit", _OURS))
    close = _refused("close()", _LENT)
    deserialize = _refused("deserialize()", "the database would be another one")
    enable_load_extension = _refused("enable_load_extension()", _OURS)
    load_extension = _refused("load_extension()", _OURS)
    set_authorizer = _refused("set_authorizer()", _OURS)
    set_progress_handler = _refused("set_progress_handler()", _OURS)
    set_trace_callback = _refused("set_trace_callback()", _OURS)
    setconfig = _refused("setconfig()", _OURS)
    setlimit = _refused("setlimit()", _OURS)


_ENDS = "the transaction is committed when the function returns, and rolled back when it raises"


class TransactionConnection(GuardedConnection):
    """What a transaction function gets: it lives from our BEGIN to our COMMIT."""

    def check(self) -> None:
        if not self.in_transaction:
            raise NotAllowed(
                "the transaction is over: its function has ended, or SQLite has rolled it back (a failed OR ROLLBACK,"
                " RAISE(ROLLBACK), an interrupt, a full disk); nothing more can be executed in it"
            )

    def blobopen(self, table: str, *args: Any, **keywords: Any) -> sqlite3.Blob:
        # SQLite does not ask the authorizer here.
        if table[:4].lower() == "_lbc":
            raise NotAllowed(f"blobopen() on {table} is not allowed: the table is the library's own")
        return super().blobopen(table, *args, **keywords)

    commit = _refused("commit()", _ENDS)
    rollback = _refused("rollback()", _ENDS + "; a part of it can be undone with SAVEPOINT and ROLLBACK TO")
    __enter__ = _refused("`with db:`", _ENDS)
    __exit__ = _refused("`with db:`", _ENDS)
    interrupt = _refused("interrupt()", "it could end the transaction of somebody else")
    backup = _refused("backup()", "the transaction is not durable yet; back up from a read connection")
    serialize = _refused("serialize()", "the transaction is not durable yet; copy from a read connection")


class SnapshotConnection(GuardedConnection):
    """What a reader gets: one snapshot. There is nothing to commit, so `commit` and `with db:` do nothing.

    `over` is the error for whoever still uses the connection when its snapshot has ended.
    """

    _cursor_class = SnapshotCursor
    over: Exception | None = None
    altered = False  # by functions or collations of the user, which the next one must not find

    def check(self) -> None:
        if self.over is not None:
            raise self.over.with_traceback(None)

    def commit(self) -> None:
        """Nothing to do: the snapshot stays as it is."""

    def rollback(self) -> None:
        """Nothing to do: the snapshot stays as it is."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        cursor = super().execute(sql, parameters)
        self.check()
        return cursor

    def create_function(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        super().create_function(*args, **keywords)

    def create_aggregate(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        super().create_aggregate(*args, **keywords)

    def create_window_function(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        super().create_window_function(*args, **keywords)

    def create_collation(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        super().create_collation(*args, **keywords)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # type: ignore[override]
        pass
