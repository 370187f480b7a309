"""What changed between two points in time."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import inspect, past
from littlebigcluster.cluster.inspect import State
from littlebigcluster.database import Counts, RowChange, SchemaChange, TableDiff, diff
from littlebigcluster.epochs import Metadata, Point
from littlebigcluster.store import Store
from littlebigcluster.threads import in_thread

_ROWS = 200
"""So many rows are fetched in a thread at a time."""


@dataclass(frozen=True, slots=True)
class TableChanges:
    """How many rows of a table changed, and what is there of it in each of the two states."""

    name: str
    counts: Counts
    columns_before: tuple[str, ...]
    """Empty when the table was not there."""
    columns_after: tuple[str, ...]
    key: tuple[str, ...]
    """The columns by which rows are told apart; without them it was the rowid, or their whole content."""
    unreadable: str | None
    """Why the rows could not be compared: the module of a virtual table is not there."""


class Changes:
    """What changed between two states, in the database's schema and in the rows of its tables.

    Attributes:
        before, after: the metadata of the two epochs.
        schema: the tables, indexes, views and triggers that were created, dropped or altered.
        user_versions: SQLite's `user_version` in each, which an application may count its schema's versions with.
        tables: by name, those in which something differs; a table that was created or dropped counts as a whole.
    """

    def __init__(
        self, before: State, after: State, schema: list[SchemaChange], found: list[tuple[TableDiff, Counts]]
    ) -> None:
        """Use `compare`."""
        self.before: Metadata = before.metadata
        self.after: Metadata = after.metadata
        self.schema = schema
        self.user_versions = user_version(before), user_version(after)
        self._connections = before.connection, after.connection
        self._found = {table.name: table for table, _ in found}
        self.tables = {table.name: _summary(table, counts) for table, counts in found}

    def __bool__(self) -> bool:
        return (
            bool(self.schema) or len(set(self.user_versions)) > 1 or any(table.counts for table in self.tables.values())
        )

    async def rows(self, table: str, *, limit: int | None = None) -> AsyncIterator[RowChange]:
        """The rows of one of the `tables` that differ, by what tells them apart. Raises KeyError, sqlite3.Error."""
        stop = _interrupt(self._connections)
        with contextlib.closing(self._found[table].rows()) as found:
            rows = islice(found, limit)
            while batch := await in_thread(lambda: list(islice(rows, _ROWS)), stop=stop):
                for row in batch:
                    yield row


def user_version(state: State) -> int:
    """The number that is the application's own. Raises sqlite3.Error."""
    ((version,),) = state.connection.execute("PRAGMA user_version").fetchall()
    return int(version)


def _summary(table: TableDiff, counts: Counts) -> TableChanges:
    return TableChanges(table.name, counts, table.columns_before, table.columns_after, table.key, table.unreadable)


async def compare(before: State, after: State, *, table: str | None = None) -> Changes:
    """What differs between two states, of which nothing else is asked meanwhile.

    All rows are read once to count; memory does not grow with them. Virtual tables are compared by what they give. The
    library's own tables and SQLite's are left out. Raises ValueError when there is no such table, sqlite3.Error.
    """

    connections = before.connection, after.connection

    def count() -> Changes:
        found = diff(*connections, table=table)
        counted = [(each, each.counts()) for each in found.tables]
        differing = [pair for pair in counted if pair[1] or pair[0].unreadable or _other_columns(pair[0])]
        return Changes(before, after, found.schema, differing)

    return await in_thread(count, stop=_interrupt(connections))


def _interrupt(connections: Iterable[sqlite3.Connection]) -> Callable[[], None]:
    def interrupt() -> None:
        for connection in connections:
            connection.interrupt()

    return interrupt


def _other_columns(table: TableDiff) -> bool:
    return bool(table.before and table.after and table.columns_before != table.columns_after)


@contextlib.asynccontextmanager
async def between(
    store: Store, before: Point, after: Point | None, *, table: str | None, expected_id: str | None, clock: Clock
) -> AsyncIterator[Changes]:
    """Restore both points (None: now) to temporary places, and compare them. Raises what `past.at` and `compare`
    raise."""
    later = inspect.head(store, expected_id=expected_id, clock=clock)
    if after is not None:
        later = past.at(store, after, expected_id=expected_id, clock=clock)
    async with past.at(store, before, expected_id=expected_id, clock=clock) as old, later as new:
        yield await compare(old, new, table=table)
