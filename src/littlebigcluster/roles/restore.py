"""From nothing, or from what a former node has left on the disk, to a replica at the head of the log."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from littlebigcluster.clock import Clock
from littlebigcluster.database import Replica, StateChecksum, check_sqlite_version
from littlebigcluster.epochs import (
    Identity,
    Metadata,
    Position,
    Survey,
    codec,
    epoch_of,
    lost_is_told,
    names,
    snapshots,
    survey,
    survey_after,
    survey_all,
    unfinished,
)
from littlebigcluster.epochs.pins import pinned
from littlebigcluster.errors import CorruptLog, NotInitialized, StoreUnavailable
from littlebigcluster.roles.catch_up import Count, OnBytes, Restored, SinceSnapshot, Way, catch_up
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.temporary import remove_tree
from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

DROPPED = "dropped"
"""A file of this name beside a replica says that nobody may use it any more."""

_MAX_CATCH_UP = 1000
"""A former copy that lacks more objects than this is not worth keeping; a snapshot is nearer."""


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
    restored = (await _newest_snapshot(store, identity, found, directory, clock=clock)).restored(asked_at)
    try:
        way = Way(found)
        await catch_up(store, restored, way, way.head, cluster_id=identity.cluster_id)
        return restored
    except BaseException:
        restored.replica.close()
        await remove_tree(restored.replica.path.parent)
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
        async with held(store, epoch, clock=clock), lost_is_told(store, epoch):
            made.append(await _restore_at(store, identity, directory, found, epoch, clock=clock, on_bytes=on_bytes))
    except BaseException:
        for restored in made:  # cancelled while the pin was being removed
            restored.replica.close()
        raise
    return made[0]


@contextlib.asynccontextmanager
async def held(store: Store, epoch: int, *, clock: Clock) -> AsyncIterator[None]:
    """Retention leaves alone what is needed to restore `epoch` and later ones meanwhile, unless the store lets this
    process only read. Raises NotRetained, StoreUnavailable."""
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
        found.merged,
    )
    count = Count(on_bytes)
    asked_at = clock.boottime()
    loaded = await _newest_of(store, identity, before, directory, clock=clock, count=count)
    restored = loaded.restored(asked_at)
    try:
        await catch_up(store, restored, Way(before), epoch, cluster_id=identity.cluster_id, count=count)
        if restored.position.epoch != epoch:
            raise CorruptLog(names.wal(epoch), "an object, found none: the log has a hole")
        return restored
    except BaseException:
        restored.replica.close()
        raise


async def _newest_snapshot(store: Store, identity: Identity, found: Survey, directory: Path, *, clock: Clock) -> Loaded:
    """The newest sound snapshot of those the hint leads to, else of all."""
    try:
        return await _newest_of(store, identity, found, directory, clock=clock)
    except (CorruptLog, NotInitialized):
        everything = await survey_all(store)
        tried = {info.key for info in found.snapshots}
        if tried.issuperset(info.key for info in everything.snapshots):
            raise
        found.epochs[:], found.merged[:] = everything.epochs, everything.merged
        older = replace(everything, snapshots=[info for info in everything.snapshots if info.key not in tried])
        return await _newest_of(store, identity, older, directory, clock=clock)


async def _newest_of(
    store: Store, identity: Identity, found: Survey, directory: Path, *, clock: Clock, count: Count | None = None
) -> Loaded:
    """The newest sound snapshot; a damaged one is passed over, and says so."""
    first_error: CorruptLog | None = None
    way = Way(found)
    count = count or Count()
    for info in found.snapshots:
        count.begin(info.size_bytes + way.size_bytes(way.steps(epoch_of(info) + 1, way.head)))
        try:
            return await load_snapshot(store, identity, info, directory, clock=clock, on_bytes=count.add)
        except CorruptLog as error:
            logger.error("passing over a damaged snapshot: %s", error)
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    if found.epochs:
        raise CorruptLog(names.snapshot(0), "a snapshot from which the log can be followed, found none")
    raise unfinished(store, identity)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A snapshot that has become a replica."""

    replica: Replica
    position: Position
    metadata: Metadata
    info: ObjectInfo

    def restored(self, confirmed_at: float) -> Restored:
        """The same, as that to which epochs are added."""
        since = SinceSnapshot(self.metadata.epoch, self.info.size_bytes)
        return Restored(self.replica, self.position, confirmed_at, self.metadata, since)


async def load_snapshot(
    store: Store,
    identity: Identity,
    info: ObjectInfo,
    directory: Path,
    *,
    clock: Clock,
    on_bytes: Callable[[int], None] = lambda size_bytes: None,
) -> Loaded:
    """The replica that a snapshot makes, in a directory of its own below `directory`; `on_bytes` is told how much more
    has been read. Raises CorruptLog when it is not sound, FormatTooNew, StoreUnavailable, OSError."""
    path = directory / f"replica-{clock.token(8).hex()}" / "replica.db"
    try:
        await in_thread(partial(path.parent.mkdir, parents=True))
        with path.open("wb") as file:
            target = Target(file, StateChecksum(identity.settings.page_size))
            metadata, position = await snapshots.download(store, info, target.write, on_bytes=on_bytes)
        if metadata.cluster_id != identity.cluster_id:
            raise CorruptLog(info.key, f'cluster "{identity.cluster_id}", found "{metadata.cluster_id}"')
        found = f"{target.checksum.value:016x}"
        if target.rest or found != metadata.state_checksum:
            raise CorruptLog(info.key, f"a database with state checksum {metadata.state_checksum}, found {found}")
        check_sqlite_version(metadata.min_sqlite_version)
        opening = partial(Replica.open, path, clock=clock, checksum=target.checksum)
        return Loaded(await in_thread(opening, undo=Replica.close), position, metadata, info)
    except BaseException:
        await remove_tree(path.parent)
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
            view = memoryview(piece)
            if self.rest:
                missing = self.checksum.page_size - len(self.rest)
                self.rest, view = self.rest + view[:missing], view[missing:]
                if len(self.rest) < self.checksum.page_size:
                    continue
                self.checksum.feed(self.rest)
            end = len(view) - len(view) % self.checksum.page_size
            self.checksum.feed(view[:end])
            self.rest = bytes(view[end:])


async def _former(store: Store, identity: Identity, directory: Path, *, clock: Clock) -> Restored | None:
    """The copy that a former node has left, caught up; None when there is none that can be trusted."""
    result = None
    try:
        for path in sorted(directory.glob("replica-*/replica.db")):
            if result is None and not path.with_name(DROPPED).exists():
                try:
                    result = await _reuse(store, identity, path, clock=clock)
                except (CorruptLog, sqlite3.Error, OSError, LookupError, TypeError, ValueError) as error:
                    logger.warning("dropping the former local copy %s: %s", path, error)
                if result is not None:
                    continue
            await remove_tree(path.parent)
        return result
    except BaseException:
        if result is not None:
            result.replica.close()
        raise


async def _reuse(store: Store, identity: Identity, path: Path, *, clock: Clock) -> Restored | None:
    replica = await in_thread(partial(Replica.open, path, clock=clock), undo=Replica.close)
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
        later = await survey_after(store, epoch)
        way = Way(later)
        if newest > epoch and len(way.steps(epoch + 1, way.head)) > _MAX_CATCH_UP:
            raise CorruptLog(str(path), f"an epoch near the head {found.head}, found {epoch}")
        if later.epochs and epoch_of(later.epochs[0]) != epoch + 1:
            raise CorruptLog(names.wal(epoch + 1), "the epoch after the local copy's")
        size = found.snapshots[0].size_bytes if found.snapshots else 0
        before = sum(info.size_bytes for info in found.epochs if newest < epoch_of(info) <= epoch)
        since = SinceSnapshot(newest, size, max(0, epoch - newest), before)
        position = Position(epoch, entry.metadata.term, entry.sha256)
        restored = Restored(replica, position, asked_at, entry.metadata, since)
        await catch_up(store, restored, way, way.head, cluster_id=identity.cluster_id)
        return restored
    except BaseException:
        replica.close()
        raise
