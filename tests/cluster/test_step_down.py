"""Handing the leadership over, from inside and from outside."""

from __future__ import annotations

import pytest

from littlebigcluster import Cluster, LbcError, NodeSettings, NotLeader

FAST = NodeSettings(epoch_interval=0, leader_timeout=20, poll_interval=0.2)
WAIT = 15


@pytest.fixture
async def cluster() -> Cluster:
    cluster = Cluster("memory://")
    await cluster.init("lol")
    return cluster


async def test_a_leader_steps_down_for_a_standby_at_once_and_stays(cluster: Cluster) -> None:
    async with cluster.join(can_lead=True, settings=FAST) as first:
        await first.wait_until_leader(timeout=WAIT)
        async with cluster.join(can_lead=True, settings=FAST) as second:
            await first.members.until(lambda members: len(members) == 2, timeout=WAIT)
            await first.execute("CREATE TABLE t(x)")
            await first.step_down()
            await second.wait_until_leader(timeout=WAIT)  # far below leader_timeout
            assert not first.is_leader
            assert second.term == 2
            await first.execute("INSERT INTO t VALUES (1)")  # travels
            assert await second.read("SELECT x FROM t") == [(1,)]


async def test_the_chosen_successor_leads(cluster: Cluster) -> None:
    async with cluster.join(can_lead=True, settings=FAST) as first:
        await first.wait_until_leader(timeout=WAIT)
        async with (
            cluster.join(can_lead=True, settings=FAST),
            cluster.join(can_lead=True, settings=FAST) as chosen,
            cluster.join(settings=FAST) as follower,
        ):
            await first.members.until(lambda members: len(members) == 4, timeout=WAIT)
            with pytest.raises(ValueError, match="can lead"):
                await first.step_down(to=follower.id)
            with pytest.raises(ValueError, match="can lead"):
                await first.step_down(to=first.id)
            with pytest.raises(NotLeader):
                await follower.step_down()
            await first.step_down(to=chosen.id)
            await chosen.wait_until_leader(timeout=WAIT)


async def test_alone_a_node_that_steps_down_leads_again(cluster: Cluster) -> None:
    async with cluster.join(can_lead=True, settings=FAST) as only:
        await only.wait_until_leader(timeout=WAIT)
        await only.step_down()
        await only.wait_until_leader(timeout=WAIT)
        assert only.term == 2


async def test_who_reads_the_bucket_can_ask_the_leader(cluster: Cluster) -> None:
    with pytest.raises(NotLeader):
        await cluster.ask_leader("GET", "/.lbc/status")
    async with cluster.join(can_lead=True, settings=FAST) as first:
        await first.wait_until_leader(timeout=WAIT)
        status = await cluster.ask_leader("GET", "/.lbc/status")
        assert status["leader"]["uuid"] == str(first.id)
        with pytest.raises(LbcError, match="not another member"):
            await cluster.ask_leader("POST", "/.lbc/step-down", {"to": str(first.id)})
        with pytest.raises(LbcError, match="refuses"):
            await cluster.ask_leader("POST", "/.lbc/step-down", {"to": "nobody"})
        async with cluster.join(can_lead=True, settings=FAST) as second:
            await first.members.until(lambda members: len(members) == 2, timeout=WAIT)
            await cluster.ask_leader("POST", "/.lbc/step-down", {"to": None})
            await second.wait_until_leader(timeout=WAIT)
