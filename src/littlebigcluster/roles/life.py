"""The leader's beacons: small objects that show that it is alive while none of its epochs does."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import Beacon, names
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import Store, allowed_seconds
from littlebigcluster.store.retry import MAX_BACKOFF_SECONDS

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""At the latest after so long the store is asked again when it has failed."""

_AT_ONCE = 3
"""So many beacons may be on their way: one that hangs, or waits for its next try, holds up no later one."""


class SignsOfLife:
    """Shows a beacon whenever no epoch has become durable for `interval` seconds: the leader may be idle, wait for the
    pacing, or run a transaction that takes long.

    But not while one epoch is on its way for too long though the store takes beacons: then small objects get through
    and epochs do not, and another node's may. What is counted is the beacons that the store has taken meanwhile, so
    that a leader that comes out of an outage has its time.
    """

    def __init__(
        self,
        store: Store,
        *,
        interval: float,
        clock: Clock,
        beacon: Callable[[int], Beacon],
        on_shown: Callable[[], None],
    ) -> None:
        """`beacon` makes the beacon with this count; `on_shown` is called when the store has taken one."""
        self._store, self._interval, self._clock = store, interval, clock
        self._beacon, self._on_shown = beacon, on_shown
        self._due_at = float("-inf")
        self._left = math.inf
        """So many beacons may still be shown until the epoch that is on its way is durable."""

    def epoch_sent(self, size_bytes: int) -> None:
        """An epoch of this size is on its way."""
        # After an outage its next try is at most a pause away.
        allowed = allowed_seconds(max(3 * self._interval, MAX_BACKOFF_SECONDS), size_bytes)
        self._left = 1 + int(allowed / self._interval)

    def epoch_durable(self) -> None:
        """It has arrived, which is a sign of life itself."""
        self._left = math.inf
        self._due_at = self._clock.monotonic() + self._interval

    async def run(self) -> None:
        """Show them until it is cancelled."""
        now, count = self._clock.monotonic, 0
        under_way: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(max(0.0, self._due_at - now()))
                if now() < self._due_at:
                    continue
                if self._left <= 0:
                    self._due_at = now() + min(self._interval, RETRY_SECONDS)
                    continue
                count += 1
                under_way = [task for task in under_way if not task.done()]
                if len(under_way) == _AT_ONCE:
                    under_way.pop(0).cancel()
                under_way.append(group.create_task(self._show(count)))
                await asyncio.wait(under_way[-1:], timeout=self._interval)

    async def _show(self, count: int) -> None:
        try:
            await self._store.put(names.BEACON, self._beacon(count).encode())
        except StoreUnavailable as error:
            logger.warning("cannot show a sign of life: %s", error)
            self._due_at = self._clock.monotonic() + min(self._interval, RETRY_SECONDS)
        else:
            self._left -= 1
            self._due_at = self._clock.monotonic() + self._interval
            self._on_shown()
