"""A node is used on its own event loop, while it runs: all else is said at once, and does not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from littlebigcluster import LbcError, Node
from tests.cluster.group import Group
from tests.scenarios.stage import memory

USES: dict[str, Callable[[Node], Any]] = {
    "execute": lambda node: node.execute("INSERT INTO job VALUES ('x')"),
    "transaction": lambda node: node.transaction(lambda db: None),
    "submit": lambda node: node.submit(lambda db: None),
    "read": lambda node: node.read("SELECT 1"),
    "at": lambda node: node.at(0),
    "rollback": lambda node: node.rollback(0),
    "snapshot": lambda node: node.snapshot(),
    "step_down": lambda node: node.step_down(),
    "set_metadata": lambda node: node.set_metadata({}),
    "leader_client": lambda node: node.leader_client,
    "client": lambda node: node.client("worker"),
    "wait": lambda node: node.epoch.until(lambda epoch: epoch > 1_000_000),
}


async def used(node: Node, use: Callable[[Node], Any]) -> None:
    answer = use(node)
    if asyncio.iscoroutine(answer):
        await answer


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_another_thread_or_event_loop_is_told_so_and_has_no_effect(use: Callable[[Node], Any]) -> None:
    group = Group(memory())
    await group.cluster.init()
    node = await group.leader()
    with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
        await asyncio.to_thread(lambda: asyncio.run(used(node, use)))
    assert await node.read("SELECT * FROM job") == []
    await group.close()


async def test_a_thread_may_ask_the_loop_of_the_node() -> None:
    group = Group(memory())
    await group.cluster.init()
    node, loop = await group.leader(), asyncio.get_running_loop()

    def write() -> int:
        writing = node.execute("INSERT INTO job VALUES ('x')")
        return asyncio.run_coroutine_threadsafe(writing, loop).result(10).epoch

    await asyncio.to_thread(write)
    with node.connection() as db:
        assert db.execute("SELECT * FROM job").fetchall() == [("x",)]
    await group.close()


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_node_that_has_stopped_says_so(use: Callable[[Node], Any]) -> None:
    group = Group(memory())
    await group.cluster.init()
    node = await group.leader()
    await group.leave(node)
    with pytest.raises(LbcError, match="the node has stopped"):
        await used(node, use)
