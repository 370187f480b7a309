"""A store that fails in every way a real one does, by seed or by script."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Literal, TypeVar

from littlebigcluster.clock import seeded
from littlebigcluster.errors import StoreUnavailable

from .base import CreateOutcome, Exists, Store, Unknown
from .wrappers import Operation, Wrapper

T = TypeVar("T")

WRITES: tuple[Operation, ...] = ("create", "put", "put_stream", "delete")


class Fault(enum.Enum):
    """What can happen to one request."""

    BEFORE = "fails before the store acts: nothing is written"
    AFTER = "fails after the store has acted: the answer is lost"
    DELAY = "takes longer, and succeeds"
    HANG = "no answer until the time-out or cancellation; a write takes effect later: a zombie"
    DUPLICATE = "is delivered twice, and the second answer is the one that arrives; a put repeats itself later"
    CONFLICT = "a create is told that the key is taken, and the store has not acted (a bare HTTP 409)"


Rates = Mapping[Fault, float]
"""How probable each fault is; together at most 1."""


class Faulty(Wrapper):
    """Does to each request what `next` says, else a fault drawn from `rates`, else nothing.

    `rates` is by operation, with "*" for those not named: `{"create": {Fault.AFTER: 0.1}, "*": {...}}`. The same
    seed draws the same faults for the same sequence of requests. A request that hangs fails after `timeout_seconds`;
    its zombie takes effect `zombie_seconds` (a range, drawn) after it was sent, or with None only in `settle`.
    """

    def __init__(
        self,
        store: Store,
        *,
        seed: int = 0,
        rates: Mapping[Operation | Literal["*"], Rates] | None = None,
        delay_seconds: float = 0.05,
        timeout_seconds: float = 0.2,
        zombie_seconds: tuple[float, float] | None = (0.0, 0.5),
    ) -> None:
        super().__init__(store)
        self._random = seeded(seed)
        self._rates = dict(rates or {})
        self._delay_seconds = delay_seconds
        self._timeout_seconds = timeout_seconds
        self._zombie_seconds = zombie_seconds
        self._script: list[tuple[Operation, str | None, Fault | None]] = []
        self._outage: Fault | None = None
        self._zombies: set[asyncio.Task[None]] = set()
        self._let_go = asyncio.Event()
        self.faults: list[tuple[Operation, str, Fault]] = []
        """What has been done so far."""

    def next(self, operation: Operation, *faults: Fault | None, key: str | None = None) -> None:
        """Do these faults (None: none) to the next requests of this kind, one each; only to `key` if given."""
        if Fault.CONFLICT in faults and operation != "create":
            raise ValueError("only a create can meet a conflict")
        self._script += [(operation, key, fault) for fault in faults]

    def outage(self, on: bool = True, *, hang: bool = False) -> None:
        """From now on every request fails at once (or hangs until its time-out), or no longer does."""
        self._outage = (Fault.HANG if hang else Fault.BEFORE) if on else None

    @property
    def zombies(self) -> int:
        """How many writes are still on their way, given up by those who sent them."""
        return len(self._zombies)

    async def settle(self) -> None:
        """Let all zombies take effect now."""
        zombies = list(self._zombies)
        self._let_go.set()
        # Once, not "while there are any": gathering what is done already does not yield, so none would ever go.
        await asyncio.gather(*zombies)
        self._zombies.difference_update(zombies)
        self._let_go.clear()

    async def close(self) -> None:
        """Drops the zombies."""
        for zombie in self._zombies:
            zombie.cancel()
        await asyncio.gather(*self._zombies, return_exceptions=True)
        await super().close()

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        try:
            return await super().create(key, body)
        except _Conflict:
            return Exists()
        except StoreUnavailable as error:
            if not error.transient:
                raise
            return Unknown(error)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """The stream is collected first, so that it can be delivered late or twice."""
        body = b"".join([chunk async for chunk in chunks])
        await self._request("put_stream", key, lambda: self.inner.put_stream(key, _replayed(body)))

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        fault = self._draw(operation, key)
        if fault is None:
            return await send()
        self.faults.append((operation, key, fault))
        failure = StoreUnavailable(f"simulated: {operation} {key} {fault.value}")
        match fault:
            case Fault.BEFORE:
                raise failure
            case Fault.AFTER:
                await send()
                raise failure
            case Fault.DELAY:
                await asyncio.sleep(self._delay_seconds)
                return await send()
            case Fault.HANG:
                # During an outage nothing arrives, not even late.
                if operation in WRITES and self._outage is None:
                    self._raise_zombie(send)
                await asyncio.sleep(self._timeout_seconds)
                raise failure
            case Fault.DUPLICATE:
                await send()
                if operation in ("put", "put_stream"):
                    self._raise_zombie(send)
                return await send()
            case Fault.CONFLICT:
                raise _Conflict()

    def _draw(self, operation: Operation, key: str) -> Fault | None:
        if self._outage is not None:
            return self._outage
        for index, (wanted, wanted_key, fault) in enumerate(self._script):
            if wanted == operation and wanted_key in (None, key):
                del self._script[index]
                return fault
        point = self._random.random()
        for fault, rate in self._rates.get(operation, self._rates.get("*", {})).items():
            point -= rate
            if point < 0 and (fault is not Fault.CONFLICT or operation == "create"):
                return fault
        return None

    def _raise_zombie(self, send: Callable[[], Awaitable[object]]) -> None:
        seconds = self._random.uniform(*self._zombie_seconds) if self._zombie_seconds else None

        async def walk() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._let_go.wait()
            with contextlib.suppress(StoreUnavailable):  # it may die on its way
                await send()

        zombie = asyncio.create_task(walk(), name="zombie write")
        self._zombies.add(zombie)
        zombie.add_done_callback(self._zombies.discard)


class _Conflict(Exception):
    """Carries CONFLICT out of `_request`, where the type of the answer is not known."""


async def _replayed(body: bytes) -> AsyncIterator[bytes]:
    yield body
