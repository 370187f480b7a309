"""From nothing, or from what a former node has left on the disk, to a replica at the head of the log."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.database import Replica, StateChecksum, StateMismatch, WalError, check_sqlite_version, parse
from littlebigcluster.epochs import (
    Entry,
    Identity,
    Metadata,
    Position,
    Survey,
    check_follows,
    codec,
    epoch_of,
    in_order,
    names,
    snapshots,
    survey,
    survey_all,
    unfinished,
)
from littlebigcluster.epochs.pins import pinned
from littlebigcluster.errors import CorruptLog, NotInitialized, StoreUnavailable
from littlebigcluster.store import ObjectInfo, Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

DROPPED = "dropped"
"""A file of this name beside a replica says that nobody may use it any more."""

_WINDOW = 16
_MAX_CATCH_UP = 1000
"""A former copy further behind than this is not worth keeping; a snapshot is nearer."""


@dataclass
class SinceSnapshot:
    """How much log there is after the newest snapshot: what a join has to fetch besides it."""

    epoch: int
    size_bytes: int
    log_epochs: int = 0
    log_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        self.log_epochs += 1
        self.log_bytes += size_bytes


@dataclass
class Restored:
    """A replica and where in the log it stands."""

    replica: Replica
    position: Position
    confirmed_at: float
    """By `Clock.boottime`: when `position` was last known to be in the log."""
    metadata: Metadata
    """Of the newest object that went into the replica."""
    since_snapshot: SinceSnapshot = field(default_factory=lambda: SinceSnapshot(0, 0))


OnBytes = Callable[[int, int], None]
"""Told how many bytes of the log have been read so far, and how many are to be read in all."""


class _Count:
    """Counts for an `OnBytes`."""

    def __init__(self, on_bytes: OnBytes = lambda done, total: None) -> None:
        self._on_bytes = on_bytes
        self._done = self._total = 0

    def begin(self, total: int) -> None:
        self._done, self._total = 0, total

    def add(self, size_bytes: int) -> None:
        self._done += size_bytes
        self._on_bytes(self._done, self._total)


async def carried_through(work: Coroutine[Any, Any, T], *, undo: Callable[[T], None] = lambda result: None) -> T:
    """What `work` returns. Whoever is cancelled waits for its end: no thread makes files where they are being removed.
    Then nobody gets the result, which is given to `undo`."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            undo(task.result())
        raise


def apply_entry(replica: Replica, entry: Entry) -> None:
    """Apply an epoch that follows the replica's. Raises CorruptLog when its content is no epoch, StateMismatch,
    FormatTooNew."""
    check_sqlite_version(entry.metadata.min_sqlite_version)
    try:
        wal = parse(entry.raw, page_size=replica.page_size)
    except WalError as error:
        name = names.wal(entry.metadata.epoch)
        raise CorruptLog(name, f"{error.expected} (in its content, at byte {error.offset})") from error
    replica.apply(wal, expected_checksum=int(entry.metadata.state_checksum, 16))


async def restore(store: Store, identity: Identity, directory: Path, *, clock: Clock, afresh: bool = False) -> Restored:
    """A replica at the head of the log, in `directory`. What a former node has left there is used if it is sound,
    and deleted if not; `afresh` does not look at it.

    Raises NotInitialized, CorruptLog, FormatTooNew, StoreUnavailable.
    """
    former = None if afresh else await _former(store, identity, directory, clock=clock)
    if former is not None:
        return former
    asked_at = clock.boottime()
    found = await survey(store)
    metadata, replica, info = await _newest_snapshot(store, identity, found, directory, clock=clock)
    try:
        position = await position_of_snapshot(store, metadata)
        restored = Restored(replica, position, asked_at, metadata, SinceSnapshot(metadata.epoch, info.size_bytes))
        await _catch_up(store, identity, restored, found.epochs)
        return restored
    except BaseException:
        replica.close()
        raise


async def restore_at(
    store: Store,
    identity: Identity,
    directory: Path,
    found: Survey,
    epoch: int,
    *,
    clock: Clock,
    on_bytes: OnBytes = lambda done, total: None,
) -> Restored:
    """A replica at `epoch`, one of the log of which `found` shows what is `retained`, in `directory`.

    All hashes and the state checksum are checked. A damaged snapshot is passed over for an older one. `on_bytes` is
    told how many bytes have been read, and of how many. Retention leaves what is needed alone meanwhile, unless the
    store lets this process only read. Raises NotRetained, CorruptLog, FormatTooNew, StoreUnavailable, OSError.
    """
    made: list[Restored] = []
    try:
        async with _held(store, epoch, clock=clock):
            made.append(await _restore_at(store, identity, directory, found, epoch, clock=clock, on_bytes=on_bytes))
    except BaseException:
        for restored in made:  # cancelled while the pin was being removed
            restored.replica.close()
        raise
    return made[0]


@contextlib.asynccontextmanager
async def _held(store: Store, epoch: int, *, clock: Clock) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(pinned(store, epoch, purpose="a restore", clock=clock))
        except StoreUnavailable as error:
            if error.transient:
                raise
            logger.info("restoring without a pin: %s", error)
        yield


async def _restore_at(
    store: Store,
    identity: Identity,
    directory: Path,
    found: Survey,
    epoch: int,
    *,
    clock: Clock,
    on_bytes: OnBytes,
) -> Restored:
    before = Survey(
        [info for info in found.snapshots if epoch_of(info) <= epoch],
        [info for info in found.epochs if epoch_of(info) <= epoch],
    )
    count = _Count(on_bytes)
    metadata, replica, _ = await _newest_of(store, identity, before, directory, clock=clock, count=count)
    try:
        position = await position_of_snapshot(store, metadata)
        restored = Restored(replica, position, clock.boottime(), metadata, SinceSnapshot(metadata.epoch, 0))
        await _catch_up(store, identity, restored, before.epochs, count=count)
        if restored.position.epoch != epoch:
            raise CorruptLog(names.wal(epoch), "an object, found none: the log has a hole")
        return restored
    except BaseException:
        replica.close()
        raise


async def _newest_snapshot(
    store: Store, identity: Identity, found: Survey, directory: Path, *, clock: Clock
) -> tuple[Metadata, Replica, ObjectInfo]:
    """The newest sound snapshot of those the hint leads to, else of all."""
    try:
        return await _newest_of(store, identity, found, directory, clock=clock)
    except (CorruptLog, NotInitialized):
        everything = await survey_all(store)
        tried = {info.key for info in found.snapshots}
        if tried.issuperset(info.key for info in everything.snapshots):
            raise
        found.epochs[:] = everything.epochs
        older = Survey([info for info in everything.snapshots if info.key not in tried], everything.epochs)
        return await _newest_of(store, identity, older, directory, clock=clock)


async def _newest_of(
    store: Store, identity: Identity, found: Survey, directory: Path, *, clock: Clock, count: _Count | None = None
) -> tuple[Metadata, Replica, ObjectInfo]:
    """The newest sound snapshot; a damaged one is passed over, and says so."""
    first_error: CorruptLog | None = None
    count = count or _Count()
    for info in found.snapshots:
        count.begin(info.size_bytes + sum(each.size_bytes for each in found.epochs if epoch_of(each) > epoch_of(info)))
        try:
            metadata, replica = await load_snapshot(store, identity, info, directory, clock=clock, on_bytes=count.add)
            return metadata, replica, info
        except CorruptLog as error:
            logger.error("passing over a damaged snapshot: %s", error)
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    if found.epochs:
        raise CorruptLog(names.snapshot(0), "a snapshot from which the log can be followed, found none")
    raise unfinished(store, identity)


async def load_snapshot(
    store: Store,
    identity: Identity,
    info: ObjectInfo,
    directory: Path,
    *,
    clock: Clock,
    on_bytes: Callable[[int], None] = lambda size_bytes: None,
) -> tuple[Metadata, Replica]:
    """The replica that a snapshot makes, in a directory of its own below `directory`; `on_bytes` is told how much more
    has been read. Raises CorruptLog when it is not sound, FormatTooNew, StoreUnavailable, OSError."""
    path = directory / f"replica-{clock.token(8).hex()}" / "replica.db"
    await asyncio.to_thread(path.parent.mkdir, parents=True)
    try:
        with path.open("wb") as file:
            target = Target(file, StateChecksum(identity.settings.page_size))
            metadata = await snapshots.download(store, info, target.write, on_bytes=on_bytes)
        if metadata.cluster_id != identity.cluster_id:
            raise CorruptLog(info.key, f'cluster "{identity.cluster_id}", found "{metadata.cluster_id}"')
        found = f"{target.checksum.value:016x}"
        if target.rest or found != metadata.state_checksum:
            raise CorruptLog(info.key, f"a database with state checksum {metadata.state_checksum}, found {found}")
        check_sqlite_version(metadata.min_sqlite_version)
        opening = asyncio.to_thread(Replica.open, path, clock=clock, checksum=target.checksum)
        return metadata, await carried_through(opening, undo=Replica.close)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)
        raise


class Target:
    """A database that is written to a file, if there is one, and hashed in one pass."""

    def __init__(self, file: BinaryIO | None, checksum: StateChecksum) -> None:
        self._file, self.checksum = file, checksum
        self.rest = b""
        """The beginning of the next page."""

    def write(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if self._file is not None:
                self._file.write(piece)
            whole = self.rest + piece
            end = len(whole) - len(whole) % self.checksum.page_size
            self.checksum.feed(memoryview(whole)[:end])
            self.rest = whole[end:]


async def position_of_snapshot(store: Store, metadata: Metadata) -> Position:
    """Where in the log the snapshot with this metadata stands. Raises StoreUnavailable."""
    if metadata.epoch > 0:
        return Position(metadata.epoch, metadata.term, metadata.previous_sha256)
    body = await store.get(names.snapshot(0)) or b""
    return Position(0, metadata.term, hashlib.sha256(body).hexdigest())


async def _catch_up(
    store: Store, identity: Identity, restored: Restored, listed: list[ObjectInfo], *, count: _Count | None = None
) -> None:
    """Fetch the listed epochs after the replica's concurrently and apply them in order."""
    first = restored.position.epoch + 1
    last = max((epoch_of(info) for info in listed), default=0)
    reads = (read_epoch(store, epoch) for epoch in range(first, last + 1))
    async for entry in in_order(reads, window=_WINDOW):
        check_follows(entry, restored.position, cluster_id=identity.cluster_id)
        await asyncio.to_thread(_apply_restoring, restored.replica, entry)
        restored.position = Position(entry.metadata.epoch, entry.metadata.term, entry.sha256)
        restored.metadata = entry.metadata
        restored.since_snapshot.add(entry.size_bytes)
        if count is not None:
            count.add(entry.size_bytes)


def _apply_restoring(replica: Replica, entry: Entry) -> None:
    try:
        apply_entry(replica, entry)
    except StateMismatch as error:
        name = names.wal(entry.metadata.epoch)
        raise CorruptLog(name, f"an epoch that leads to state checksum {entry.metadata.state_checksum}") from error


async def read_epoch(store: Store, epoch: int) -> Entry:
    """One epoch, its content checked against its own hashes. Raises CorruptLog, FormatTooNew, StoreUnavailable."""
    name = names.wal(epoch)
    body = await store.get(name)
    if body is None:
        raise CorruptLog(name, "an object, found none: the log has a hole")
    return codec.decode(body, name=name)


async def _former(store: Store, identity: Identity, directory: Path, *, clock: Clock) -> Restored | None:
    """The copy that a former node has left, caught up; None when there is none that can be trusted."""
    result = None
    for path in sorted(directory.glob("replica-*/replica.db")):
        if result is None and not path.with_name(DROPPED).exists():
            try:
                result = await _reuse(store, identity, path, clock=clock)
            except (CorruptLog, sqlite3.Error, OSError, LookupError, TypeError, ValueError) as error:
                logger.warning("dropping the former local copy %s: %s", path, error)
            if result is not None:
                continue
        await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)
    return result


async def _reuse(store: Store, identity: Identity, path: Path, *, clock: Clock) -> Restored | None:
    replica = await carried_through(asyncio.to_thread(Replica.open, path, clock=clock), undo=Replica.close)
    try:
        system = replica.system()
        epoch = int(system["epoch"])
        name = names.wal(epoch) if epoch else names.snapshot(0)
        asked_at = clock.boottime()
        body = await store.get(name)
        if body is None or system["cluster_id"] != identity.cluster_id:
            raise CorruptLog(name, "the object of the local copy's epoch")
        entry = codec.decode(body, name=name)
        if replica.checksum != int(entry.metadata.state_checksum, 16):
            raise CorruptLog(str(path), f"state checksum {entry.metadata.state_checksum}: the local copy is damaged")
        found = await survey(store)
        newest = epoch_of(found.snapshots[0]) if found.snapshots else 0
        if found.head - epoch > _MAX_CATCH_UP and newest > epoch:
            raise CorruptLog(str(path), f"an epoch near the head {found.head}, found {epoch}")
        listed = await store.list(names.LOG_PREFIX, start_after=names.wal(epoch))
        epochs = [info for info in listed if info.key.endswith(".wal")]
        if epochs and epoch_of(epochs[0]) != epoch + 1:
            raise CorruptLog(names.wal(epoch + 1), "the epoch after the local copy's")
        size = found.snapshots[0].size_bytes if found.snapshots else 0
        since = SinceSnapshot(newest, size, log_epochs=max(0, epoch - newest))
        position = Position(epoch, entry.metadata.term, entry.sha256)
        restored = Restored(replica, position, asked_at, entry.metadata, since)
        await _catch_up(store, identity, restored, epochs)
        return restored
    except BaseException:
        replica.close()
        raise
