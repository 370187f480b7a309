"""A value that changes: read it, await a condition, iterate its changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from littlebigcluster.settings import Duration, seconds
from littlebigcluster.threads import check_loop

T = TypeVar("T")


class Watch(Generic[T]):
    """A value with its changes, for one event loop.

    `.value` is the present value. `async for` yields it and then each new one; a slow consumer skips to the
    newest. `await until(predicate)` returns the first value, from the present one on, that fulfils it.
    """

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()

    @property
    def value(self) -> T:
        return self._value

    def __repr__(self) -> str:
        return f"Watch({self._value!r})"

    def __aiter__(self) -> AsyncIterator[T]:
        return self.changes()

    async def changes(self) -> AsyncIterator[T]:
        """The present value, then each new one; ends with the exception that ended the watch."""
        while True:
            value = self._value
            yield value
            while self._value == value:
                await self._next()

    async def until(self, predicate: Callable[[T], object], *, timeout: Duration | None = None) -> T:
        """The first value that fulfils `predicate`. Raises TimeoutError after `timeout`, or what ended the node."""
        async with asyncio.timeout(None if timeout is None else seconds(timeout)):
            while not predicate(self._value):
                await self._next()
            return self._value

    async def _next(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._loop is not None:
            check_loop(self._loop)
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _set(self, value: T) -> None:
        """For the owner: a new value; equal values are no change."""
        if value != self._value:
            self._value = value
            self._wake()

    def _end(self, failure: BaseException) -> None:
        """For the owner: no value will come any more; whoever waits gets `failure`."""
        self._failure = failure
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
