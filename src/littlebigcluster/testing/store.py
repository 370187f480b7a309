"""An object store in memory, strongly consistent as real ones are, behind a network that is not reliable.

Each request travels to the store, takes effect there in one moment, and its answer travels back. What can go wrong,
goes wrong on these ways, by chance (`Weather`) or because they are cut. A request that was given up may still arrive.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import Created, CreateOutcome, Exists, ObjectInfo, Unknown
from littlebigcluster.store.keys import check_body, check_range, checked
from littlebigcluster.store.retry import retried
from littlebigcluster.testing.clock import time_of_day
from littlebigcluster.testing.loop import Machine, VirtualLoop

T = TypeVar("T")

LIST_PAGE = 50
"""So many keys one request lists; objects may come and go between two pages."""


@dataclass
class Weather:
    """How probable it is that a request meets each fault, and how long requests take."""

    latency_seconds: float = 0.02
    """The median; 1 of 100 takes five times as long."""
    lost: float = 0.0
    """The request never arrives; time-out."""
    unanswered: float = 0.0
    """The request takes effect, and its answer is lost; time-out."""
    failed: float = 0.0
    """The store fails at once, with a server error, and has done nothing."""
    failed_after: float = 0.0
    """The store fails at once, with a server error, and has done it."""
    late: float = 0.0
    """A write takes effect long after its sender has given up on it: a zombie."""
    late_seconds: float = 60.0
    """At most so long after."""
    twice: float = 0.0
    """A write arrives a second time, later."""
    conflict: float = 0.0
    """A create is told that the key is taken, and nothing is there (a bare HTTP 409)."""

    def calm(self) -> Weather:
        return Weather(self.latency_seconds)


class _Conflict(Exception):
    """Carries a bare 409 to `create`."""


class SimulatedStore:
    """What all machines share. `of` gives each its own way to it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.written_at: dict[str, float] = {}
        """When each key was first written, in the time of the simulation; also of what is deleted."""
        self.weather = Weather()
        self.down = False
        """Every request fails at once."""
        self.throttled = 0.0
        """So many of the requests are told to slow down."""
        self.wall_offset = 0.0
        self.cut_from: set[str] = set()
        """Names of machines whose requests do not arrive."""
        self.cut_creates: set[str] = set()
        """Names of machines whose conditional creates do not arrive: small requests get through, and epochs do not."""
        self.cut_to: set[str] = set()
        """Names of machines to which no answers arrive."""
        self.refused: set[str] = set()
        """Names of machines that the store refuses for good: their credentials are not valid."""
        self.faults: Counter[str] = Counter()
        self.on_fault: Callable[[str, Machine | None, str], None] = lambda what, machine, request: None
        self.under_way = 0
        """Writes that are on their way."""

    def of(self, machine: Machine | None, clock: Clock, *, timeout_seconds: float = 10.0) -> SimulatedAccess:
        return SimulatedAccess(self, self._loop, machine, clock, timeout_seconds)

    def fault(self, what: str, machine: Machine | None, request: str) -> None:
        self.faults[what] += 1
        self.on_fault(what, machine, request)

    # -- what happens at the store, each in one moment ----------------------------------------------------------------

    def now(self) -> datetime:
        """By the store's clock, in whole seconds."""
        return (time_of_day(self._loop) + timedelta(seconds=self.wall_offset)).replace(microsecond=0)

    def get(self, key: str) -> bytes | None:
        found = self.objects.get(key)
        return None if found is None else found[0]

    def create(self, key: str, body: bytes) -> CreateOutcome:
        if key in self.objects:
            return Exists()
        self.put(key, body)
        return Created()

    def put(self, key: str, body: bytes) -> None:
        self.written_at.setdefault(key, self._loop.now)
        self.objects[key] = body, self.now()

    def page(self, prefix: str, start_after: str) -> list[ObjectInfo]:
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
        return [ObjectInfo(key, len(self.objects[key][0]), self.objects[key][1]) for key in keys[:LIST_PAGE]]

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class SimulatedAccess:
    """The `Store` as one machine reaches it."""

    def __init__(
        self, store: SimulatedStore, loop: VirtualLoop, machine: Machine | None, clock: Clock, timeout_seconds: float
    ) -> None:
        self._store, self._loop, self._machine, self._clock = store, loop, machine, clock
        self._timeout_seconds = timeout_seconds
        self._name = "" if machine is None else machine.name

    @property
    def url(self) -> str:
        return "simulated://"

    async def get(self, key: str) -> bytes | None:
        checked(key)
        return await self._retried(f"get {key}", lambda: self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        checked(key)
        check_range(start, length)

        def act() -> bytes | None:
            body = self._store.get(key)
            return None if body is None else body[start : start + length]

        return await self._retried(f"get_range {key}", act)

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        checked(key)
        check_body(body)
        try:
            return await self._request(f"create {key}", lambda: self._store.create(key, body), write=True)
        except _Conflict:
            return Exists()
        except StoreUnavailable as error:
            if not error.transient:
                raise
            return Unknown(error)

    async def put(self, key: str, body: bytes) -> None:
        checked(key)
        check_body(body)
        await self._retried(f"put {key}", lambda: self._store.put(key, body), write=True)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        checked(key)
        body = b"".join([chunk async for chunk in chunks])
        await self._request(f"put_stream {key}", lambda: self._store.put(key, body), write=True)

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        while True:
            after = found[-1].key if found else start_after
            page = await self._retried(f"list {prefix}", partial(self._store.page, prefix, after))
            found += page
            if len(page) < LIST_PAGE:
                return found

    async def delete(self, keys: Iterable[str]) -> None:
        names = [checked(key) for key in keys]
        if names:
            await self._retried(f"delete {names[0]}", lambda: self._store.delete(names), write=True)

    async def close(self) -> None:
        """Nothing is held."""

    async def _retried(self, request: str, act: Callable[[], T], *, write: bool = False) -> T:
        return await retried(
            lambda: self._request(request, act, write=write),
            clock=self._clock,
            deadline_seconds=2 * self._timeout_seconds,
        )

    async def _request(self, request: str, act: Callable[[], T], *, write: bool = False) -> T:
        if self._machine is not None and self._machine.dead:
            raise StoreUnavailable("this machine is dead", transient=False)
        answer: asyncio.Future[T] = self._loop.create_future()
        self._send(request, act, answer, write=write)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await answer
        except TimeoutError:
            raise StoreUnavailable(f"{request}: no answer in {self._timeout_seconds:g} s") from None

    # -- on the way ---------------------------------------------------------------------------------------------------

    def _send(self, request: str, act: Callable[[], T], answer: asyncio.Future[T], *, write: bool) -> None:
        store, loop = self._store, self._loop
        seconds = self._latency()
        fault = self._fault(request, write=write)

        def arrive(*, answered: bool = True) -> None:
            store.under_way -= write
            if self._name in store.cut_from or (request.startswith("create") and self._name in store.cut_creates):
                return store.fault("cut off", self._machine, request)
            error, done = self._refusal(request, fault)
            result: Any = None
            if done:
                result = act()
            if answered:
                loop.after(self._latency(), self._answer, request, answer, result, error)
            return None

        if fault is not None:
            store.fault(fault, self._machine, request)
        if fault == "lost":
            return
        if fault == "late":
            seconds += loop.chance.random() * store.weather.late_seconds
        store.under_way += write
        loop.after(seconds, lambda: arrive(answered=fault not in ("unanswered", "late")))
        if fault == "twice":
            store.under_way += 1
            loop.after(seconds + loop.chance.random() * store.weather.late_seconds, lambda: arrive(answered=False))

    def _refusal(self, request: str, fault: str | None) -> tuple[BaseException | None, bool]:
        """With what the store answers if not with a result, and whether it acts."""
        store = self._store
        if self._name in store.refused:
            store.fault("refused", self._machine, request)
            return StoreUnavailable(f"{request}: refused", transient=False), False
        if store.down:
            store.fault("down", self._machine, request)
            return StoreUnavailable(f"{request}: the store is down"), False
        if store.throttled and self._loop.chance.random() < store.throttled:
            store.fault("throttled", self._machine, request)
            return StoreUnavailable(f"{request}: slow down"), False
        if fault == "failed":
            return StoreUnavailable(f"{request}: internal error"), False
        if fault == "failed after":
            return StoreUnavailable(f"{request}: internal error"), True
        if fault == "conflict":
            return _Conflict(), False
        return None, True

    def _answer(self, request: str, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if self._name in self._store.cut_to:
            return self._store.fault("answer cut off", self._machine, request)
        if answer.done():
            return None
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)
        return None

    def _fault(self, request: str, *, write: bool) -> str | None:
        weather, point = self._store.weather, self._loop.chance.random()
        faults = [("lost", weather.lost), ("unanswered", weather.unanswered), ("failed", weather.failed)]
        if write:
            faults += [("failed after", weather.failed_after), ("late", weather.late), ("twice", weather.twice)]
        if request.startswith("create"):
            faults.append(("conflict", weather.conflict))
        for fault, rate in faults:
            point -= rate
            if point < 0:
                return fault
        return None

    def _latency(self) -> float:
        """One way."""
        return self._loop.chance.lognormvariate(math.log(self._store.weather.latency_seconds / 2), 0.7)
