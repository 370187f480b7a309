"""How long nobody can write while the leader changes as planned: three PUTs and a moment, on virtual time."""

from __future__ import annotations

import asyncio
from math import exp
from statistics import median

import pytest

from littlebigcluster import NodeSettings
from littlebigcluster.testing import Simulation, run
from littlebigcluster.testing.simulation import Member

MEDIAN_SECONDS = 0.03
PUT_SECONDS = MEDIAN_SECONDS * exp(0.7**2 / 2)
"""The mean: latencies are spread by a lognormal."""
MOMENT_SECONDS = 0.1
"""What DESIGN allows beyond the PUTs."""

PATIENT = NodeSettings(readers=1, epoch_interval=0, leader_timeout=3600, poll_interval=30, member_timeout=3600)
"""Neither silence nor a usual poll can be the reason for anything."""


async def trio(simulation: Simulation) -> tuple[Member, Member, Member]:
    """A leader, a standby and a follower that all know each other, and a table."""
    simulation.store.weather.latency_seconds = MEDIAN_SECONDS
    await simulation.cluster.init()
    a = await simulation.join("a", settings=PATIENT, can_lead=True)
    await a.node.wait_until_leader()
    b = await simulation.join("b", settings=PATIENT, can_lead=True)
    c = await simulation.join("c", settings=PATIENT)
    await a.node.execute("CREATE TABLE job(name)")
    for member in (a, b, c):
        await member.node.members.until(lambda members: len(members) == 3)
        await member.node.epoch.until(lambda epoch: epoch >= a.node.epoch.value)
    await asyncio.sleep(1)
    return a, b, c


async def hand_over(simulation: Simulation, how: str, a: Member, b: Member) -> float:
    """Seconds until a write of the next leader is durable."""

    async def first_write() -> float:
        await b.node.wait_until_leader(timeout=60)
        await b.node.execute("INSERT INTO job VALUES ('next')")
        return simulation.loop.now

    durable = b.spawn(first_write())
    called_at = simulation.loop.now
    await (a.spawn(a.node.step_down()) if how == "step_down" else a.leave())
    return await durable - called_at


@pytest.mark.parametrize("how", ["step_down", "leave"])
def test_three_puts_and_a_moment(how: str) -> None:
    async def story(simulation: Simulation) -> float:
        a, b, _ = await trio(simulation)
        return await hand_over(simulation, how, a, b)

    taken = [run(story, seed=seed) for seed in range(9)]
    assert median(taken) <= 3 * PUT_SECONDS + MOMENT_SECONDS, taken


@pytest.mark.parametrize("how", ["step_down", "leave"])
def test_who_writes_through_a_follower_waits_for_a_moment_only(how: str) -> None:
    async def story(simulation: Simulation) -> float:
        a, b, c = await trio(simulation)
        taken = [0.0]

        async def write() -> None:
            while True:
                began = simulation.loop.now
                await c.node.execute("INSERT INTO job VALUES ('through c')")
                taken.append(simulation.loop.now - began)

        c.spawn(write())
        await asyncio.sleep(0.5)
        await hand_over(simulation, how, a, b)
        await asyncio.sleep(2)
        return max(taken)

    taken = [run(story, seed=seed) for seed in range(5)]
    assert max(taken) < 1.0, taken


def test_a_node_that_has_just_stepped_down_takes_over_at_once_when_it_is_its_turn_again() -> None:
    async def story(simulation: Simulation) -> float:
        a, b, _ = await trio(simulation)
        await hand_over(simulation, "step_down", a, b)
        await a.node._reporter.connected.until(bool)
        await b.node.members.until(lambda members: len(members) == 3)
        took = await hand_over(simulation, "step_down", b, a)
        assert a.node.term == 3
        return took

    taken = [run(story, seed=seed) for seed in range(5)]
    assert max(taken) < 1.0, taken
