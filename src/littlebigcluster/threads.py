"""Where threads come from, what they wait on, so that a simulation can let them run one at a time, and how they end."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_STOP_AGAIN_SECONDS = 0.05


class Threads:
    """The threads of this process."""

    def start(self, run: Callable[[], None], *, name: str) -> None:
        """Run `run` in a thread of its own, which does not keep the process from ending."""
        threading.Thread(target=run, name=name, daemon=True).start()

    def queue(self) -> SimpleQueue[Any]:
        """A queue between threads, without a bound."""
        return SimpleQueue()

    def event(self) -> threading.Event:
        """A flag that threads wait for."""
        return threading.Event()


THREADS: ContextVar[Threads] = ContextVar("THREADS", default=Threads())  # noqa: B039 - has no state
"""Those that are used here."""


async def in_thread(
    work: Callable[..., T],
    *args: Any,
    undo: Callable[[T], None] = lambda result: None,
    stop: Callable[[], None] | None = None,
) -> T:
    """What `work` returns, in one of asyncio's own threads; see `carried_through`. `asyncio.to_thread`, which nobody
    else calls here, would leave it half done behind the back of whoever is cancelled, or not begun."""
    return await carried_through(asyncio.to_thread(work, *args), undo=undo, stop=stop)


async def carried_through(
    work: Coroutine[Any, Any, T],
    *,
    undo: Callable[[T], None] = lambda result: None,
    stop: Callable[[], None] | None = None,
) -> T:
    """What `work` returns. Whoever is cancelled waits for its end: no thread makes files where they are being removed.
    Meanwhile `stop` is called, again and again, for it may come between two steps that it could end. Nobody gets the
    result then; it is given to `undo`."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            if stop is not None:
                stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=None if stop is None else _STOP_AGAIN_SECONDS)
        if not task.cancelled() and task.exception() is None:
            undo(task.result())
        raise


def check_loop(home: asyncio.AbstractEventLoop | None) -> None:
    """Raises RuntimeError unless it is called on the event loop `home`: on another one, what is awaited never comes."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is not home:
        raise RuntimeError(
            "a node is used on the event loop on which it has joined, and nowhere else. In another thread write"
            " `asyncio.run_coroutine_threadsafe(node.execute(...), loop).result()`, or read with `node.connection()`;"
            " with pytest-asyncio, give fixtures and tests the same loop_scope"
        )


_MOMENT_SECONDS, _MOMENTS = 0.001, 2000


def let_foreign_threads_finish() -> None:
    """At the end of the process, before the interpreter goes: wait, for some seconds at most, until no thread of the
    Rust libraries runs Python code. They do while they hand over a result, and whoever awaited that may be here first.
    One that then wants the interpreter back, which is going, aborts the process (up to CPython 3.13)."""
    for _ in range(_MOMENTS):
        ours = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
        if ours.issuperset(sys._current_frames()):
            return
        threading.Event().wait(_MOMENT_SECONDS)


atexit.register(let_foreign_threads_finish)
