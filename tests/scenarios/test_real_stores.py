"""The life of a cluster on real object stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from littlebigcluster import AlreadyInitialized, Cluster, UnsafeStore
from littlebigcluster.clock import Clock
from littlebigcluster.store import Counting, Store, open_store
from tests.scenarios.stage import WAIT, eventually, stage

STORES = [
    pytest.param("s3_url", marks=pytest.mark.server("ministack"), id="ministack"),
    pytest.param("ceph_url", marks=pytest.mark.server("ceph"), id="ceph"),
    pytest.param("azure_url", marks=pytest.mark.server("azurite"), id="azurite"),
]


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = open_store(request.getfixturevalue(request.param), clock=Clock())
    yield store
    await store.close()


@pytest.mark.parametrize("store", STORES, indirect=True)
async def test_a_cluster_lives_on_a_real_store(store: Store) -> None:
    """Leader, standby and follower; writes and reads of all kinds; a death, a freeze, a release; snapshots; a join."""
    async with stage(store) as s:
        with pytest.raises(AlreadyInitialized):
            await s.cluster.init("other")
        # Shared machines and a store with fsync: slower than in memory.
        slower = {"leader_timeout": 3.0, "snapshot_epochs": 8}
        a = await s.leader(**slower)
        b = await s.actor(feed=True, **slower)
        c = await s.follower(feed=True, **slower)
        await s.recorder.writes(a.node, 20)
        for actor in (a, b, c):
            await s.recorder.read(actor.node, consistency="strong")
        await s.recorder.read(c.node, at_least=a.node.epoch.value)

        await a.kill()
        await b.node.wait_until_leader(timeout=WAIT)
        await s.recorder.writes(b.node, 20)
        await s.recorder.forward(c.node)
        await s.recorder.read(c.node, consistency="strong")

        d = await s.actor(**slower)
        await b.leave()
        await d.node.wait_until_leader(timeout=WAIT)
        e = await s.actor(**slower)
        d.gate.shut()
        late = asyncio.create_task(s.recorder.write(d.node))
        await e.node.wait_until_leader(timeout=WAIT)
        await s.recorder.writes(e.node, 10)
        d.gate.open()
        assert await late == "refused"

        while not e.node._local.since_snapshot.epoch:
            await s.recorder.write(e.node)
        counting = Counting(store)
        await s.follower(store=counting)
        assert counting.requests["get"] < e.node.epoch.value
        await s.check()
        # A moved leader may leave a request behind; all others were acknowledged.
        assert s.recorder.history.count("acknowledged") >= 51


@pytest.mark.parametrize("store", STORES, indirect=True)
async def test_many_claim_at_once_on_a_real_store(store: Store) -> None:
    async with stage(store) as s:
        await asyncio.gather(*(s.actor(leader_timeout=60.0) for _ in range(4)))
        await eventually(lambda: any(actor.node.is_leader for actor in s.actors))
        (leader,) = [actor for actor in s.actors if actor.node.is_leader]
        await s.recorder.prepare(leader.node)
        await s.recorder.writes(leader.node, 10)
        await s.check()
        assert {actor.node.term for actor in s.actors} == {1}


@pytest.mark.server("s3rver")
async def test_a_store_that_ignores_conditions_is_refused(unsafe_url: str) -> None:
    with pytest.raises(UnsafeStore, match="conditional"):
        await Cluster(unsafe_url).init("lol")
