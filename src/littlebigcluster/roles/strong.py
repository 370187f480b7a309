"""Strong reads: proof that the local copy holds every write acknowledged before the read began."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from littlebigcluster.errors import LbcError

_STOPPED = "the node has stopped"


class SharedProof:
    """Many callers share one proof, but never one that began before they asked.

    `prove` returns when some moment after its call has been shown to be covered by the local copy.
    """

    def __init__(self, prove: Callable[[], Awaitable[None]]) -> None:
        self._prove = prove
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self) -> None:
        """Raises what `prove` raises, LbcError after `close`."""
        if self._closed:
            raise LbcError(_STOPPED)
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._running))
            self._next.add_done_callback(_seen)
        try:
            # Shielded: a caller that gives up does not spoil it for the others.
            await asyncio.shield(self._next)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and not caller.cancelling():  # it was `close`
                raise LbcError(_STOPPED) from None
            raise

    async def _run(self, former: asyncio.Task[None] | None) -> None:
        if former is not None:
            await asyncio.wait([former])
            del former  # or a failure of this one would keep it, and all before it
        # From here on it is too late to join this one.
        self._running, self._next = self._next, None
        await self._prove()

    async def close(self) -> None:
        """End what runs; whoever waits gets LbcError."""
        self._closed = True
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _seen(task: asyncio.Task[None]) -> None:
    """Those who asked may have given up before; then nobody wants to know."""
    if not task.cancelled():
        task.exception()
