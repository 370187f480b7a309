"""Deletes what is older than `retention`, in the background, on the leader.

A pass reads `.last_retained` and writes it again, which corrects a late PUT of a deposed leader and dates the pass by
the store's clock; then it lists everything, once. What lies below `.last_retained` is deleted, if the marker stands
since long before (`STANDING_SECONDS`); then the marker is raised, for the next pass to act on. No other state than the
bucket's is needed: a pass may be cut short anywhere, the next one goes on from what it finds.

Nothing rests on this node's leading still. What is below the marker is of no use to any later leader either; names
below it are never used again; and pins are made so that a pass cannot overlook them (`epochs/pins.py`).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from littlebigcluster.clock import Clock
from littlebigcluster.database import StateChecksum
from littlebigcluster.epochs import names, retention, snapshots
from littlebigcluster.epochs.pins import read_pins
from littlebigcluster.epochs.repairs import read_repairs
from littlebigcluster.errors import CorruptLog, LbcError, StoreUnavailable
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.roles.restore import Target
from littlebigcluster.settings import MAX_FENCE_VALIDITY_SECONDS, MAX_RETENTION_SECONDS
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

STANDING_SECONDS = MAX_FENCE_VALIDITY_SECONDS + 200.0
"""So long `.last_retained` stands before anything below it is deleted. It is longer than any `fence_validity`, so
nobody can have known a place in the log, and ask for the next epoch, without having seen the marker pass it
(`epochs/log.py`). By this node's clock that goes on while the machine sleeps: no date has a part in safety."""

FIRST_PASS_SECONDS = 600.0
IDLE_SECONDS = 86400.0
"""Between two passes while the log does not grow: for what ages, and for pins that expire."""

DELETE_BATCH = 1000
_RETRY_SECONDS = 60.0


def pass_interval(retention_seconds: float) -> float:
    """Seconds between two passes while the log grows: a twentieth of the retention."""
    return min(IDLE_SECONDS, max(STANDING_SECONDS + 100.0, retention_seconds / 20))


class Retention:
    """Runs on the leader; each leadership has its own."""

    def __init__(
        self,
        store: Store,
        local: LocalCopy,
        retention_seconds: float,
        *,
        make_snapshot: Callable[[], Awaitable[object]],
        clock: Clock,
    ) -> None:
        self._store, self._local, self._clock = store, local, clock
        self._retention_seconds, self._make_snapshot = retention_seconds, make_snapshot
        self._marker, self._standing_since = 0, clock.boottime()
        self._sound: set[int] = set()
        """Snapshots that this leader has read and found good."""

    async def run(self) -> None:
        """Make a pass now and then. One that fails is tried again; until it succeeds more is kept than need be."""
        if self._retention_seconds >= MAX_RETENTION_SECONDS:
            return
        interval, now = pass_interval(self._retention_seconds), self._clock.boottime
        await asyncio.sleep(FIRST_PASS_SECONDS)
        seen, passed_at = -1, now()
        while True:
            head = self._local.epoch.value
            pause = interval
            if head != seen or now() - passed_at >= IDLE_SECONDS:
                try:
                    await self.make_pass()
                    seen, passed_at = head, now()
                except (LbcError, OSError, sqlite3.Error) as error:
                    logger.warning("cannot delete what is older than the retention, will try again: %s", error)
                    pause = _RETRY_SECONDS
            await asyncio.sleep(pause)

    async def make_pass(self) -> None:
        """Delete what may go, and raise `.last_retained` for the next pass.

        Raises StoreUnavailable, FormatTooNew; and what `Snapshotter.make` raises, of a snapshot made for retention.
        """
        store, head = self._store, self._local.epoch.value
        marker = await self._assert_marker()
        listing = await store.list(names.DIRECTORY)
        now = next((info.last_modified for info in listing if info.key == names.LAST_RETAINED), None)
        if now is None:
            raise StoreUnavailable(f"{names.LAST_RETAINED} was written to {store.url}, and is not listed there")
        found = await in_thread(partial(retention.holdings, listing, now=now, marker=marker))
        repairs = await read_repairs(store, listing)
        gap = retention.first_gap(found, head, repairs)
        if gap is not None:
            logger.error("nothing is deleted: %s is missing in the log of %s", names.wal(gap), store.url)
            return
        pins = await read_pins(store, listing, now=now)
        kept = retention.candidates(found, self._retention_seconds, pins.epochs)
        if self._clock.boottime() - self._standing_since >= STANDING_SECONDS:
            await self._delete_old(found, kept, listing)
            await self._raise_marker(kept, listing)
        thinned = retention.thinned(found, max(kept, default=0), pins.epochs, retention.behind_damage(listing))
        await self._delete(thinned)
        await self._delete(pins.expired)
        if retention.wants_snapshot(found, self._retention_seconds):
            await self._make_snapshot()

    async def _assert_marker(self) -> int:
        """Read the marker and write it again; what it says from then on. It never goes down."""
        marker = names.parse_marker(await self._store.get(names.LAST_RETAINED)) or 0
        if marker < self._marker:
            logger.warning("%s was lowered to %d, and is set to %d again", names.LAST_RETAINED, marker, self._marker)
        await self._store.put(names.LAST_RETAINED, names.marker(max(marker, self._marker)))
        if marker != self._marker:
            self._marker, self._standing_since = max(marker, self._marker), self._clock.boottime()
        return self._marker

    async def _delete_old(self, found: retention.Holdings, kept: list[int], listing: list[ObjectInfo]) -> None:
        passed = [epoch for epoch in kept if epoch <= self._marker]
        if not passed or not retention.below(found, passed[0]):
            return
        keep_from = await self._newest_sound(passed, listing)
        if keep_from is not None:
            old = retention.below(found, keep_from) + retention.told_below(listing, keep_from)
            await self._delete(old)
            logger.info("deleted %d objects older than the retention: epochs below %d", len(old), keep_from)

    async def _raise_marker(self, kept: list[int], listing: list[ObjectInfo]) -> None:
        newer = (epoch for epoch in kept if epoch > self._marker)
        retain = await self._newest_sound(newer, listing)
        if retain is not None:
            await self._store.put(names.LAST_RETAINED, names.marker(retain))
            self._marker, self._standing_since = retain, self._clock.boottime()
            logger.info("retention has passed epoch %d; what is older will be deleted", retain)

    async def _delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), DELETE_BATCH):
            await self._store.delete(keys[start : start + DELETE_BATCH])

    async def _newest_sound(self, epochs: Iterable[int], listing: list[ObjectInfo]) -> int | None:
        """The first of these snapshots that is whole. Read before its predecessors go: there is no other then."""
        for epoch in epochs:
            if epoch not in self._sound:
                name = names.snapshot(epoch)
                info = next(info for info in listing if info.key == name)
                try:
                    await self._read(info)
                except CorruptLog as error:
                    logger.error("a snapshot that retention needs is damaged, an older one is kept for it: %s", error)
                    continue
                self._sound.add(epoch)
            return epoch
        return None

    async def _read(self, info: ObjectInfo) -> None:
        """Raises CorruptLog unless the snapshot is whole, and leads to the state that it claims to be."""
        target = Target(None, StateChecksum(self._local.metadata.page_size))
        metadata, _ = await snapshots.download(self._store, info, target.write)
        found = f"{target.checksum.value:016x}"
        if target.rest or found != metadata.state_checksum or metadata.cluster_id != self._local.cluster_id:
            raise CorruptLog(info.key, f"a database with state checksum {metadata.state_checksum}, found {found}")
