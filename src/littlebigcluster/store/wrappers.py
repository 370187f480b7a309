"""Stores around a store, for tests and benchmarks: what was asked of it, and how slow it is."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from littlebigcluster.clock import seeded

from .base import CreateOutcome, ObjectInfo, Store

T = TypeVar("T")
Operation = Literal["get", "get_range", "create", "put", "put_stream", "list", "delete"]

Z_99 = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


class Wrapper:
    """The `Store` that hands every request to another. Subclasses act in `_request`."""

    def __init__(self, store: Store) -> None:
        self.inner = store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    @property
    def url(self) -> str:
        return self.inner.url

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        return await send()

    async def get(self, key: str) -> bytes | None:
        return await self._request("get", key, lambda: self.inner.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        return await self._request("get_range", key, lambda: self.inner.get_range(key, start, length))

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        return await self._request("create", key, lambda: self.inner.create(key, body))

    async def put(self, key: str, body: bytes) -> None:
        await self._request("put", key, lambda: self.inner.put(key, body))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await self._request("put_stream", key, lambda: self.inner.put_stream(key, chunks))

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        return await self._request("list", prefix, lambda: self.inner.list(prefix, start_after))

    async def delete(self, keys: Iterable[str]) -> None:
        names = list(keys)
        await self._request("delete", names[0] if names else "", lambda: self.inner.delete(names))

    async def close(self) -> None:
        await self.inner.close()


class Counting(Wrapper):
    """Counts requests by operation, and the bytes of the bodies. A retry inside the store counts as none."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.requests: Counter[Operation] = Counter()
        self.read_bytes = 0
        self.written_bytes = 0

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        self.requests[operation] += 1
        result = await send()
        if isinstance(result, bytes):
            self.read_bytes += len(result)
        return result

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        self.written_bytes += len(body)
        return await super().create(key, body)

    async def put(self, key: str, body: bytes) -> None:
        self.written_bytes += len(body)
        await super().put(key, body)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        async def counted() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                self.written_bytes += len(chunk)
                yield chunk

        await super().put_stream(key, counted())


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Latencies with this median and this 99th percentile, in seconds: what object stores show."""

    p50_seconds: float
    p99_seconds: float

    @property
    def sigma(self) -> float:
        return math.log(self.p99_seconds / self.p50_seconds) / Z_99


Latency = float | LogNormal


class Slow(Wrapper):
    """Makes every request last as long as it would far away, however many run at once.

    A latency (seconds, or `LogNormal`) is the whole time of a request, with that of the store inside: half of
    it passes before the store acts, the rest before the answer arrives. What the store itself takes longer, it
    takes longer.
    """

    def __init__(
        self,
        store: Store,
        *,
        put: Latency = 0.0,
        get: Latency = 0.0,
        list: Latency = 0.0,
        delete: Latency = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(store)
        self._latencies: dict[Operation, Latency] = {
            "get": get,
            "get_range": get,
            "create": put,
            "put": put,
            "put_stream": put,
            "list": list,
            "delete": delete,
        }
        self._random = seeded(seed)

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        seconds = self._seconds(self._latencies[operation])
        if seconds == 0:
            return await send()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(seconds / 2)
        try:
            return await send()
        finally:
            await asyncio.sleep(max(0.0, start + seconds - loop.time()))

    def _seconds(self, latency: Latency) -> float:
        if isinstance(latency, LogNormal):
            return self._random.lognormvariate(math.log(latency.p50_seconds), latency.sigma)
        return latency
