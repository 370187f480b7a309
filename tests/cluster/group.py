"""Nodes in one process for the tests of what happens between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from littlebigcluster import Cluster, Node
from littlebigcluster.clock import Clock
from littlebigcluster.cluster.certificates import load_authorities
from littlebigcluster.cluster.join import Join
from littlebigcluster.net import Client, NodeIdentity
from littlebigcluster.store import Store
from littlebigcluster.store.wrappers import Counting
from tests.scenarios.stage import FAST, WAIT, memory

HUGE = 600.0
"""A poll interval that no test lives to see."""


async def eventually(condition: Callable[[], object], what: str = "", timeout: float = WAIT) -> None:
    """Until `condition` holds."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never came true: {what or condition}") from None


class Group:
    """A cluster, and its nodes by hand: each may end when the test says so."""

    def __init__(self, store: Store) -> None:
        self.store, self.cluster = store, Cluster(store)
        self._joins: dict[Node, Join] = {}

    async def node(self, *, store: Store | None = None, settings: dict[str, Any] | None = None, **join: Any) -> Node:
        """Join; by default on a free port of this machine."""
        join = {"address": "127.0.0.1:0", **join}
        cluster = Cluster(store) if store is not None else self.cluster
        joining = cluster.join(settings=replace(FAST, **(settings or {})), **join)
        node = await joining.__aenter__()
        self._joins[node] = joining
        return node

    async def leader(self, **how: Any) -> Node:
        """Join and lead, with a table to write to."""
        node = await self.node(can_lead=True, **how)
        await node.wait_until_leader(timeout=WAIT)
        await node.execute("CREATE TABLE IF NOT EXISTS job(name)")
        return node

    async def leave(self, node: Node) -> None:
        """Leave properly."""
        await self._joins.pop(node).__aexit__(None, None, None)

    async def crash(self, node: Node) -> None:
        """Gone without a word: nothing is released, no goodbye is said."""
        joining = self._joins.pop(node)
        joining._main.remove_done_callback(joining._on_end)
        joining._main.cancel()
        await asyncio.wait([joining._main])
        await node._close()
        await joining._directory.aclose()

    async def unfeed(self, node: Node, leader: Node) -> None:
        """All streams end, and that of this node is not made again."""

        def refuse(address: str) -> Client:
            raise ValueError(f"{address} is out of reach")

        node._reporter._connect = refuse
        assert leader._presence is not None
        for subscriber in leader._presence._feed._subscribers:
            subscriber.end()
        await eventually(lambda: not node._reporter.connected.value)

    async def close(self) -> None:
        for node in list(self._joins):
            await self.leave(node)


@contextlib.asynccontextmanager
async def group(store: Store | None = None) -> AsyncIterator[Group]:
    made = Group(store or memory())
    await made.cluster.init("lol")
    try:
        yield made
    finally:
        await made.close()


def counted(store: Store) -> Counting:
    return Counting(store)


async def all_fed(*followers: Node) -> None:
    await eventually(lambda: all(node._reporter.connected.value for node in followers), "all are fed")


async def at_rest(*followers: Node) -> None:
    """They are fed, and have looked at the store once more, as each does when its feed comes up."""
    await all_fed(*followers)
    await eventually(lambda: all(node._follower._relaxed for node in followers), "all have looked")


async def identity(store: Store, node_id: str, lifetime: timedelta = timedelta(hours=1)) -> NodeIdentity:
    """What a node of this cluster would show."""
    authorities = await load_authorities(store)
    return authorities.all[0].mint(node_id, ["127.0.0.1"], lifetime, Clock(), trust=authorities.all[1:])


@contextlib.asynccontextmanager
async def member_client(group: Group, node: Node, member_id: str) -> AsyncIterator[Client]:
    """A client that is a member of the cluster, without being a node."""
    tls = await identity(group.store, member_id)
    async with Client(f"https://{node.address}", tls=tls, clock=Clock()) as client:
        yield client


def report(member_id: object, session: object = "s", **changes: Any) -> bytes:
    """The body of a report."""
    member = {
        "id": str(member_id), "address": "127.0.0.1:9", "az": "", "roles": [], "can_lead": False,
        "version": "1", "metadata": {}, "epoch": 0, **changes,
    }  # fmt: skip
    return json.dumps({"member": member, "session": session}).encode()


async def within(awaitable: Awaitable[Any], seconds: float = WAIT) -> Any:
    async with asyncio.timeout(seconds):
        return await awaitable
