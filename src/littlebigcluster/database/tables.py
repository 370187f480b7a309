"""What a database holds, as SQLite itself tells: its schema, and how the rows of each table are told apart."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import Literal

from littlebigcluster.database.guards import SYSTEM_PREFIX

_SHADOWS = {
    "fts5": ("data", "idx", "content", "docsize", "config"),
    "fts4": ("content", "segments", "segdir", "docsize", "stat"),
    "fts3": ("content", "segments", "segdir", "docsize", "stat"),
    "rtree": ("node", "rowid", "parent"),
    "rtree_i32": ("node", "rowid", "parent"),
    "geopoly": ("node", "rowid", "parent"),
}
"""The tables in which SQLite's virtual tables keep what they hold: NAME_data and so on."""

# SQLite writes the beginning itself; the rest, from the name on, is as it was typed.
_MODULE = re.compile(
    r"""CREATE\ VIRTUAL\ TABLE \s+ (?:"(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | '(?:[^']|'')*' | \w+)
    (?:\s | /\*.*?\*/ | --[^\n]*\n)* USING (?:\s | /\*.*?\*/ | --[^\n]*\n)* ["`\[']? (\w+)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_ROWID_NAMES = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """A table, index, view or trigger, the table it belongs to, and the statement that makes it."""

    type: str
    name: str
    table: str
    sql: str


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """`old` and `new` are the statements; None when the object is not there. For an altered one they differ."""

    kind: Literal["created", "dropped", "altered"]
    type: str
    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with rows of its own. Names are as written in its definition."""

    name: str
    columns: tuple[str, ...]
    """Without generated ones, which follow from the others, and without hidden ones of virtual tables."""
    primary_key: tuple[str, ...]
    """In the order of the key; empty if there is none."""
    rowid: str | None
    """A name by which the rowid can be asked for, None if there is none."""


def fold(name: str) -> str:
    """Names that SQLite takes for the same come out as the same: it knows upper and lower case in ASCII only."""
    return "".join(character.lower() if character.isascii() else character for character in name)


def quoted(name: str) -> str:
    """`name` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def schema(connection: sqlite3.Connection) -> list[SchemaObject]:
    """All that users have made: without the library's own, SQLite's own (sqlite_sequence, statistics, indexes of
    constraints), and the tables in which virtual tables keep what they hold."""
    rows = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name"
    ).fetchall()
    hidden = _shadows([(name, sql) for _, name, _, sql in rows])
    return [
        SchemaObject(kind, name, table, sql)
        for kind, name, table, sql in rows
        if not any(_own(each) or fold(each) in hidden for each in (name, table))
    ]


def _own(name: str) -> bool:
    return fold(name).startswith((SYSTEM_PREFIX, "sqlite_"))


def _shadows(objects: list[tuple[str, str]]) -> dict[str, str]:
    """From the tables, folded, in which virtual tables keep what they hold, to these; `objects` are names and
    statements."""
    return {
        fold(f"{name}_{suffix}"): name
        for name, sql in objects
        if (module := _MODULE.match(sql))
        for suffix in _SHADOWS.get(module[1].lower(), ())
    }


def trees(connection: sqlite3.Connection) -> dict[int, str]:
    """From the root page of each b-tree to the table that it holds, or whose index it is. Tables of virtual tables
    count as these; those that are the library's own, or SQLite's own, as ""."""
    rows = connection.execute("SELECT rootpage, name, tbl_name, sql FROM sqlite_schema").fetchall()
    owners = _shadows([(name, sql or "") for _, name, _, sql in rows])
    found = {root: "" if _own(table) else owners.get(fold(table), table) for root, _, table, _ in rows if root}
    return {1: ""} | found


def schema_changes(before: list[SchemaObject], after: list[SchemaObject]) -> list[SchemaChange]:
    """What was created, dropped and altered. An object that was renamed is dropped and created."""
    old, new = [{(each.type, fold(each.name)): each for each in objects} for objects in (before, after)]
    changes = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was is None and now is not None:
            changes.append(SchemaChange("created", now.type, now.name, None, now.sql))
        elif was is not None and now is None:
            changes.append(SchemaChange("dropped", was.type, was.name, was.sql, None))
        elif was is not None and now is not None and was.sql != now.sql:
            changes.append(SchemaChange("altered", now.type, now.name, was.sql, now.sql))
    return changes


def describe(connection: sqlite3.Connection, table: SchemaObject) -> Table:
    """How to read the rows of a table. Raises sqlite3.Error when that cannot be done: no such module."""
    info = connection.execute("SELECT name, pk, hidden FROM pragma_table_xinfo(?)", (table.name,)).fetchall()
    columns = tuple(name for name, _, hidden in info if hidden == 0)
    key = tuple(name for _, name in sorted((place, name) for name, place, _ in info if place))
    taken = {fold(name) for name, *_ in info}
    free = next((name for name in _ROWID_NAMES if name not in taken), None)
    if free is not None:
        try:
            connection.execute(f"SELECT {free} FROM main.{quoted(table.name)} LIMIT 0").close()
        except sqlite3.OperationalError:  # WITHOUT ROWID
            free = None
    if table.sql.startswith("CREATE VIRTUAL TABLE") and free is not None:
        key = ()  # what a module declares as its key it need not keep
    return Table(table.name, columns, key, free)
