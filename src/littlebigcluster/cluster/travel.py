"""Reads of the past on a node: former states of the database, kept on its disk for a while."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.past import fold
from littlebigcluster.cluster.statements import Parameters
from littlebigcluster.database import Readers
from littlebigcluster.database.replica import write_database
from littlebigcluster.epochs import Identity, Metadata, Point, Survey, find_epoch, lost_is_told, metadata_of, retained
from littlebigcluster.errors import LbcError
from littlebigcluster.roles import LocalCopy, restore_at
from littlebigcluster.settings import Duration, NodeSettings, seconds
from littlebigcluster.store import Store
from littlebigcluster.temporary import remove_tree
from littlebigcluster.threads import carried_through, in_thread

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=sqlite3.Connection)
T = TypeVar("T")

RESTORES_AT_ONCE = 2
"""So many states are restored from the store at the same time; each holds some epochs in memory. Others wait."""

_CLOSE_SECONDS = 5.0
_STOPPED = "the node has stopped"


class Past:
    """The database as it was at one epoch, to be read while the `async with` lasts.

    Attributes:
        epoch: which one.
        moment: when it was written, by the clock of the leader that wrote it.
    """

    def __init__(self, epoch: int, moment: datetime, readers: Readers, read_timeout: Duration) -> None:
        self.epoch, self.moment = epoch, moment
        self._readers, self._read_timeout = readers, read_timeout
        self._over = False

    async def read(
        self, sql: str, parameters: Parameters = (), *, timeout: Duration | None = None, row_factory: Any = None
    ) -> list[Any]:
        """The rows of a query; a thread serves it. Raises DeadlineExceeded, NotAllowed, sqlite3.Error, LbcError after
        the end of the `async with`."""
        self._check()
        limit = seconds(self._read_timeout if timeout is None else timeout)
        return await self._readers.read(sql, parameters, timeout=limit, row_factory=row_factory)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A read-only `sqlite3.Connection`, in the calling thread, for as long as the `async with` lasts: nothing grows
        meanwhile. Raises SnapshotExpired at the end of a block that held it longer."""
        self._check()
        with self._readers.lease() as connection:
            yield connection

    def _check(self) -> None:
        if self._over:
            raise LbcError(f"the state of epoch {self.epoch} was given back at the end of its `async with`")


@dataclass(eq=False)
class _Kept:
    """A state on the disk, or on its way there."""

    epoch: int
    directory: Path
    making: asyncio.Task[Metadata] = field(init=False)
    path: Path = field(init=False)
    size_bytes: int = 0
    """Known before the first byte is written."""
    users: int = 0
    readers: Readers | None = None
    """While somebody uses it: unused ones are files and nothing else."""


class Travel:
    """The past states that a node keeps. Invariant: together they are not larger than `past_cache_bytes`."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        local: LocalCopy,
        directory: Path,
        settings: NodeSettings,
        *,
        clock: Clock,
    ) -> None:
        self._store, self._identity, self._local = store, identity, local
        self._directory, self._settings, self._clock = directory, settings, clock
        self._states: dict[int, _Kept] = {}
        """The least recently used one first."""
        self._ending: set[asyncio.Task[Any]] = set()
        """What still frees space on the disk."""
        self._restoring = asyncio.Semaphore(RESTORES_AT_ONCE)
        self._closed = False

    @contextlib.asynccontextmanager
    async def at(self, point: Point) -> AsyncIterator[Past]:
        """See `Node.at`."""
        epoch = await self._epoch(point)
        if self._closed:
            raise LbcError(_STOPPED)
        kept = self._states.get(epoch) or self._begin(epoch)
        kept.users += 1
        try:
            # Not awaited itself: whoever gives up does not spoil it for the others.
            await asyncio.wait([kept.making])
            if kept.making.cancelled() or self._closed:
                raise LbcError(_STOPPED)
            moment = kept.making.result().created_at
            kept.readers = kept.readers or self._readers(kept)
            past = Past(epoch, moment, kept.readers, self._settings.read_timeout)
            try:
                yield past
            finally:
                past._over = True
        finally:
            await self._leave(kept)

    async def close(self) -> None:
        """End all reads, and remove everything."""
        self._closed = True
        for kept in list(self._states.values()):
            if kept.readers is not None:
                await kept.readers.close(timeout=_CLOSE_SECONDS)
            self._drop(kept)
        while self._ending:
            await asyncio.wait(self._ending)

    async def _epoch(self, point: Point) -> int:
        if isinstance(point, int) and not isinstance(point, bool):
            return point  # it may be at hand; else it is looked for when it is made
        return await find_epoch(self._store, await retained(self._store), point, clock=self._clock)

    def _begin(self, epoch: int) -> _Kept:
        kept = _Kept(epoch, self._directory / f"past-{self._clock.token(8).hex()}")
        kept.making = asyncio.create_task(self._make(kept))
        kept.making.add_done_callback(lambda made: made.cancelled() or made.exception())  # perhaps nobody asks any more
        self._states[epoch] = kept
        return kept

    async def _leave(self, kept: _Kept) -> None:
        kept.users -= 1
        if kept.users:
            return
        if not kept.making.done():  # nobody waits for it any more
            self._drop(kept)
            await asyncio.wait([kept.making])
        elif self._states.get(kept.epoch) is kept:
            self._states[kept.epoch] = self._states.pop(kept.epoch)
            readers, kept.readers = kept.readers, None
            if readers is not None:
                await readers.close(timeout=_CLOSE_SECONDS)

    def _drop(self, kept: _Kept) -> None:
        """Forget it; what is on the disk goes in the background."""
        if self._states.get(kept.epoch) is kept:
            del self._states[kept.epoch]
        if kept.making.done():
            self._remove(kept)
        else:
            self._track(kept.making)
            kept.making.cancel()

    def _remove(self, kept: _Kept) -> asyncio.Task[None]:
        return self._track(asyncio.create_task(remove_tree(kept.directory)))

    def _track(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    # -- making one ----------------------------------------------------------------------------------------------

    async def _make(self, kept: _Kept) -> Metadata:
        """Raises NotRetained, CorruptLog, FormatTooNew, StoreUnavailable, OSError, sqlite3.Error, and LbcError when
        there is no room. Then nothing is left of it."""
        try:
            found = await retained(self._store)
            await find_epoch(self._store, found, kept.epoch, clock=self._clock)
            async with lost_is_told(self._store, kept.epoch):
                metadata = await metadata_of(self._store, kept.epoch)
            self._make_room(kept, metadata.database_pages * metadata.page_size)
            if self._ending:
                await asyncio.wait(self._ending)
            await in_thread(kept.directory.mkdir)
            if not await carried_through(self._copy(kept)):
                async with self._restoring:
                    await self._restore(kept, found)
            logger.debug("the state of epoch %d is at hand, %d bytes", kept.epoch, kept.size_bytes)
            return metadata
        except BaseException:
            if self._states.get(kept.epoch) is kept:
                del self._states[kept.epoch]
            await asyncio.wait([self._remove(kept)])
            raise

    def _make_room(self, kept: _Kept, size_bytes: int) -> None:
        limit = self._settings.past_cache_bytes
        others = [each for each in self._states.values() if each is not kept]
        free = limit - sum(each.size_bytes for each in others)
        unused = [each for each in others if not each.users]
        if free + sum(each.size_bytes for each in unused) < size_bytes:
            in_use = sum(each.size_bytes for each in others if each.users)
            raise LbcError(
                f"the state of epoch {kept.epoch} takes {size_bytes} bytes; past_cache_bytes is {limit}, of which"
                f" {in_use} are in use"
            )
        for each in unused:
            if free >= size_bytes:
                break
            free += each.size_bytes
            self._drop(each)
        kept.size_bytes = size_bytes

    async def _copy(self, kept: _Kept) -> bool:
        """From the local copy, if it stands at that epoch: nothing has to be fetched."""
        if self._local.epoch.value != kept.epoch:
            return False
        image, metadata, _ = await self._local.image()
        path = kept.directory / "copy.db"

        def write() -> bool:
            with image:
                if metadata.epoch != kept.epoch:  # it has gone on
                    return False
                checksum = write_database(path, image.chunks(), page_size=image.page_size)
            if f"{checksum.value:016x}" == metadata.state_checksum:
                return True
            logger.warning("the local copy of epoch %d is damaged; restoring it from the log", kept.epoch)
            path.unlink()
            return False

        kept.path = path
        return await in_thread(write)

    async def _restore(self, kept: _Kept, found: Survey) -> None:
        epoch, directory = kept.epoch, kept.directory
        restored = await restore_at(self._store, self._identity, directory, found, epoch, clock=self._clock)
        kept.path = await in_thread(fold, restored)

    def _readers(self, kept: _Kept) -> Readers:
        connect = functools.partial(_connect, kept.path)
        return Readers(connect, threads=self._settings.readers, max_read_age=float("inf"), clock=self._clock)


def _connect(path: Path, factory: type[C]) -> C:
    """Nobody writes there any more, so that SQLite needs no locks, no WAL and no files beside it."""
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        factory=factory,
    )
    connection.execute("PRAGMA query_only = ON")
    return connection
