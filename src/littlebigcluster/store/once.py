"""Put-if-absent, with the truth about its outcome: the one place that resolves *created*, *exists*, *unknown*.

A store's answer to a create is not yet the truth. "Exists" may mean our own earlier attempt, or (HTTP 409)
nothing at all; a time-out may take effect later, so that an absent object proves nothing. What follows:

- only the same bytes are ever sent to a key, by this call and after it;
- "exists" is always read back, and the bytes decide whose it is;
- an unknown outcome is asked again by sending the same bytes again: each answer to that tells.

So `body` must differ from what every other writer could send: an epoch holds a random nonce.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable

from .base import Created, Exists, Store, Unknown
from .retry import backoff_seconds


@dataclass(frozen=True, slots=True)
class Mine:
    """The object is there and holds our bytes. Until somebody deletes it, no other bytes can come there."""


@dataclass(frozen=True, slots=True)
class Theirs:
    """The object is there and holds `body`, which is not ours. No attempt of ours has taken effect, and until
    somebody deletes the object none can."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Nothing is proved: our bytes may be there, or appear there later; the only bytes this node may still send
    to this key are these. `cause` is what stood in the way last."""

    cause: BaseException


class NoLongerValid(Exception):
    """`still_valid` said no: an absent object does not mean a free place any more; resynchronize first."""


Resolution = Mine | Theirs | Unresolved


async def put_if_absent(
    store: Store,
    key: str,
    body: bytes,
    *,
    clock: Clock,
    deadline_seconds: float,
    still_valid: Callable[[], bool] | None = None,
) -> Resolution:
    """Create `key` with `body`, and find out whether that took effect.

    Tries until the answer is known or `deadline_seconds` have passed (the last attempt may run longer, by the
    time-outs of the store). `still_valid` is asked before each sending; when it says False, nothing is sent and
    the outcome is `Unresolved(NoLongerValid)`, or the last cause if something was sent before.

    Raises StoreUnavailable (transient=False) when the store refuses the very first attempt: nothing was written
    and nothing will be. Cancellation may leave the outcome unresolved.
    """
    give_up_at = clock.monotonic() + deadline_seconds
    cause: BaseException | None = None
    attempt = 0
    while True:
        if still_valid is not None and not still_valid():
            return Unresolved(cause or NoLongerValid(f"{key}: the position in the log is too old to write"))
        try:
            answer = await _attempt(store, key, body)
        except StoreUnavailable as error:
            # An earlier attempt whose outcome is unknown may still take effect.
            if cause is None:
                raise
            return Unresolved(error)
        if not isinstance(answer, Unresolved):
            return answer
        cause = answer.cause
        wait_seconds = backoff_seconds(attempt, clock)
        if clock.monotonic() + wait_seconds >= give_up_at:
            return answer
        attempt += 1
        await asyncio.sleep(wait_seconds)


async def _attempt(store: Store, key: str, body: bytes) -> Resolution:
    """Send once, and read back what is said to exist. Raises StoreUnavailable only if nothing was sent."""
    outcome = await store.create(key, body)
    match outcome:
        case Created():
            return Mine()
        case Unknown(cause):
            return Unresolved(cause)
        case Exists():
            return await _read_back(store, key, body)


async def _read_back(store: Store, key: str, body: bytes) -> Resolution:
    try:
        found = await store.get(key)
    except StoreUnavailable as error:
        return Unresolved(error)
    if found is None:
        return Unresolved(StoreUnavailable(f"{store.url} says that {key} exists, and that it does not"))
    return Mine() if found == body else Theirs(found)
