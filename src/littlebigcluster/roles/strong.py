"""Strong reads: proof that the local copy holds every write acknowledged before the read began."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class SharedProof:
    """Many callers share one proof, but never one that began before they asked.

    `prove` returns when some moment after its call has been shown to be covered by the local copy.
    """

    def __init__(self, prove: Callable[[], Awaitable[None]]) -> None:
        self._prove = prove
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Raises what `prove` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._running))
            self._next.add_done_callback(_seen)
        # Shielded: a caller that gives up does not spoil it for the others.
        await asyncio.shield(self._next)

    async def _run(self, former: asyncio.Task[None] | None) -> None:
        if former is not None:
            await asyncio.wait([former])
            del former  # or a failure of this one would keep it, and all before it
        # From here on it is too late to join this one.
        self._running, self._next = self._next, None
        await self._prove()

    async def close(self) -> None:
        """End what runs; whoever waits is cancelled."""
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _seen(task: asyncio.Task[None]) -> None:
    """Those who asked may have given up before; then nobody wants to know."""
    if not task.cancelled():
        task.exception()
