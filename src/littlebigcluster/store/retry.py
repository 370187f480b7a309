"""How long to wait for a store, and how to try again where that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable

T = TypeVar("T")

MAX_ATTEMPTS = 6
FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 2.0


def allowed_seconds(timeout_seconds: float, size_bytes: int) -> float:
    """The time-out for moving `size_bytes` in one request: one second more for each MiB."""
    return timeout_seconds + size_bytes / (1 << 20)


def backoff_seconds(attempt: int, clock: Clock) -> float:
    """The wait after attempt number `attempt` (from 0): doubling, with full jitter so that nodes spread out."""
    limit = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt, 10))
    return limit * clock.random()


async def retried(request: Callable[[], Awaitable[T]], *, clock: Clock, deadline_seconds: float) -> T:
    """The result of `request`, tried again while it raises a transient StoreUnavailable.

    No attempt begins after `deadline_seconds` nor after `MAX_ATTEMPTS`; then the last error comes out.
    Only for requests whose late duplicate is harmless.
    """
    give_up_at = clock.monotonic() + deadline_seconds
    attempt = 0
    while True:
        try:
            return await request()
        except StoreUnavailable as error:
            wait_seconds = backoff_seconds(attempt, clock)
            attempt += 1
            if not error.transient or attempt == MAX_ATTEMPTS or clock.monotonic() + wait_seconds > give_up_at:
                raise
        await asyncio.sleep(wait_seconds)
