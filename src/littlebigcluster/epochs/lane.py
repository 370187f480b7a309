"""A thread that works behind the event loop, a bounded distance."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self


class Lane:
    """Carries out calls in a thread of its own, one after the other, while whoever hands them over goes on.

    `async with`: however that ends, no call runs any more then. What had not begun is not carried out, nor is
    anything after a call that has failed.
    """

    def __init__(self, *, name: str, ahead: int) -> None:
        """So many calls may run or wait at a time. `name` is the thread's."""
        self._name, self._ahead = name, ahead
        # Invariant: at most `ahead`, in the order in which they run.
        self._under_way: deque[asyncio.Future[None]] = deque()
        self._over = False

    async def put(self, call: Callable[[], object]) -> None:
        """Hand over one more as soon as there is room. Raises what an earlier one has raised."""
        while len(self._under_way) >= self._ahead:
            await self._first()
        self._under_way.append(asyncio.get_running_loop().run_in_executor(self._thread, self._run, call))

    async def drain(self) -> None:
        """Wait for all. Raises what one of them has raised."""
        while self._under_way:
            await self._first()

    async def _first(self) -> None:
        await asyncio.shield(self._under_way[0])
        self._under_way.popleft()

    def _run(self, call: Callable[[], object]) -> None:
        if self._over:
            return
        try:
            call()
        except BaseException:
            self._over = True
            raise

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        interrupted: asyncio.CancelledError | None = None
        while waiting := [call for call in self._under_way if not call.done()]:
            try:
                await asyncio.wait(waiting)
            except asyncio.CancelledError as cancelled:
                interrupted = cancelled
        for call in self._under_way:
            if not call.cancelled():
                call.exception()  # told already, or something else is
        self._thread.shutdown(wait=False)
        if interrupted is not None:  # not swallowed for the error that is on its way out, which may be tried again
            raise interrupted
