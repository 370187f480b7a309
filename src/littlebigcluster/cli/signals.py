"""Ctrl-C and SIGTERM: the first ends the command in good order, the second at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The command was told to stop by this signal, and has stopped in good order."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, but that a signal cancels `main`, and a second one ends the process. Raises Stopped."""
    with asyncio.Runner() as runner:
        return runner.run(_until_signal(main))


async def _until_signal(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)
    received: list[int] = []

    def on_signal(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            # No clean-up of any kind: somebody is out of patience.
            os._exit(128 + signum)
        loop.call_soon_threadsafe(task.cancel)

    former = {signum: signal.signal(signum, on_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Stopped(received[0]) from None
        raise
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
