"""The vocabulary of the scenarios: nodes that can be killed, frozen and cut off, on one store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from littlebigcluster import Cluster, Node, NodeSettings
from littlebigcluster.clock import Clock
from littlebigcluster.store import Faulty, Store, open_store
from littlebigcluster.store.wrappers import Operation, Wrapper
from tests.scenarios.checker import Recorder

T = TypeVar("T")

FAST = NodeSettings(
    epoch_interval=0,
    leader_timeout=1.2,
    poll_interval=0.05,
    write_timeout=20,
    read_timeout=20,
    shutdown_timeout=5,
    readers=1,
)
WAIT = 20.0
"""Far longer than anything takes; only a failing test waits so long."""


def memory() -> Store:
    return open_store("memory://", clock=Clock())


NOWHERE = "127.0.0.1:1"
"""Nobody listens there: nodes that advertise it meet in the store only."""


class Gate(Wrapper):
    """Holds requests back until it is opened: for a process, or a machine, that stands still."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._open = asyncio.Event()
        self._open.set()
        self.only: Operation | None = None
        """Hold back these requests only."""
        self.held = 0
        """How many requests wait now."""

    def shut(self, only: Operation | None = None) -> None:
        self.only = only
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        if self.only in (None, operation):
            self.held += 1
            try:
                await self._open.wait()
            finally:
                self.held -= 1
        return await send()


async def eventually(condition: Callable[[], object], timeout: float = WAIT) -> None:
    """Until `condition` holds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Actor:
    """A node in a task of its own, behind a network of its own that can fail."""

    def __init__(self, store: Store, settings: NodeSettings, *, clock: Clock, feed: bool, **join: Any) -> None:
        if not feed:
            join["advertise"] = NOWHERE
        self.gate = Gate(store)
        self.network = Faulty(self.gate)
        self.clock = clock
        self._cluster = Cluster(self.network, clock=clock)
        self._settings, self._join = settings, join
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        self.node: Node

    async def start(self) -> Node:
        """Join. Raises what joining raises."""
        joined = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(joined))
        self.node = await joined
        return self.node

    async def _live(self, joined: asyncio.Future[Node]) -> None:
        try:
            async with self._cluster.join(settings=self._settings, **self._join) as node:
                joined.set_result(node)
                await self._leaving.wait()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not joined.done():
                joined.set_exception(error)
            else:
                self.failure = error

    @property
    def ended(self) -> bool:
        return self._task is None or self._task.done()

    async def leave(self) -> None:
        """Leave properly; a leader releases the leadership. Raises what made the node fail."""
        self._leaving.set()
        await self.wait()

    async def wait(self) -> None:
        """Until the node has ended. Raises what made it fail."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self.failure is not None:
            raise self.failure

    async def kill(self) -> None:
        """Nothing of this node reaches the store any more. (Requests that are there already may still act.)"""
        self.network.outage()
        if self._task is None:
            return
        # The second cancel is for a leader that wants to release the leadership first.
        while not self._task.done():
            self._task.cancel()
            await asyncio.sleep(0.01)


class Stage:
    """A cluster whose members come and go."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cluster = Cluster(store)
        self.recorder = Recorder(self.cluster)
        self.actors: list[Actor] = []

    async def actor(
        self,
        *,
        can_lead: bool = True,
        store: Store | None = None,
        clock: Clock | None = None,
        az: str = "",
        directory: Path | None = None,
        feed: bool = False,
        **settings: Any,
    ) -> Actor:
        """A node joins; without a feed, others find it in the store only, and its gate shuts all it has."""
        settings["directory"] = directory
        actor = Actor(
            store or self.store,
            replace(FAST, **settings),
            clock=clock or Clock(),
            feed=feed,
            can_lead=can_lead,
            az=az,
            address="127.0.0.1:0",
        )
        self.actors.append(actor)
        await actor.start()
        return actor

    async def leader(self, **how: Any) -> Actor:
        """A node joins and leads, and there is a table to write to."""
        actor = await self.actor(**how)
        await actor.node.wait_until_leader(timeout=WAIT)
        await self.recorder.prepare(actor.node)
        return actor

    async def follower(self, **how: Any) -> Actor:
        """A node joins that never leads."""
        return await self.actor(can_lead=False, **how)

    async def check(self, *actors: Actor) -> None:
        """The checker's verdict on the store, and on these nodes or all that live."""
        chosen = actors or [actor for actor in self.actors if not actor.ended]
        await self.recorder.check(*(actor.node for actor in chosen))

    async def close(self) -> None:
        for actor in self.actors:
            await actor.kill()
            await actor.network.close()


@contextlib.asynccontextmanager
async def stage(store: Store | None = None, **init: Any) -> AsyncIterator[Stage]:
    """A new cluster. At the end whatever still lives is killed."""
    made = Stage(store or memory())
    await made.cluster.init("lol", **init)
    try:
        yield made
    finally:
        await made.close()
