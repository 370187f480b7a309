"""VACUUM, which no transaction can do."""

from __future__ import annotations

from littlebigcluster import Cluster, NodeSettings

FAST = NodeSettings(epoch_interval=0, poll_interval=0.1)


async def test_vacuum_runs_on_the_leader_and_reaches_followers() -> None:
    cluster = Cluster("memory://")
    await cluster.init("lol")
    async with cluster.join(can_lead=True, settings=FAST) as leader, cluster.join(settings=FAST) as follower:
        await leader.wait_until_leader(timeout=10)
        await leader.executescript("CREATE TABLE t(x); CREATE TABLE u(x)")
        await leader.execute("INSERT INTO t VALUES (randomblob(400000))")
        await leader.execute("DELETE FROM t")
        before = (await leader.read("PRAGMA page_count"))[0][0]
        done = await leader.execute(" vacuum ; ")
        after = (await follower.read("PRAGMA page_count", at_least=done.epoch))[0][0]
        assert after < before / 2
        assert await follower.read("PRAGMA integrity_check") == [("ok",)]
