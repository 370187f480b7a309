"""More writes than may wait: refused as Overloaded wherever they come from, and certainly not written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from littlebigcluster import Node, Overloaded
from littlebigcluster.cluster.clients import LeaderClient
from littlebigcluster.cluster.statements import execute, to_json
from littlebigcluster.net import Answer, Request, Router
from tests.cluster.group import Group, eventually, group
from tests.scenarios.stage import WAIT, memory

INSERT = "INSERT INTO job(name) VALUES (?)"


@asynccontextmanager
async def blocked(leader: Node) -> AsyncIterator[None]:
    """The leader's writer has its hands full."""
    release = threading.Event()
    first = leader.submit(lambda db: release.wait(WAIT))
    await asyncio.sleep(0.05)
    try:
        yield
    finally:
        release.set()
        await first


async def names(node: Node) -> list[str]:
    return [name for (name,) in await node.read("SELECT name FROM job ORDER BY name", consistency="strong")]


@pytest.fixture
async def nodes() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def test_the_leaders_refusal_reaches_the_node_that_asked(nodes: Group) -> None:
    leader = await nodes.leader(settings={"max_queued_writes": 3})
    follower = await nodes.node()
    await eventually(lambda: follower._reporter.connected.value)
    async with blocked(leader):
        waiting = [asyncio.create_task(follower.execute(INSERT, (name,))) for name in ("a", "b")]
        assert leader._leadership is not None
        writer = leader._leadership.writer
        assert writer is not None
        await eventually(lambda: writer._untaken == 3)
        with pytest.raises(Overloaded, match="waiting on the leader already"):
            await follower.execute(INSERT, ("refused",))
        with pytest.raises(Overloaded, match="waiting on the leader already"):
            await leader.execute(INSERT, ("refused",), key="mine")
        client: LeaderClient = follower.leader_client
        body = to_json({"key": "k", "kind": "execute", "arguments": execute(INSERT, ("refused",)).arguments})
        answer = await client.request("POST", "/.lbc/write", body=body.encode())
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    await asyncio.gather(*waiting)
    await follower.execute(INSERT, ("c",))
    assert await names(follower) == ["a", "b", "c"]


async def test_a_node_holds_a_bounded_number_of_writes_for_a_leader_that_is_not_there(nodes: Group) -> None:
    leader = await nodes.leader()
    follower = await nodes.node(settings={"max_queued_writes": 2, "max_queued_bytes": 10_000})
    await nodes.crash(leader)
    held = [asyncio.create_task(follower.execute(INSERT, (name,))) for name in ("a", "b")]
    await eventually(lambda: follower._forwarder._in_flight == 2)
    with pytest.raises(Overloaded, match="waiting for the leader already \\(max_queued_writes"):
        await follower.execute(INSERT, ("refused",))
    held.pop().cancel()
    await eventually(lambda: follower._forwarder._in_flight == 1)
    with pytest.raises(Overloaded, match="waiting for the leader already \\(max_queued_bytes"):
        await follower.execute(INSERT, ("x" * 10_000,))
    await nodes.leader()
    await asyncio.gather(*held)
    await follower.execute(INSERT, ("x" * 20_000,))  # alone it may be larger
    assert await names(follower) == ["a", "x" * 20_000]


async def test_bodies_of_requests_are_bounded_together() -> None:
    release = asyncio.Event()

    async def hold(request: Request) -> Answer:
        await request.body()
        await release.wait()
        return Answer.json({})

    router = Router(max_body_bytes=1000, max_bodies_bytes=1500)
    router.add("POST", "/", hold)

    async def post(size: int) -> int:
        statuses = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": bytes(size), "more_body": False}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await router({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        (status,) = statuses
        assert isinstance(status, int)
        return status

    first = asyncio.create_task(post(1000))
    await asyncio.sleep(0)
    assert await post(501) == 503
    second = asyncio.create_task(post(500))
    await asyncio.sleep(0)
    assert await post(1) == 503
    release.set()
    assert (await first, await second) == (200, 200)
    assert await post(1000) == 200
