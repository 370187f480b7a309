"""A store whose user dies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import Store
from littlebigcluster.store.wrappers import Operation, Wrapper

T = TypeVar("T")


class Dying(Wrapper):
    """The process dies at the n-th request: before it, or after it has taken effect. A delete is cut short: it
    takes away every other object."""

    def __init__(self, store: Store, at: int, how: str) -> None:
        super().__init__(store)
        self._left, self._how = at, how

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        self._left -= 1
        if self._left == 0 and self._how == "after":
            await send()
        if self._left <= 0:
            raise StoreUnavailable("died")
        return await send()

    async def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        if self._left == 1 and self._how == "half":
            await self.inner.delete(keys[::2])
        await super().delete(keys)
