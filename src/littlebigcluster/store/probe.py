"""Does the store keep its promise? A conditional create that lets two writers win would allow two leaders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable, UnsafeStore

from .base import Created, Store
from .once import Mine, Theirs, Unresolved, put_if_absent

ROUNDS = 3
RACERS = 16
DEADLINE_SECONDS = 30.0


class Broken(Exception):
    """The store has broken a promise; the text says how (inside this package only)."""


async def probe_race(store: Store, *, clock: Clock) -> None:
    """Let many writers create one fresh key at once, over connections of their own, a few times: exactly one may
    win each time, and all the others must read the winner's bytes.

    The keys are `.lbc/probe-...` and are deleted. Costs about 150 requests.
    Raises UnsafeStore when the store fails, StoreUnavailable when it does not answer.
    """
    for _ in range(ROUNDS):
        key = f".lbc/probe-{clock.token(8).hex()}"
        try:
            await race([store], key, racers=RACERS, clock=clock)
        except Broken as broken:
            raise _unsafe(store, str(broken)) from None
        finally:
            with contextlib.suppress(StoreUnavailable):
                await store.delete([key])


async def race(clients: Sequence[Store], key: str, *, racers: int, clock: Clock, padding: bytes = b"") -> None:
    """One race for the fresh `key`, by racers that are spread over the clients. Raises Broken, StoreUnavailable."""
    bodies = [f"{racer} {clock.token(16).hex()}".encode() + padding for racer in range(racers)]
    running = [_racer(clients[index % len(clients)], key, body, clock) for index, body in enumerate(bodies)]
    # `gather`, not a TaskGroup: every racer must end before the key is deleted, or a late one creates it again.
    results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    winners = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, Mine)]
    if len(winners) != 1:
        raise Broken(f"{len(winners)} of {len(bodies)} concurrent creates of {key} succeeded")
    read: set[bytes | None] = {result.body for result in results if isinstance(result, Theirs)}
    read |= {await client.get(key) for client in clients}
    if read != {winners[0]}:
        raise Broken(f"{key} did not read as what its only creator wrote")


async def _racer(store: Store, key: str, body: bytes, clock: Clock) -> Mine | Theirs:
    """The proved outcome. Raises StoreUnavailable if there is none."""
    result = await put_if_absent(store, key, body, clock=clock, deadline_seconds=DEADLINE_SECONDS)
    if isinstance(result, Unresolved):
        message = f"cannot tell whether {store.url} is safe: the outcome of a create stayed unknown"
        raise StoreUnavailable(f"{message} ({result.cause})") from result.cause
    return result


async def probe_exists(store: Store, key: str, body: bytes) -> None:
    """Create `key`, which is known to hold `body`, with the same bytes: the store must say that it exists.

    An unknown outcome proves nothing and passes. Raises UnsafeStore when the store says "created",
    StoreUnavailable when it refuses the request.
    """
    if isinstance(await store.create(key, body), Created):
        raise _unsafe(store, f"{key} exists, and could be created again")


def _unsafe(store: Store, what: str) -> UnsafeStore:
    return UnsafeStore(
        f"{store.url} does not honour conditional creates: {what}. Two nodes could lead at once, so it is refused. "
        "Use a store that implements `If-None-Match: *` atomically (S3, MinIO, Ceph, GCS, Azure, a directory); "
        "a proxy or an old version in front of one may be what drops the condition."
    )
