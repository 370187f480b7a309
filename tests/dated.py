"""A store whose clock tests turn by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.store import ObjectInfo, Store, open_store
from littlebigcluster.store.wrappers import Operation, Wrapper

T = TypeVar("T")


class Dated(Wrapper):
    """Dates objects by a clock of its own, which stands still but for `pass_time`."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(store or open_store("memory://", clock=Clock()))
        self.now = datetime(2026, 11, 22, 10, tzinfo=UTC)
        self.dates: dict[str, datetime] = {}

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    async def copy(self) -> Dated:
        """Another store that holds the same."""
        made = Dated()
        for info in await self.inner.list(""):
            await made.inner.put(info.key, await self.inner.get(info.key) or b"")
        made.now, made.dates = self.now, dict(self.dates)
        return made

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        result = await send()
        if operation in ("put", "put_stream") or (operation == "create" and key not in self.dates):
            self.dates[key] = self.now
        return result

    async def delete(self, keys: Iterable[str]) -> None:
        names = list(keys)
        await super().delete(names)
        for name in names:
            self.dates.pop(name, None)

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        found = await super().list(prefix, start_after)
        return [replace(info, last_modified=self.dates[info.key]) for info in found]
