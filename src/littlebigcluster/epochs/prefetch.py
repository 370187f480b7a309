"""Several requests under way at once, their answers in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_order(requests: Iterable[Coroutine[Any, Any, T]], *, window: int) -> AsyncGenerator[T, None]:
    """The results of `requests`, in order, with at most `window` of them under way."""
    waiting: deque[asyncio.Task[T]] = deque()
    source = iter(requests)
    try:
        while True:
            while len(waiting) < window and (request := next(source, None)) is not None:
                waiting.append(asyncio.create_task(request))
            if not waiting:
                return
            result = await waiting[0]
            waiting.popleft()
            yield result
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
