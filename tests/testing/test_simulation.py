"""What users may rely on in a simulation: time, machines that stand still or die, and wires that are cut."""

from __future__ import annotations

import asyncio
import time

import pytest

from littlebigcluster import NodeSettings, NotLeader, StoreUnavailable
from littlebigcluster.testing import Member, Simulation, run

QUICK = NodeSettings(readers=1, epoch_interval=0, leader_timeout=5, write_timeout=5)


async def leader(simulation: Simulation) -> Member:
    await simulation.cluster.init()
    member = await simulation.join("a", can_lead=True, settings=QUICK)
    await member.node.wait_until_leader()
    await member.node.execute("CREATE TABLE t(x)")
    return member


def test_a_day_passes_in_a_moment() -> None:
    async def main(simulation: Simulation) -> float:
        begun = simulation.loop.now
        await asyncio.sleep(86400)
        return simulation.loop.now - begun

    begun = time.monotonic()
    assert run(main) == pytest.approx(86400, abs=1)
    assert time.monotonic() - begun < 5


def test_whoever_waits_for_nothing_is_told() -> None:
    async def main(simulation: Simulation) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="everybody waits"):
        run(main)


def test_a_paused_machine_does_nothing_and_a_suspended_one_does_not_notice() -> None:
    async def main(simulation: Simulation) -> list[tuple[float, float, float]]:
        a = await leader(simulation)
        clock, seen = a.node._clock, []

        async def tick() -> None:
            before = clock.monotonic(), clock.boottime(), simulation.loop.now
            await asyncio.sleep(1)
            after = clock.monotonic(), clock.boottime(), simulation.loop.now
            seen.append((after[0] - before[0], after[1] - before[1], after[2] - before[2]))

        for suspended in (False, True):
            task = a.spawn(tick())
            await asyncio.sleep(0.1)
            await simulation.pause(a, 100, suspended=suspended)
            await task
        return seen

    paused, suspended = run(main)
    assert paused == pytest.approx((100.1, 100.1, 100.1), abs=0.5)
    assert suspended == pytest.approx((1, 101, 101), abs=0.5)


def test_who_is_cut_off_neither_writes_nor_leads_for_long() -> None:
    async def main(simulation: Simulation) -> None:
        a = await leader(simulation)
        b = await simulation.join("b", can_lead=True, settings=QUICK)
        simulation.partition([a], [b])
        simulation.store.cut_from.add("a")
        await b.node.wait_until_leader(timeout=60)
        await b.node.execute("INSERT INTO t VALUES (1)")
        simulation.heal()
        await a.node.epoch.until(lambda epoch: epoch >= b.node.epoch.value, timeout=60)
        assert not a.node.is_leader
        assert await a.node.read("SELECT x FROM t") == [(1,)]

    run(main)


def test_a_dead_machine_comes_back_with_its_disk() -> None:
    async def main(simulation: Simulation) -> None:
        a = await leader(simulation)
        await simulation.crash(a, silently=True)
        assert not a.alive
        again = await simulation.join(disk_of=a, can_lead=True, settings=QUICK)
        assert [path.parent.name for path in again.directory.glob("replica-*/replica.db")] == [
            path.parent.name for path in a.directory.with_suffix(".crashed").glob("replica-*/replica.db")
        ]
        await again.node.wait_until_leader(timeout=60)

    run(main)


def test_a_store_that_is_down_is_an_outage_for_all() -> None:
    async def main(simulation: Simulation) -> None:
        await leader(simulation)
        simulation.store.down = True
        with pytest.raises(StoreUnavailable):
            await simulation.join("b", settings=QUICK)
        assert simulation.store.faults["down"]

    run(main)


def test_while_the_disk_is_full_nobody_can_lead_there() -> None:
    async def main(simulation: Simulation) -> None:
        a = await leader(simulation)
        a.machine.disk_full = True
        await asyncio.sleep(1)
        with pytest.raises(Exception, match=r"disk|full|space|EFBIG|too large|outcome|durable|lead"):
            await a.node.execute("INSERT INTO t VALUES (zeroblob(100000))")
        a.machine.disk_full = False
        await a.node.wait_until_leader(timeout=60)
        while True:
            try:
                await a.node.execute("INSERT INTO t VALUES (2)")
                break
            except NotLeader:
                await asyncio.sleep(1)

    run(main)
