"""A leader that its followers hear, and that cannot write to the store: how long nobody can write."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from littlebigcluster import LbcError, NodeSettings
from littlebigcluster.testing import Simulation, run

SLACK_SECONDS = 0.7
"""For one look, and the claim itself."""


@pytest.mark.parametrize("leader_timeout", [2.0, 10.0])
@pytest.mark.parametrize(
    ("way", "writing"), [("cut_from", False), ("cut_from", True), ("cut_to", True), ("refused", False)]
)
def test_a_leader_without_the_store_is_replaced_after_leader_timeout(
    leader_timeout: float, way: str, writing: bool
) -> None:
    """Since the store last confirmed a write to it, whenever it was cut off; or since another node has seen an epoch
    that is durable though the leader never hears of it."""
    settings = NodeSettings(readers=1, leader_timeout=leader_timeout, poll_interval=0.2, write_timeout=2.0)

    async def story(simulation: Simulation) -> float:
        await simulation.cluster.init()
        a = await simulation.join("a", settings=settings, can_lead=True)
        await a.node.wait_until_leader()
        b = await simulation.join("b", settings=settings, can_lead=True)
        await a.node.execute("CREATE TABLE t(x)")
        await b.node._reporter.connected.until(bool)
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
