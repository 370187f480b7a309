"""A planned change of the leader costs three PUTs, and waits for no usual poll, also for those who write through other
nodes. That it takes a moment only is shown on virtual time: `tests/simulation/test_switchover.py`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from littlebigcluster import Node
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.store import CreateOutcome, Slow, open_store
from littlebigcluster.store.wrappers import Wrapper
from tests.cluster.group import Group, all_fed, eventually, group
from tests.scenarios.stage import WAIT

PUT_SECONDS = 0.03

PATIENT: dict[str, Any] = {"leader_timeout": 3600, "poll_interval": 3600, "member_timeout": 3600}
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


async def hand_over(g: Group, how: str, a: Node, b: Node) -> None:
    """Until a write of the next leader is durable. Waits for everything to be at rest first."""
    await b.epoch.until(lambda epoch: epoch >= a.epoch.value, timeout=WAIT)

    async def first_write() -> None:
        await b.wait_until_leader(timeout=WAIT)
        await b.execute("INSERT INTO job VALUES ('next')", timeout=WAIT)

    durable = asyncio.create_task(first_write())
    await asyncio.sleep(0.05)
    await (a.step_down() if how == "step_down" else g.leave(a))
    await durable


@pytest.mark.parametrize("how", ["step_down", "leave"])
async def test_three_puts(how: str) -> None:
    store = Noting()
    async with group(store) as g:
        a, b, _ = await trio(g)
        store.epochs.clear()
        await hand_over(g, how, a, b)
        release, claim, write = store.epochs
        assert write == names.wal(b.epoch.value)
        assert (release, claim) == (names.wal(b.epoch.value - 2), names.wal(b.epoch.value - 1))


@pytest.mark.parametrize("how", ["step_down", "leave"])
async def test_who_writes_through_a_follower_does_not_wait_for_a_poll(how: str) -> None:
    async with group(Noting()) as g:
        a, b, c = await trio(g)
        stop, done = False, 0

        async def write() -> None:
            nonlocal done
            while not stop:
                await c.execute("INSERT INTO job VALUES ('through c')", timeout=WAIT)
                done += 1

        writing = asyncio.create_task(write())
        await eventually(lambda: done)
        await hand_over(g, how, a, b)
        before = done
        await eventually(lambda: done > before + 1)
        stop = True
        async with asyncio.timeout(WAIT):
            await writing
        rows = await c.read("SELECT count(*) FROM job WHERE name = 'through c'", consistency="strong")
        assert rows == [(done,)]


async def test_a_node_that_has_just_stepped_down_takes_over_when_it_is_its_turn_again() -> None:
    async with group(Noting()) as g:
        a, b, _ = await trio(g)
        await hand_over(g, "step_down", a, b)
        await all_fed(a)
        await b.members.until(lambda members: len(members) == 3, timeout=WAIT)
        await hand_over(g, "step_down", b, a)
        assert a.term == 3
