"""A leader that its followers hear, and that cannot write to the store: how long nobody can write."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from littlebigcluster import LbcError, NodeSettings
from littlebigcluster.testing import Member, Simulation, run

SLACK_SECONDS = 0.7
"""For one look, and the claim itself."""


async def leader_and_standby(
    simulation: Simulation, leader_timeout: float, *, write_timeout: float
) -> tuple[Member, Member]:
    """Both in a new cluster with a table; the standby is fed."""
    settings = NodeSettings(readers=1, leader_timeout=leader_timeout, poll_interval=0.2, write_timeout=write_timeout)
    await simulation.cluster.init()
    a = await simulation.join("a", settings=settings, can_lead=True)
    await a.node.wait_until_leader()
    b = await simulation.join("b", settings=settings, can_lead=True)
    await a.node.execute("CREATE TABLE t(x)")
    await b.node._reporter.connected.until(bool)
    return a, b


@pytest.mark.parametrize("leader_timeout", [2.0, 10.0])
@pytest.mark.parametrize(
    ("way", "writing"), [("cut_from", False), ("cut_from", True), ("cut_to", True), ("refused", False)]
)
def test_a_leader_without_the_store_is_replaced_after_leader_timeout(
    leader_timeout: float, way: str, writing: bool
) -> None:
    """Since the store last confirmed a write to it, whenever it was cut off; or since another node has seen an epoch
    that is durable though the leader never hears of it."""

    async def story(simulation: Simulation) -> float:
        a, b = await leader_and_standby(simulation, leader_timeout, write_timeout=2.0)
        await asyncio.sleep(2 * leader_timeout * simulation.loop.chance.random())
        assert a.node._leadership is not None
        since = simulation.loop.now - a.node._leadership.store_age
        getattr(simulation.store, way).add("a")
        write = asyncio.create_task(a.node.execute("INSERT INTO t VALUES (1)")) if writing else None
        await b.node.wait_until_leader(timeout=100 * leader_timeout)
        took = simulation.loop.now - since
        if write is not None:
            with contextlib.suppress(LbcError):
                await write
        return took

    unheard = 0.4 * leader_timeout if way == "cut_to" else 0.0
    for seed in range(2):
        assert run(story, seed=seed) < leader_timeout + unheard + SLACK_SECONDS


@pytest.mark.parametrize("leader_timeout", [2.0, 10.0])
def test_a_leader_whose_beacons_get_through_and_epochs_do_not_is_replaced(leader_timeout: float) -> None:
    async def story(simulation: Simulation) -> float:
        a, b = await leader_and_standby(simulation, leader_timeout, write_timeout=2.0)
        await asyncio.sleep(leader_timeout * simulation.loop.chance.random())
        simulation.store.cut_creates.add("a")
        since = simulation.loop.now
        with contextlib.suppress(LbcError):
            await a.node.execute("INSERT INTO t VALUES (1)")
        await b.node.wait_until_leader(timeout=100 * leader_timeout)
        return simulation.loop.now - since

    for seed in range(4):
        assert leader_timeout < run(story, seed=seed) < (2 + 1 / 3) * leader_timeout + SLACK_SECONDS


@pytest.mark.parametrize("leader_timeout", [1.0, 10.0])
@pytest.mark.parametrize("writing", [False, True])
def test_an_outage_for_all_costs_no_failover(leader_timeout: float, writing: bool) -> None:
    """However long it lasts: a write that waited through it is taken after it, when its pause is over."""

    async def story(simulation: Simulation) -> None:
        a, b = await leader_and_standby(simulation, leader_timeout, write_timeout=600.0)
        simulation.store.down = True
        write = asyncio.create_task(a.node.execute("INSERT INTO t VALUES (1)")) if writing else None
        await asyncio.sleep(leader_timeout * (1 + 3 * simulation.loop.chance.random()))
        simulation.store.down = False
        if write is not None:
            await write
        await asyncio.sleep(2 * leader_timeout)
        assert (await a.node.execute("INSERT INTO t VALUES (2)")).epoch > 0
        assert (a.node.term, b.node.term) == (1, 1)

    for seed in range(20):
        run(story, seed=seed)
