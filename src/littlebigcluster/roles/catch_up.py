"""From one epoch of the log to a later one, by few objects where epochs are merged."""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from littlebigcluster.database import Replica, StateMismatch, Wal, WalError, check_sqlite_version, parse
from littlebigcluster.epochs import (
    Entry,
    Metadata,
    Position,
    Span,
    Survey,
    check_follows,
    check_link,
    codec,
    end_of,
    epoch_of,
    in_order,
    names,
    read_merged,
    span_of,
    steps,
)
from littlebigcluster.errors import CorruptLog, FormatTooNew, LbcError, StoreUnavailable
from littlebigcluster.store import Store
from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

_WINDOW = 16


@dataclass
class SinceSnapshot:
    """How much log there is after the newest snapshot: what a join has to fetch besides it."""

    epoch: int
    size_bytes: int
    log_epochs: int = 0
    log_bytes: int = 0
    first_at: datetime | None = None
    """When the first epoch after the snapshot that is known here was written, by its leader's clock."""

    def add(self, size_bytes: int, written_at: datetime, epochs: int = 1) -> None:
        if self.first_at is None or not self.log_epochs:
            self.first_at = written_at
        self.log_epochs += epochs
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


class Count:
    """Counts for an `OnBytes`."""

    def __init__(self, on_bytes: OnBytes = lambda done, total: None) -> None:
        self._on_bytes = on_bytes
        self._done = self._total = 0

    def begin(self, total: int) -> None:
        """Count anew."""
        self._done, self._total = 0, total

    def expect(self, size_bytes: int) -> None:
        """So much more is to be read."""
        self._total += size_bytes

    def add(self, size_bytes: int) -> None:
        """So much more has been read."""
        self._done += size_bytes
        self._on_bytes(self._done, self._total)


class Way:
    """How to get on in the log that `found` shows. What turns out to be of no use is left aside from then on."""

    def __init__(self, found: Survey) -> None:
        self._epochs = found.epochs
        """They may be a million, and this may be an event loop: none is looked at that is not on the way."""
        self._merged = {span_of(info): info.size_bytes for info in found.merged}
        self.head = epoch_of(found.epochs[-1]) if found.epochs else 0

    def steps(self, first: int, last: int) -> list[Span]:
        """What to read, to get over these epochs."""
        return steps(self._merged, first, last)

    def avoid(self, span: Span) -> None:
        """Do not go by this one again."""
        del self._merged[span]

    def size_bytes(self, way: Iterable[Span]) -> int:
        """Of these objects."""
        return sum(self._merged[step] if step in self._merged else self._size_bytes(step.name) for step in way)

    def _size_bytes(self, name: str) -> int:
        at = bisect_left(self._epochs, name, key=lambda info: info.key)
        found = self._epochs[at : at + 1]
        return found[0].size_bytes if found and found[0].key == name else 0


async def catch_up(
    store: Store, restored: Restored, way: Way, last: int, *, cluster_id: str, count: Count | None = None
) -> None:
    """Fetch what leads to the epoch `last`, several objects at once, and apply it in order. Merged epochs that do not
    lead there, or are not to be had, are told of, and passed over: the epochs themselves are there too.

    Raises CorruptLog, FormatTooNew, StoreUnavailable.
    """
    count = count or Count()
    plan = way.steps(restored.position.epoch + 1, last)
    reads = (_read(store, step, cluster_id) for step in plan)
    async with contextlib.aclosing(in_order(reads, window=_WINDOW)) as entries:
        for step in plan:
            entry = await anext(entries)
            size_bytes = way.size_bytes([step])
            try:
                if isinstance(entry, Exception):
                    raise entry
                size_bytes = entry.size_bytes
                await _take(restored, entry, step, cluster_id)
            except (CorruptLog, FormatTooNew, StoreUnavailable) as error:
                if step.first == step.last:
                    raise
                logger.warning("passing over merged epochs: %s", error)
                way.avoid(step)
                count.expect(way.size_bytes(way.steps(step.first, step.last)))
                await catch_up(store, restored, way, step.last, cluster_id=cluster_id, count=count)
            count.add(size_bytes)


async def _read(store: Store, step: Span, cluster_id: str) -> Entry | LbcError:
    """What is wrong with the object is told when its turn comes."""
    try:
        if step.first < step.last:
            return await read_merged(store, step, cluster_id=cluster_id)
        return await read_epoch(store, step.first)
    except (CorruptLog, FormatTooNew, StoreUnavailable) as error:
        return error


async def take_next(store: Store, restored: Restored, *, cluster_id: str) -> Wal:
    """Fetch the next epoch, apply it, and return it. Raises CorruptLog, FormatTooNew, StoreUnavailable."""
    epoch = restored.position.epoch + 1
    return await _take(restored, await read_epoch(store, epoch), Span(epoch, epoch), cluster_id)


async def _take(restored: Restored, entry: Entry, step: Span, cluster_id: str) -> Wal:
    if step.first == step.last:
        check_follows(entry, restored.position, cluster_id=cluster_id)
    else:
        check_link(entry.metadata, restored.position, name=step.name)
    wal = await in_thread(_apply_restoring, restored.replica, entry, step)
    restored.position, restored.metadata = end_of(entry), entry.metadata
    restored.since_snapshot.add(entry.size_bytes, entry.metadata.created_at, step.last - step.first + 1)
    return wal


def _apply_restoring(replica: Replica, entry: Entry, step: Span) -> Wal:
    try:
        return apply_entry(replica, entry)
    except StateMismatch as error:
        raise CorruptLog(step.name, f"an epoch that leads to state checksum {entry.metadata.state_checksum}") from error


def apply_entry(replica: Replica, entry: Entry) -> Wal:
    """Apply what follows the replica's epoch, and return it. Raises CorruptLog when its content is no epoch,
    StateMismatch, FormatTooNew."""
    check_sqlite_version(entry.metadata.min_sqlite_version)
    try:
        wal = parse(entry.raw, page_size=replica.page_size)
    except WalError as error:
        name = entry.metadata.name
        raise CorruptLog(name, f"{error.expected} (in its content, at byte {error.offset})") from error
    replica.apply(wal, expected_checksum=int(entry.metadata.state_checksum, 16))
    return wal


async def read_epoch(store: Store, epoch: int) -> Entry:
    """One epoch, its content checked against its own hashes. Raises CorruptLog, FormatTooNew, StoreUnavailable."""
    name = names.wal(epoch)
    body = await store.get(name)
    if body is None:
        raise CorruptLog(name, "an object, found none: the log has a hole")
    return codec.decode(body, name=name)
