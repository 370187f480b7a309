"""Restoring a copy that cannot be followed on, also where the log is damaged and a repair is still at it.

A repair makes an epoch that leads elsewhere, and then the snapshot that is the only way to it. Who meets the one before
the other finds nothing to restore from, and waits: as long as the pin of the repair is there and is being renewed. Each
attempt may be a download of the whole database, so there is one for each snapshot that comes, and a last one when the
repair has ended.
"""

from __future__ import annotations

import asyncio
import logging

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import Survey, names, survey_after
from littlebigcluster.epochs.pins import REPAIR, Pin
from littlebigcluster.errors import CorruptLog
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.store import ObjectInfo, Store

logger = logging.getLogger(__name__)


class Afresh:
    """Invariant: between two attempts there was a new snapshot; only the last one needs none."""

    def __init__(self, store: Store, local: LocalCopy, *, look_interval: float, clock: Clock) -> None:
        """`look_interval`: seconds between two looks for a snapshot, of two LIST and a GET."""
        self._store, self._local, self._look_interval, self._clock = store, local, look_interval, clock
        self._renewed: dict[ObjectInfo, float] = {}
        """Pins of repairs as they were listed, and when they were seen so first, by the monotonic clock."""

    async def restore(self) -> None:
        """Replace the local copy; reads go on meanwhile. Raises CorruptLog when no repair is at it, and what `restore`
        raises."""
        # Looked for before each attempt: a repair that has ended by then has left its snapshot.
        while await self._repair_is_under_way():
            before = await survey_after(self._store, self._local.log.position.epoch)
            try:
                await self._replace()
            except CorruptLog as error:
                epoch = self._local.epoch.value
                logger.warning("waiting for the snapshot of a repair; reads go on, at epoch %d: %s", epoch, error)
            else:
                return
            await self._until_worth_it(before)
        await self._replace()

    async def _replace(self) -> None:
        await self._local.replace()
        logger.info("restored from the store, at epoch %d", self._local.epoch.value)

    async def _until_worth_it(self, before: Survey) -> None:
        """Until there is a snapshot more, or no repair any more."""
        known, after = set(before.snapshots), max(before.head - 1, self._local.log.position.epoch)
        while known.issuperset((await survey_after(self._store, after)).snapshots):
            await asyncio.sleep(self._look_interval)
            if not await self._repair_is_under_way():
                return

    async def _repair_is_under_way(self) -> bool:
        """Somebody holds the pin of a repair, and has renewed it while this node has looked."""
        now, renewed = self._clock.monotonic(), {}
        alive = False
        for info in await self._store.list(names.PINS):
            pin = Pin.decode(await self._store.get(info.key) or b"")
            if pin.purpose == REPAIR:
                renewed[info] = self._renewed.get(info, now)
                alive |= now - renewed[info] < pin.ttl_seconds
        self._renewed = renewed
        return alive
