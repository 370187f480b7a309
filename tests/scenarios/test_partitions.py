"""Hosts in network namespaces, each with an address of its own, that the kernel cuts off from each other.

The store is a directory that all share: a cut separates nodes from each other, never from the store.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.namespaces import Network, network
from tests.scenarios.host import REPOSITORY, Host, Hosts, all_know, hosts
from tests.scenarios.stage import WAIT

pytestmark = pytest.mark.slow

NOTICED_WITHIN_SECONDS = 4.0
"""A silent feed is given up after 1.5 s; the machine may be busy, and what stands still is not counted."""


@dataclass
class Site:
    """A leader, a standby and a follower on one wire, in this order on the hosts 1 to 3."""

    network: Network
    cluster: Hosts
    leader: Host
    standby: Host
    follower: Host

    @property
    def hosts(self) -> tuple[Host, Host, Host]:
        return self.leader, self.standby, self.follower

    async def members_of(self, number: int) -> str:
        """What `lbc members` prints on that host."""
        process = await asyncio.create_subprocess_exec(
            *self.network.inside(number), sys.executable, "-m", "littlebigcluster", "--store",
            str(self.cluster.place), "members", stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        async with asyncio.timeout(WAIT):
            out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    async def write_and_see(self, *readers: Host) -> None:
        """The leader's write gets to all of these, with or without a feed."""
        assert await self.cluster.forward(self.leader) == "acknowledged"
        epoch = max(self.cluster.recorder.history.epochs.values())
        for reader in readers:
            await reader.sees(lambda status: status["epoch"] >= epoch, within_seconds=NOTICED_WITHIN_SECONDS)
            await self.cluster.read(reader)

    async def is_whole(self) -> None:
        """All are members of all, and fed, and every node can write; nobody had a reason to take over."""
        await all_know(*self.hosts)
        for fed in (self.standby, self.follower):
            await fed.sees(lambda status: status["fed"])
        assert [await self.cluster.forward(host) for host in self.hosts] == ["acknowledged"] * 3
        await self.cluster.check(*self.hosts)
        assert {(await host.status())["term"] for host in self.hosts} == {1}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with network(3) as wire:
        async with hosts(tmp_path / "store") as cluster:
            leader = await cluster.leader(prefix=wire.inside(1), join={})
            standby = await cluster.start(prefix=wire.inside(2), join={"can_lead": True})
            follower = await cluster.start(prefix=wire.inside(3), join={"roles": ["worker"]})
            yield Site(wire, cluster, leader, standby, follower)


async def test_hosts_find_their_addresses_and_each_other_and_survive_a_partition(site: Site) -> None:
    wire, cluster, (leader, standby, follower) = site.network, site.cluster, site.hosts
    assert [host.address.rpartition(":")[0] for host in site.hosts] == [wire.address(number) for number in (1, 2, 3)]
    await site.is_whole()
    for number in wire.hosts:
        table = await site.members_of(number)
        assert all(host.address in table and str(host.id) in table for host in site.hosts), table

    wire.unplug(1)  # the leader: nobody reaches it any more, and it reaches the store
    await site.write_and_see(standby, follower)
    for host in (standby, follower):
        await host.sees(lambda status: not status["fed"], within_seconds=NOTICED_WITHIN_SECONDS)
    waiting = [asyncio.create_task(cluster.forward(host)) for host in (standby, follower) * 5]
    await leader.sees_members(leader)
    for _ in range(10):  # for longer than leader_timeout, in all
        await site.write_and_see(standby, follower)
        await asyncio.sleep(0.4)
    assert not any(task.done() for task in waiting)

    wire.plug(1)
    assert await asyncio.gather(*waiting) == ["acknowledged"] * 10
    await site.is_whole()


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("victim", ["leader", "follower"])
async def test_packets_that_are_swallowed_in_one_direction(
    site: Site, victim: str, direction: Literal["in", "out"]
) -> None:
    """TCP sends on one side and hears nothing on the other; nobody is told."""
    wire, cluster, (leader, standby, follower) = site.network, site.cluster, site.hosts
    await site.is_whole()
    number, cut_off = (1, [standby, follower]) if victim == "leader" else (3, [follower])
    wire.swallow(number, direction)
    await site.write_and_see(standby, follower)
    for host in cut_off:
        await host.sees(lambda status: not status["fed"], within_seconds=NOTICED_WITHIN_SECONDS)
    waiting = [asyncio.create_task(cluster.forward(host)) for host in cut_off * 5]
    await leader.sees_members(*(host for host in site.hosts if host not in cut_off))
    for _ in range(10):  # for longer than leader_timeout, in all
        await site.write_and_see(standby, follower)
        await asyncio.sleep(0.4)
    wire.flow(number)
    assert await asyncio.gather(*waiting) == ["acknowledged"] * len(waiting)
    await site.is_whole()


async def test_a_leader_that_is_cut_off_and_dies_leaves_each_forwarded_write_done_once(site: Site) -> None:
    """Its last answers are swallowed; who wrote finds the outcome at the next leader, by the key."""
    wire, cluster, (leader, standby, follower) = site.network, site.cluster, site.hosts
    await site.is_whole()
    wire.swallow(1, "out")
    waiting = [asyncio.create_task(cluster.forward(host)) for host in (standby, follower) * 10]
    # They have arrived, and are done and durable; only the answers are lost.
    await leader.sees(lambda status: status["epoch"] > max(cluster.recorder.history.epochs.values()))
    leader.process.kill()
    assert await asyncio.gather(*waiting) == ["acknowledged"] * 20
    await cluster.check(standby, follower)
    assert (await standby.status())["term"] == 2
