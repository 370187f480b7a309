"""A leader that is offered far more than it manages leads on: what it admits is soon durable, the rest is refused."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from littlebigcluster import LbcError, Node, Overloaded
from littlebigcluster.store import Slow
from tests.scenarios.stage import WAIT, Stage, eventually, memory, stage

TRANSACTION_SECONDS = 0.005
CAPACITY = 1 / TRANSACTION_SECONDS
QUEUE = 100
SECONDS = 5.0
LEAST = 250
"""So many are acknowledged before it ends, however slow the machine is."""


def insert(db: sqlite3.Connection, number: int) -> None:
    time.sleep(TRANSACTION_SECONDS)
    db.execute("INSERT INTO load VALUES (?)", (number,))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Load:
    """Writes at a fixed rate, whatever becomes of those before; a fifth of them through the follower."""

    def __init__(self, leader: Node, follower: Node) -> None:
        self.leader, self.follower = leader, follower
        self.before: dict[int, int] = {}
        """How many others were acknowledged while each of those that were was waiting."""
        self.epochs: dict[int, int] = {}
        """How many epochs came meanwhile."""
        self.refused: set[int] = set()
        self.refused_elsewhere = 0
        self.other: list[LbcError] = []

    async def write(self, number: int) -> None:
        acknowledged, epoch = len(self.before), self.leader.epoch.value
        try:
            if number % 5:
                await self.leader.transaction(lambda db: insert(db, number))
            else:
                await self.follower.call("insert", number=number)
            self.before[number] = len(self.before) - acknowledged
            self.epochs[number] = self.leader.epoch.value - epoch
        except Overloaded:
            self.refused.add(number)
            self.refused_elsewhere += number % 5 == 0
        except LbcError as error:
            self.other.append(error)

    async def offer(self, rate: float) -> None:
        started, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as writes:
            while (elapsed := time.monotonic() - started) < SECONDS or (len(self.before) < LEAST and elapsed < WAIT):
                while number < elapsed * rate:
                    writes.create_task(self.write(number))
                    number += 1
                await asyncio.sleep(0.01)

    async def check(self) -> None:
        rows = [number for (number,) in await self.leader.read("SELECT number FROM load", consistency="strong")]
        assert len(rows) == len(set(rows)), "nothing is there twice"
        assert self.before.keys() <= set(rows), "what was acknowledged is there"
        assert self.refused.isdisjoint(rows), "what was refused is not"
        await self.follower.epoch.until(lambda epoch: epoch >= self.leader.epoch.value, timeout=10)
        assert await self.follower.read("SELECT count(*) FROM load") == [(len(rows),)]


async def prepared(s: Stage) -> Load:
    """A leader, and a standby that it feeds."""
    a = await s.leader(feed=True, max_queued_writes=QUEUE, leader_timeout=1.5)
    a.node._procedures["insert"] = insert  # type: ignore[index]
    b = await s.actor(feed=True, leader_timeout=1.5)
    await eventually(lambda: b.node._reporter.connected.value)
    await a.node.execute("CREATE TABLE load(number INTEGER)")
    return Load(a.node, b.node)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [3, 10])
async def test_an_overloaded_leader_leads_on(factor: int) -> None:
    async with stage(Slow(memory(), put=0.03)) as s:
        load = await prepared(s)
        broken: list[bool] = []
        watch = asyncio.create_task(_watch(load.follower, broken))
        before = resident_bytes()
        await load.offer(factor * CAPACITY)
        watch.cancel()
        assert load.leader.is_leader
        assert not load.follower.is_leader
        assert load.leader.term == 1
        assert broken == [], "the feed, with its keep-alives, went on"
        assert resident_bytes() - before < 100 << 20
        assert load.other == []
        assert len(load.before) >= LEAST
        assert len(load.refused) > len(load.before)
        assert load.refused_elsewhere
        assert max(load.before.values()) < 5 * QUEUE, "no longer than those take that may wait"
        await load.check()


async def _watch(node: Node, broken: list[bool]) -> None:
    await node._reporter.connected.until(lambda up: not up)
    broken.append(True)


@pytest.mark.slow
async def test_a_slow_store_makes_writes_wait_and_then_refuses_them() -> None:
    async with stage(Slow(memory(), put=0.7)) as s:
        load = await prepared(s)
        await load.offer(2 * CAPACITY)
        assert load.leader.is_leader
        assert load.leader.term == 1
        assert load.refused
        assert load.other == []
        assert max(load.epochs.values()) <= 6
        await load.check()
