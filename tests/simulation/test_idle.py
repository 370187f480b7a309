"""What a cluster that does nothing costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from littlebigcluster import NodeSettings
from littlebigcluster.testing import Simulation, run


@pytest.mark.parametrize("leader_timeout", [3.0, 20.0])
@pytest.mark.parametrize("can_lead", [False, True])
def test_a_node_that_is_fed_looks_at_the_store_once_in_three_quarters_of_leader_timeout(
    leader_timeout: float, can_lead: bool
) -> None:
    """Also when the leader is idle, and hears from the store only every third of that."""
    settings = NodeSettings(readers=1, leader_timeout=leader_timeout, poll_interval=0.2)

    async def story(simulation: Simulation) -> int:
        await simulation.cluster.init()
        a = await simulation.join("a", settings=settings, can_lead=True)
        await a.node.wait_until_leader()
        b = await simulation.join("b", settings=settings, can_lead=can_lead)
        await b.node._reporter.connected.until(bool)
        await asyncio.sleep(leader_timeout)
        store: Any = b.node._follower._store
        get, looks = store.get, []

        async def counted(key: str) -> bytes | None:
            looks.append(key)
            return await get(key)  # type: ignore[no-any-return]

        store.get = counted
        await asyncio.sleep(30 * leader_timeout)
        return len(looks)

    assert 38 <= run(story, seed=1) <= 46  # now and then a request, or the word of one, takes long
