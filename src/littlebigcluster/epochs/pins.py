"""Pins: objects in the bucket that keep retention from deleting what somebody still needs.

**The race with retention**, which raises `.last_retained` long before it deletes anything below it, and looks for pins
after that and before it deletes. A pin is written first, and `.last_retained` read after it. So either retention sees
the pin, or who pins sees that retention has passed the epoch, and learns that it is too late.

A pin holds until it is removed, or has not been renewed for the time it names, by the store's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Self

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.epochs.prefetch import in_order
from littlebigcluster.errors import NotRetained, StoreUnavailable
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.threads import carried_through

logger = logging.getLogger(__name__)

DAMAGED_SECONDS = 86400.0
"""A pin that cannot be read holds everything for so long."""

REPAIR = "a repair"
"""The purpose of the pin that a repair holds from its beginning to its end: nodes tell by it that one is under way."""

_RENEWALS = 4
"""In the time a pin holds: it may be renewed late, or the store be away for a while."""
_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Pin:
    """What the object says."""

    epoch: int
    """This one and all later ones stay restorable."""
    ttl_seconds: float
    """After the object was written."""
    purpose: str
    """For people; but for `REPAIR`."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """One that cannot be read pins everything."""
        try:
            value = json.loads(body)
            pin = cls(int(value["epoch"]), float(value["ttl_seconds"]), str(value["purpose"]))
            timedelta(seconds=pin.ttl_seconds)
            return pin
        except (KeyError, TypeError, ValueError, OverflowError):
            return cls(0, DAMAGED_SECONDS, "unreadable")


@dataclass(frozen=True, slots=True)
class Pins:
    """All pins there are."""

    epochs: list[int]
    """Of those that hold."""
    expired: list[str]
    """The names of the others."""


@contextlib.asynccontextmanager
async def pinned(
    store: Store, epoch: int, *, ttl_seconds: float = 900.0, purpose: str = "", clock: Clock
) -> AsyncIterator[None]:
    """Everything that is needed to restore `epoch` or a later one stays in the bucket meanwhile.

    Costs a PUT and a GET, and a PUT every quarter of `ttl_seconds` (> 0). Whoever dies, or stands still for longer
    than `ttl_seconds`, may lose the pin: then objects are missing, which any reader of the log notices.
    Raises NotRetained when retention has passed the epoch already, StoreUnavailable.
    """
    if ttl_seconds <= 0:
        raise ValueError(f"ttl_seconds must be positive, not {ttl_seconds!r}")
    name, body = names.pin(clock.token(8).hex()), Pin(epoch, ttl_seconds, purpose).encode()
    renewing: asyncio.Task[None] | None = None
    try:
        # Carried through, here and below: one that is given up could still arrive, after it was removed.
        await carried_through(store.put(name, body))
        retained = names.parse_marker(await store.get(names.LAST_RETAINED)) or 0
        if retained > epoch:
            raise NotRetained(f"epoch {epoch} is not kept any more; the log goes back to epoch {retained}")
        renewing = asyncio.create_task(_renew(store, name, body, ttl_seconds / _RENEWALS))
        yield
    finally:
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait([renewing])
            if not renewing.cancelled():
                renewing.result()
        try:
            await store.delete([name])
        except StoreUnavailable as error:
            logger.warning("%s could not be removed and holds for %g s more: %s", name, ttl_seconds, error)


async def _renew(store: Store, name: str, body: bytes, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            await carried_through(store.put(name, body))
        except StoreUnavailable as error:
            logger.warning("%s could not be renewed: %s", name, error)


async def read_pins(store: Store, listing: Iterable[ObjectInfo], *, now: datetime) -> Pins:
    """Those of the `listing`, read one by one. `now` is a moment before the listing, by the store's clock.
    Raises StoreUnavailable."""
    infos = [info for info in listing if info.key.startswith(names.PINS)]
    bodies = in_order((store.get(info.key) for info in infos), window=_WINDOW)
    found = Pins([], [])
    remaining = iter(infos)
    async for body in bodies:
        info = next(remaining)
        if body is None:  # removed meanwhile
            continue
        pin = Pin.decode(body)
        if now - info.last_modified < timedelta(seconds=pin.ttl_seconds):
            found.epochs.append(pin.epoch)
        else:
            found.expired.append(info.key)
    return found
