"""A TCP relay in front of a server: counts connections, and can break them or let them fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

T = TypeVar("T")


async def some_turns() -> None:
    """Of the event loop: what was begun is known then, and what was broken is closed."""
    for _ in range(10):
        await asyncio.sleep(0)


async def stop_accepting(server: asyncio.Server) -> None:
    """Close it. asyncio forgets a connection that it is just accepting then: so first none comes any more."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await some_turns()
    server.close()


class Relay:
    def __init__(self, target: tuple[str, int]) -> None:
        self.connections = 0
        self.left = asyncio.Event()
        """A client has closed its connection."""
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def swallow(self) -> None:
        """From now on nothing passes, in either direction, and nobody is told."""
        self._flowing.clear()

    def refuse(self) -> None:
        """Break all connections, and every new one."""
        self._refusing = True
        self.cut()

    def flow(self) -> None:
        """Everything passes again."""
        self._refusing = False
        self._flowing.set()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def break_off(self) -> None:
        """Break all connections, and listen no longer."""
        assert self._server is not None
        self.refuse()
        await stop_accepting(self._server)

    async def __aexit__(self, *_: object) -> None:
        await self.break_off()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await some_turns()  # what is broken is closed then

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        connecting = self._begin(asyncio.open_connection(*self._target)) if not self._refusing else None
        if connecting is not None:
            await asyncio.wait((connecting,))
        if connecting is None or connecting.cancelled() or connecting.exception() is not None:
            writer.transport.abort()
            return
        there_reader, there_writer = connecting.result()
        self._writers.add(there_writer)
        if self._refusing:
            self.cut()
            return
        self._begin(self._pump(reader, there_writer)).add_done_callback(lambda _: self.left.set())
        self._begin(self._pump(there_reader, writer))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()
