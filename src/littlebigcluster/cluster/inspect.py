"""A cluster seen from outside: what its objects say, for tools that read without joining."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.database.guards import read_guard
from littlebigcluster.epochs import (
    Beacon,
    Identity,
    Leader,
    Metadata,
    Point,
    Survey,
    epoch_of,
    find_epoch,
    in_order,
    moment,
    names,
    read_identity,
    read_metadata,
    read_repairs,
    retained,
    survey,
    survey_after,
    survey_all,
    unfinished,
)
from littlebigcluster.errors import CorruptLog, NotAllowed, NotRetained
from littlebigcluster.roles import restore
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.temporary import temporary_directory
from littlebigcluster.threads import in_thread

_WINDOW = 16
_FOLLOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A cluster as its objects tell it, at one moment. Whether the leader is alive they cannot say."""

    store: str
    identity: Identity
    format_version: int
    """Of the newest object."""
    epoch: int
    term: int
    leader: Leader | None
    """None when nobody has led yet, or the last one has released the leadership."""
    last_update: datetime
    """When the newest epoch was written, by its writer's clock."""
    snapshot_epoch: int
    snapshot_bytes: int
    log_epochs: int
    """Epochs after the snapshot: what a join fetches besides it, merged where they are."""
    log_bytes: int
    database_bytes: int
    beacon: Beacon | None
    """The last sign of life of an idle leader, if there ever was one."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An epoch without its content."""

    metadata: Metadata
    size_bytes: int
    """Of the whole object, as it is stored."""
    tables: tuple[str, ...] | None = None
    """That the epoch touched, by name, if that was asked for; "(schema)" first when it changed the schema. None also
    when the state before the epoch cannot be restored any more."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The result of a query."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class State:
    """The database at one epoch, restored to a temporary place. Read-only."""

    def __init__(self, connection: sqlite3.Connection, identity: Identity, metadata: Metadata) -> None:
        self._connection, self.identity, self.metadata = connection, identity, metadata
        self._guard = read_guard()
        self._guard.install(connection)

    @property
    def connection(self) -> sqlite3.Connection:
        """What `query` asks; for one thread at a time."""
        return self._connection

    async def query(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run one statement; cancelling interrupts it. Raises sqlite3.Error, NotAllowed."""
        return await in_thread(self._query, sql, parameters, stop=self._connection.interrupt)

    def _query(self, sql: str, parameters: Sequence[Any]) -> Rows:
        try:
            cursor = self._connection.execute(sql, parameters)
            rows = cursor.fetchall()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY:
                raise NotAllowed("this copy is only for reading; write through a node of the cluster") from error
            raise self._guard.translate(error) from error
        return Rows([column[0] for column in cursor.description or ()], rows)


async def status(store: Store, *, expected_id: str | None = None) -> Status:
    """What the objects say, by a handful of small requests.

    Raises NotInitialized, WrongCluster, CorruptLog, FormatTooNew, StoreUnavailable.
    """
    identity, _ = await read_identity(store, expected_id=expected_id)
    found = await survey(store)
    if not found.snapshots:
        raise unfinished(store, identity)
    snapshot = found.snapshots[0]
    since = [info for info in found.epochs if epoch_of(info) > epoch_of(snapshot)]
    newest = await read_metadata(store, since[-1].key if since else snapshot.key)
    beacon = Beacon.decode(await store.get(names.BEACON))
    return Status(
        store=store.url,
        identity=identity,
        format_version=newest.format_version,
        epoch=newest.epoch,
        term=newest.term,
        leader=newest.leader,
        last_update=newest.created_at,
        snapshot_epoch=epoch_of(snapshot),
        snapshot_bytes=snapshot.size_bytes,
        log_epochs=len(since),
        log_bytes=sum(info.size_bytes for info in since),
        database_bytes=newest.database_pages * newest.page_size,
        beacon=beacon if beacon is not None and beacon.cluster_id == identity.cluster_id else None,
    )


async def history(
    store: Store,
    *,
    limit: int | None,
    since: Point | None = None,
    follow: bool = False,
    expected_id: str | None = None,
    clock: Clock,
) -> AsyncGenerator[LogEntry, None]:
    """The epochs from the one that was the newest at `since` on, or all that are retained; of those the last `limit`,
    oldest first; and with `follow` those to come, for ever.

    Raises what `status` raises; NotRetained for a point that is still to come.
    """
    await read_identity(store, expected_id=expected_id)
    if since is not None:
        found = await retained(store)
        first = await _from(store, found, since, clock=clock)
        infos = [info for info in found.epochs if epoch_of(info) >= first][-(limit or 0) :]
    elif limit is None:
        infos = (await survey_all(store)).epochs
    else:
        head = (await survey(store)).head
        infos = (await survey_after(store, max(0, head - limit))).epochs[-limit:]
    async with contextlib.aclosing(_entries(store, infos)) as entries:
        async for entry in entries:
            yield entry
    at = epoch_of(infos[-1]) if infos else (await survey(store)).head
    while follow:
        # One small request for each look; the listing only when there is something.
        if await store.get_range(names.wal(at + 1), 0, 1) is None:
            await asyncio.sleep(_FOLLOW_SECONDS)
            continue
        async with contextlib.aclosing(_entries(store, (await survey_after(store, at)).epochs)) as entries:
            async for entry in entries:
                yield entry
                at = entry.metadata.epoch


async def _from(store: Store, found: Survey, since: Point, *, clock: Clock) -> int:
    """The first epoch to tell of: the oldest for what is older than all."""
    try:
        return await find_epoch(store, found, since, clock=clock)
    except NotRetained:
        oldest = epoch_of(found.snapshots[-1]) if found.snapshots else 0
        too_old = since < oldest if isinstance(since, int) else moment(since, clock) <= clock.now()
        if too_old:
            return oldest
        raise


async def _entries(store: Store, infos: list[ObjectInfo]) -> AsyncGenerator[LogEntry, None]:
    """Without damaged ones that a repair has told of."""
    reads = (_read_unless_told(store, info.key) for info in infos)
    sizes = iter(infos)
    async with contextlib.aclosing(in_order(reads, window=_WINDOW)) as found:
        async for metadata in found:
            info = next(sizes)
            if metadata is not None:
                yield LogEntry(metadata, info.size_bytes)


async def _read_unless_told(store: Store, name: str) -> Metadata | None:
    try:
        return await read_metadata(store, name)
    except CorruptLog:
        if any(repair.covers(name) for repair in await read_repairs(store)):
            return None
        raise


@contextlib.asynccontextmanager
async def head(store: Store, *, expected_id: str | None = None, clock: Clock) -> AsyncIterator[State]:
    """Restore the newest state to a temporary directory and read it there. Raises what `status` raises."""
    identity, _ = await read_identity(store, expected_id=expected_id)
    async with temporary_directory() as directory:
        restored = await restore(store, identity, directory, clock=clock)
        try:
            connection = restored.replica.connect()
            try:
                yield State(connection, identity, restored.metadata)
            finally:
                connection.close()
        finally:
            restored.replica.close()
