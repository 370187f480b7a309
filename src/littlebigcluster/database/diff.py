"""What differs between two states of a database: a pure function of two connections.

Rows are told apart by the primary key, in a table without one by the rowid, and where neither tells (the key is another
one, or a virtual table has none) by their whole content. Both states are read in that order and merged, one row of
each at a time: the memory it takes does not depend on the size of a table. (For another order than that of an index
SQLite sorts, in temporary files.)

Values are compared as they are stored: 1, 1.0, '1' and x'31' are four values, and 'a' is not 'A' in any collation.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

from littlebigcluster.database.tables import (
    SchemaChange,
    SchemaObject,
    Table,
    describe,
    fold,
    quoted,
    schema,
    schema_changes,
)

Row = tuple[Any, ...]
_Key = tuple[Any, ...]
_Keyed = tuple[_Key, int | None, Row]
_Side = tuple[sqlite3.Connection, Table]
_ENCODINGS = {
    "UTF-8": ("utf-8", "surrogateescape"),
    "UTF-16le": ("utf-16-le", "surrogatepass"),
    "UTF-16be": ("utf-16-be", "surrogatepass"),
}


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row: `old` is None when it was added, `new` when it was removed; they go with the columns of their state."""

    kind: Literal["added", "removed", "changed"]
    rowid: int | None
    """By which the row was told apart, if that was not by one of its columns."""
    old: Row | None
    new: Row | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of one table."""

    added: int = 0
    removed: int = 0
    changed: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True)
class TableDiff:
    """What differs in one table; a table that is there in only one of the two counts as a whole."""

    name: str
    before: _Side | None = field(repr=False)
    after: _Side | None = field(repr=False)
    identified_by: Literal["key", "rowid", "content"]
    """What tells rows apart."""
    key: tuple[str, ...] = ()
    """The columns of the key, if that tells rows apart."""
    unreadable: str | None = None
    """Why its rows could not be compared: its module is not there."""

    @property
    def columns_before(self) -> tuple[str, ...]:
        return self.before[1].columns if self.before else ()

    @property
    def columns_after(self) -> tuple[str, ...]:
        return self.after[1].columns if self.after else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Those in both states, by which rows are compared."""
        here = {fold(name) for name in self.columns_after}
        return tuple(name for name in self.columns_before if fold(name) in here)

    def counts(self) -> Counts:
        """How many rows differ. Reads the whole table in both states."""
        if self.before is None or self.after is None:
            return Counts(added=_count(self.after), removed=_count(self.before))
        found = {"added": 0, "removed": 0, "changed": 0}
        for change in self.rows():
            found[change.kind] += 1
        return Counts(**found)

    def rows(self) -> Generator[RowChange, None, None]:
        """The rows that differ, in the order of what tells them apart; to be closed if not read to its end.

        Raises sqlite3.Error."""
        if self.unreadable is not None:
            return
        # A statement that is not read to its end would go on, and an interruption last as long as it does.
        with closing(self._ordered(self.before)) as old, closing(self._ordered(self.after)) as new:
            if self.identified_by == "content" and not self.columns:  # nothing to compare them by
                yield from (RowChange("removed", None, row, None) for _, _, row in old)
                yield from (RowChange("added", None, None, row) for _, _, row in new)
            else:
                yield from self._merged(old, new)

    def _merged(self, old: Iterator[_Keyed], new: Iterator[_Keyed]) -> Iterator[RowChange]:
        compare = self._comparison()
        was, now = next(old, None), next(new, None)
        while was is not None or now is not None:
            if now is None or (was is not None and was[0] < now[0]):
                assert was is not None
                yield RowChange("removed", was[1], was[2], None)
                was = next(old, None)
            elif was is None or now[0] < was[0]:
                yield RowChange("added", now[1], None, now[2])
                now = next(new, None)
            else:
                if not compare(was[2], now[2]):
                    yield RowChange("changed", now[1], was[2], now[2])
                was, now = next(old, None), next(new, None)

    def _comparison(self) -> Callable[[Row, Row], bool]:
        """Whether two rows are the same in the columns that both have."""
        if [fold(name) for name in self.columns_before] == [fold(name) for name in self.columns_after]:
            return same
        places = [
            ({fold(name): place for place, name in enumerate(columns)})
            for columns in (self.columns_before, self.columns_after)
        ]
        common = [(places[0][name], places[1][name]) for name in map(fold, self.columns)]
        return lambda old, new: same(tuple(old[a] for a, _ in common), tuple(new[b] for _, b in common))

    def _ordered(self, side: _Side | None) -> Generator[_Keyed, None, None]:
        """The rows of one state in the order of their keys: the key, the rowid if it tells rows apart, the row."""
        if side is None:
            return
        connection, table = side
        by_content, by_rowid = self.identified_by == "content", self.identified_by == "rowid"
        columns = {fold(name): place for place, name in enumerate(table.columns)}
        places = [columns[fold(name)] for name in (self.columns if by_content else self.key)]
        rowid = None if by_content else table.rowid
        selected = [f"t.{rowid}" if rowid else "NULL", *(f"t.{quoted(name)}" for name in table.columns)]
        order = [_in_order(table.columns[place], typed=by_content) for place in places]
        order += [f"t.{rowid}"] if rowid else []
        sql = f"SELECT {', '.join(selected)} FROM main.{quoted(table.name)} AS t"
        # With nothing to compare with, any order will do.
        ordered = self.before is not None and self.after is not None and bool(order)
        rank = _ranking(connection, typed=by_content)
        last: _Key = ()
        with closing(connection.execute(f"{sql} ORDER BY {', '.join(order)}" if ordered else sql)) as cursor:
            for number, *values in cursor:
                row = tuple(values)
                key: _Key = tuple(rank(row[place]) for place in places)
                loose = by_rowid or (rowid is not None and _NULL in key)  # NULL may be there more than once
                if loose:
                    key += (number,)
                if ordered and key < last:
                    raise sqlite3.DatabaseError(f"{table.name} is not in the order of its keys: check its indexes")
                last = key
                yield key, number if loose else None, row


_NULL = (0,)


def _ranking(connection: sqlite3.Connection, *, typed: bool) -> Callable[[Any], tuple[Any, ...]]:
    """From a value to something that sorts as SQLite sorts it in BINARY."""
    encoding, errors = _ENCODINGS[connection.execute("PRAGMA encoding").fetchone()[0]]

    def rank(value: Any) -> tuple[Any, ...]:
        match value:
            case None:
                return _NULL
            case str():
                return 2, value.encode(encoding, errors)
            case bytes():
                return 3, value
            case _ if typed:
                return 1, value, isinstance(value, float)
            case _:
                return 1, value

    return rank


def _in_order(column: str, *, typed: bool) -> str:
    name = f"t.{quoted(column)}"
    return f"{name} COLLATE BINARY" + (f", typeof({name})" if typed else "")


def same(old: Sequence[Any], new: Sequence[Any]) -> bool:
    """Whether two rows are the same, also in the types of the values."""
    return old == new and all(type(a) is type(b) for a, b in zip(old, new, strict=True))


def _count(side: _Side | None) -> int:
    if side is None:
        return 0
    connection, table = side
    count: int = connection.execute(f"SELECT count(*) FROM main.{quoted(table.name)}").fetchone()[0]
    return count


@dataclass(frozen=True)
class Diff:
    """What differs between two states."""

    schema: list[SchemaChange]
    tables: list[TableDiff]
    """All tables of either state, by name, also those in which nothing differs."""


def diff(before: sqlite3.Connection, after: sqlite3.Connection, *, table: str | None = None) -> Diff:
    """What differs between two states, each seen by a connection that nobody else uses, on a snapshot that stays.

    Only the schema is compared at once; the rows, when they are asked for. With `table` nothing but that table and what
    belongs to it. The library's own tables and SQLite's are left out; virtual tables are compared by what they give,
    not by the tables in which they keep it. Raises ValueError when neither state has the table, sqlite3.Error.
    """
    for connection in (before, after):
        connection.text_factory = _text
    objects = [schema(connection) for connection in (before, after)]
    if table is not None:
        objects = [[each for each in side if fold(table) in (fold(each.name), fold(each.table))] for side in objects]
    old, new = [{fold(each.name): each for each in side if each.type == "table"} for side in objects]
    names = sorted(old.keys() | new.keys())
    if table is not None and not names:
        raise ValueError(f'there is no table "{table}" in either state')
    tables = [_table_diff((before, old.get(name)), (after, new.get(name))) for name in names]
    return Diff(schema_changes(*objects), tables)


def _text(raw: bytes) -> str:
    """Text as SQLite has it, which need not be valid."""
    return raw.decode("utf-8", "surrogateescape")


def _table_diff(*sides: tuple[sqlite3.Connection, SchemaObject | None]) -> TableDiff:
    name = next(found.name for _, found in reversed(sides) if found is not None)
    try:
        before, after = [(connection, describe(connection, found)) if found else None for connection, found in sides]
    except sqlite3.OperationalError as error:
        return TableDiff(name, None, None, "content", unreadable=str(error))
    tables = [side[1] for side in (before, after) if side is not None]
    if len({tuple(map(fold, table.primary_key)) for table in tables}) > 1:
        return TableDiff(name, before, after, "content")
    if tables[0].primary_key and not any(side is not None and _has_lost_rows(*side) for side in (before, after)):
        return TableDiff(name, before, after, "key", tables[0].primary_key)
    by_rowid = all(table.rowid is not None and not table.primary_key for table in tables)
    return TableDiff(name, before, after, "rowid" if by_rowid else "content")


def _has_lost_rows(connection: sqlite3.Connection, table: Table) -> bool:
    """Whether neither key nor rowid tells all rows apart: SQLite lets a key be NULL more than once, and columns may
    have taken all names of the rowid."""
    if table.rowid is not None:
        return False
    nulls = " OR ".join(f"t.{quoted(name)} IS NULL" for name in table.primary_key)
    sql = f"SELECT 1 FROM main.{quoted(table.name)} AS t WHERE {nulls} LIMIT 1"
    return connection.execute(sql).fetchone() is not None
