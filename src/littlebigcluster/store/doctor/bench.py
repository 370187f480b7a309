"""Where the promises of a store are tried out, and what can come of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store.base import Store
from littlebigcluster.store.once import Mine, Theirs, put_if_absent
from littlebigcluster.store.probe import DEADLINE_SECONDS, Broken

T = TypeVar("T")


class Doubtful(Exception):
    """Nothing that a cluster would break of, but somebody should know."""


class NotTried(Exception):
    """It cannot be tried here; the text says why."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where promises are tested: below one fresh prefix, through several clients with connections of their own."""

    clients: Sequence[Store]
    clock: Clock
    absent: Store | None = None
    """A bucket or container that cannot exist; None where there is no such thing."""
    nobody: Store | None = None
    """The same place for somebody whose credentials cannot be right."""
    figures: dict[str, float] = field(default_factory=dict)
    """What was measured, by name with unit."""

    @property
    def first(self) -> Store:
        return self.clients[0]

    async def all_get(self, key: str) -> list[bytes | None]:
        """What every client reads at the same time."""
        return await all_of(client.get(key) for client in self.clients)


async def all_of(requests: Iterable[Awaitable[T]]) -> list[T]:
    """The results. When one fails the others still end first, so that none acts after the trial."""
    results = await asyncio.gather(*requests, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)


async def created(bench: Bench, key: str, body: bytes) -> None:
    """Create what is not there. Raises Broken, StoreUnavailable."""
    match await put_if_absent(bench.first, key, body, clock=bench.clock, deadline_seconds=DEADLINE_SECONDS):
        case Mine():
            return
        case Theirs():
            raise Broken(f"{key} was free, and reads as something else than what was created there")
        case unresolved:
            raise StoreUnavailable(f"the outcome of a create stayed unknown ({unresolved.cause})")
