"""Plain statements and registered procedures as transactions: run here, or sent to the leader and run there."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Parameters = Sequence[Any] | Mapping[str, Any]
Transaction = Callable[[sqlite3.Connection], Any]
Procedures = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement has done, as `sqlite3.Cursor` tells it."""

    rows: list[tuple[Any, ...]]
    """Of RETURNING, or of a SELECT."""
    rowcount: int
    lastrowid: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """A transaction that can travel: `kind` and JSON-ready arguments."""

    kind: str
    arguments: Any

    def transaction(self, procedures: Procedures) -> Transaction:
        """What to run with the connection. Raises ValueError for work that is not known here."""
        match self.kind:
            case "execute":
                return lambda db: _execute(db, *self.arguments)
            case "many":
                return lambda db: _many(db, *self.arguments)
            case "script":
                return lambda db: _script(db, self.arguments)
            case "batch":
                return lambda db: [_execute(db, sql, parameters) for sql, parameters in self.arguments]
            case "call":
                name, arguments = self.arguments
                if name not in procedures:
                    raise ValueError(f"the leader knows no procedure {name!r}; register it on every node that can lead")
                procedure = procedures[name]
                # As if it had travelled, also where it has not: a node that leads today follows tomorrow.
                return lambda db: _as_json(procedure(db, **arguments))
        raise ValueError(f"unknown kind of work: {self.kind!r}")

    def portable(self) -> Work:
        """The same, with the parameters as `sqlite3` binds them here: dates, and whatever has an adapter."""
        match self.kind, self.arguments:
            case "execute", [sql, parameters]:
                return Work("execute", [sql, _bound(parameters)])
            case "many", [sql, rows]:
                return Work("many", [sql, [_bound(each) for each in rows]])
            case "batch", statements:
                return Work("batch", [[sql, _bound(parameters)] for sql, parameters in statements])
        return self

    def digest(self) -> str:
        """The same for the same work, on every node."""
        return hashlib.sha256(to_json([self.kind, self.arguments]).encode()).hexdigest()[:32]

    def size_bytes(self) -> int:
        """What it holds in memory, about."""
        return _size_bytes(self.arguments)

    def vacuum(self) -> bool:
        """Whether this is SQLite's VACUUM, which no transaction can do."""
        return self.kind == "execute" and self.arguments[0].strip().rstrip("; ").upper() == "VACUUM"


def execute(sql: str, parameters: Parameters) -> Work:
    """Raises TypeError unless `sql` is a string."""
    return Work("execute", [_text(sql), _plain(parameters)])


def many(sql: str, parameters: Sequence[Parameters]) -> Work:
    return Work("many", [_text(sql), [_plain(each) for each in parameters]])


def script(text: str) -> Work:
    return Work("script", _text(text))


def batch(statements: Sequence[tuple[str, Parameters]]) -> Work:
    return Work("batch", [_pair(each) for each in statements])


def call(name: str, arguments: Mapping[str, Any]) -> Work:
    """Raises TypeError for arguments that JSON cannot hold."""
    return Work("call", [name, _as_json(dict(arguments))])


def to_json(value: Any) -> str:
    """What SQLite and procedures give, as text. Raises TypeError for what JSON cannot hold."""
    return json.dumps(value, default=_encode, separators=(",", ":"))


def from_json(text: str | bytes) -> Any:
    return json.loads(text, object_hook=_decode)


def _as_json(value: Any) -> Any:
    return from_json(to_json(value))


def _encode(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Result):
        return {"$result": [[list(row) for row in value.rows], value.rowcount, value.lastrowid]}
    raise TypeError(
        f"{value!r} cannot travel between nodes: use None, numbers, strings, bytes, lists and dicts of them"
    )


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {"$bytes"}:
        return base64.b64decode(value["$bytes"])
    if value.keys() == {"$result"}:
        rows, rowcount, lastrowid = value["$result"]
        return Result([tuple(row) for row in rows], rowcount, lastrowid)
    return value


def _text(sql: str) -> str:
    if not isinstance(sql, str):
        raise TypeError(f"sql must be a string, not {sql!r}")
    return sql


def _size_bytes(value: Any) -> int:
    match value:
        case str() | bytes() | bytearray() | memoryview():
            return len(value)
        case list() | tuple():
            return sum(map(_size_bytes, value))
        case dict():
            return sum(len(key) + _size_bytes(item) for key, item in value.items())
    return 8


def _plain(parameters: Parameters) -> Any:
    if isinstance(parameters, Mapping):
        return dict(parameters)
    try:
        return list(parameters)
    except TypeError:
        raise TypeError(f"parameters are a sequence or a mapping, like ({parameters!r:.50},)") from None


def _bound(parameters: Any) -> Any:
    if isinstance(parameters, dict):
        return {name: _adapted(value) for name, value in parameters.items()}
    return [_adapted(value) for value in parameters]


def _adapted(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bytes):
        return value
    try:
        return sqlite3.adapt(value, sqlite3.PrepareProtocol)
    except sqlite3.ProgrammingError:  # it has no adapter
        return value


def _pair(statement: tuple[str, Parameters]) -> list[Any]:
    try:
        if isinstance(statement, str):
            raise ValueError
        sql, parameters = statement
    except (TypeError, ValueError):
        raise TypeError(f"a batch is made of (sql, parameters), not {statement!r:.100}") from None
    return [_text(sql), _plain(parameters)]


def _execute(db: sqlite3.Connection, sql: str, parameters: Any) -> Result:
    cursor = db.execute(sql, parameters)
    rows = cursor.fetchall()
    return Result(rows, cursor.rowcount, cursor.lastrowid)


def _many(db: sqlite3.Connection, sql: str, parameters: list[Any]) -> Result:
    cursor = db.executemany(sql, parameters)
    return Result([], cursor.rowcount, None)


def _script(db: sqlite3.Connection, text: str) -> None:
    db.executescript(text)
