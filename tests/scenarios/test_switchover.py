"""A planned change of the leader costs three PUTs and a moment, also for those who write through other nodes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from littlebigcluster import Node
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.store import CreateOutcome, Slow, open_store
from littlebigcluster.store.wrappers import Wrapper
from tests.cluster.group import Group, all_fed, group
from tests.scenarios.stage import WAIT

PUT_SECONDS = 0.03
MOMENT_SECONDS = 0.1
"""What DESIGN allows beyond the PUTs."""

PATIENT: dict[str, Any] = {"leader_timeout": 3600, "poll_interval": 30, "member_timeout": 3600}
"""Neither silence nor a usual poll can be the reason for anything."""


class Noting(Wrapper):
    """Notes which epochs were created."""

    def __init__(self) -> None:
        super().__init__(Slow(open_store("memory://", clock=Clock()), put=PUT_SECONDS))
        self.epochs: list[str] = []

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        if key.endswith(".wal"):
            self.epochs.append(key)
        return await super().create(key, body)


async def trio(g: Group) -> tuple[Node, Node, Node]:
    """A leader, a standby and a follower that all know each other."""
    a = await g.leader(settings=PATIENT)
    b, c = await g.node(can_lead=True, settings=PATIENT), await g.node(settings=PATIENT)
    await all_fed(b, c)
    for node in (a, b, c):
        await node.members.until(lambda members: len(members) == 3, timeout=WAIT)
    return a, b, c


async def hand_over(g: Group, how: str, a: Node, b: Node) -> float:
    """Seconds until a write of the next leader is durable. Waits for everything to be at rest first."""
    await b.epoch.until(lambda epoch: epoch >= a.epoch.value, timeout=WAIT)

    async def first_write() -> float:
        await b.wait_until_leader(timeout=WAIT)
        await b.execute("INSERT INTO job VALUES ('next')")
        return time.perf_counter()

    durable = asyncio.create_task(first_write())
    await asyncio.sleep(0.05)
    called_at = time.perf_counter()
    await (a.step_down() if how == "step_down" else g.leave(a))
    return await durable - called_at


@pytest.mark.parametrize("how", ["step_down", "leave"])
async def test_three_puts_and_a_moment(how: str) -> None:
    taken = []
    for _ in range(3):  # the machine may be busy with something else
        store = Noting()
        async with group(store) as g:
            a, b, _ = await trio(g)
            store.epochs.clear()
            seconds = await hand_over(g, how, a, b)
            release, claim, write = store.epochs
            assert write == names.wal(b.epoch.value)
            assert (release, claim) == (names.wal(b.epoch.value - 2), names.wal(b.epoch.value - 1))
            taken.append(seconds)
        if seconds <= 3 * PUT_SECONDS + MOMENT_SECONDS:
            return
    pytest.fail(f"never within 3 PUTs and {MOMENT_SECONDS:g} s: {taken}")


@pytest.mark.parametrize("how", ["step_down", "leave"])
async def test_who_writes_through_a_follower_waits_for_a_moment_only(how: str) -> None:
    async with group(Noting()) as g:
        a, b, c = await trio(g)
        stop = False
        taken: list[float] = []

        async def write() -> None:
            while not stop:
                began = time.perf_counter()
                await c.execute("INSERT INTO job VALUES ('through c')")
                taken.append(time.perf_counter() - began)

        writing = asyncio.create_task(write())
        await asyncio.sleep(0.2)
        await hand_over(g, how, a, b)
        await asyncio.sleep(0.2)
        stop = True
        async with asyncio.timeout(WAIT):
            await writing
        assert max(taken) < 1.5, "far less than poll_interval"
        rows = await c.read("SELECT count(*) FROM job WHERE name = 'through c'", consistency="strong")
        assert rows == [(len(taken),)]


async def test_a_node_that_has_just_stepped_down_takes_over_at_once_when_it_is_its_turn_again() -> None:
    async with group(Noting()) as g:
        a, b, _ = await trio(g)
        await hand_over(g, "step_down", a, b)
        await all_fed(a)
        await b.members.until(lambda members: len(members) == 3, timeout=WAIT)
        assert await hand_over(g, "step_down", b, a) < 1.5
        assert a.term == 3
