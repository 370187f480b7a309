"""Nodes in processes of their own that write through each other, while leaders die, feeds break and followers sleep."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.store import open_store
from tests.net.relay import Relay
from tests.ports import free_port
from tests.scenarios.host import LOOPBACK, Host, Hosts, all_know, hosts
from tests.scenarios.member import STEPS
from tests.scenarios.stage import WAIT
from tests.scenarios.test_slept import retire_behind_snapshot

pytestmark = pytest.mark.slow

STANDBY = {**LOOPBACK, "can_lead": True}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with hosts(tmp_path / "store") as made:
        yield made


# -- a leader dies while forwarded writes are in flight --------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
async def test_forwarded_writes_in_flight_when_the_leader_dies_are_done_once(cluster: Hosts, step: str) -> None:
    a = await cluster.leader()
    b, c = await cluster.start(join=STANDBY), await cluster.start()
    await all_know(a, b, c)
    await a.ask("die", step)
    fates = await asyncio.gather(*(cluster.forward(host) for host in [b, c] * 15))
    assert await a.ends() == -signal.SIGKILL
    assert fates == ["acknowledged"] * 30
    await cluster.check(b, c)


@pytest.mark.parametrize("step", STEPS)
async def test_writes_that_a_dying_leader_left_unknown_are_resolved_by_their_keys(cluster: Hosts, step: str) -> None:
    a = await cluster.leader()
    c, d = await cluster.start(), await cluster.start()
    await all_know(a, c, d)
    await a.ask("die", step)
    fates = await asyncio.gather(*(cluster.forward(host, timeout=1) for host in [c, d] * 15))
    assert await a.ends() == -signal.SIGKILL
    assert "acknowledged" not in fates
    assert "unknown" in fates
    b = await cluster.start(join=STANDBY)  # nobody could lead while those waited
    await b.leads()
    # Through the new leader itself, and through the follower; who has sent it first makes no difference.
    unresolved = dict(cluster.recorder.unresolved)
    assert len(unresolved) == fates.count("unknown")
    for host in (c, b):
        cluster.recorder.unresolved = dict(unresolved)
        assert await cluster.recorder.resolve(host) == len(unresolved)  # type: ignore[arg-type]
    assert cluster.recorder.history.count("unknown") == 0
    await cluster.check(b, c, d)


# -- a feed is cut and restored ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def relayed_leader(cluster: Hosts) -> AsyncIterator[tuple[Host, Relay]]:
    """A leader that the others reach over a relay only."""
    port = free_port()
    async with Relay(("127.0.0.1", port)) as relay:
        join = {"address": f"127.0.0.1:{port}", "advertise": f"127.0.0.1:{relay.port}"}
        yield await cluster.leader(join=join, **RARELY), relay


RARELY = {"leader_timeout": 60}
"""Who is fed looks at the store for itself every 45 s: no test waits so long."""


async def test_polling_takes_over_from_a_feed_that_is_cut_and_gives_back(cluster: Hosts) -> None:
    async with relayed_leader(cluster) as (a, relay):
        # The leader that nobody reaches any more shall go on leading; and who misses it for a moment looks often.
        patient = {"suspect_timeout": inf, **RARELY}
        b, c = await cluster.start(join=STANDBY, **patient), await cluster.start(**patient)
        await all_know(a, b, c)
        await c.sees(lambda status: status["fed"])
        for _ in range(2):
            relay.refuse()
            await cluster.forward(a)
            epoch = max(cluster.recorder.history.epochs.values())
            await c.sees(lambda status, epoch=epoch: status["epoch"] >= epoch)
            await c.sees(lambda status: not status["fed"])
            # What is sent elsewhere waits until it can get there.
            waiting = [asyncio.create_task(cluster.forward(host)) for host in (b, c) * 5]
            await a.sees_members(a)
            for _ in range(10):
                await cluster.forward(a)
                await cluster.read(c)
            assert not any(task.done() for task in waiting)
            relay.flow()
            assert await asyncio.gather(*waiting) == ["acknowledged"] * 10
            await all_know(a, b, c)
            await c.sees(lambda status: status["fed"])
        await asyncio.sleep(0.3)  # the look at the store when the feed came up
        begun, before = time.monotonic(), await c.status()
        await asyncio.sleep(1)
        after, seconds = await c.status(), time.monotonic() - begun
        assert after["fed"]
        assert after["gets"] - before["gets"] <= 1 + seconds, "one that is not fed polls five times a second"
        assert after["term"] == 1, "nobody had a reason to take over"
        await cluster.check(a, b, c)


# -- a follower sleeps for longer than anything waits for it ---------------------------------------------------------


async def test_a_follower_that_slept_comes_back_and_shows_nothing_older(cluster: Hosts) -> None:
    """Longer than `member_timeout` and `fence_validity`, and until the log behind it is gone."""
    a = await cluster.leader(snapshot_epochs=5)
    c = await cluster.start(fence_validity=2)
    await all_know(a, c)
    for _ in range(3):
        await cluster.forward(c)
    await cluster.read(c)
    for round_number in range(2):
        slept_at = (await c.status())["epoch"]
        c.signal(signal.SIGSTOP)
        began = time.monotonic()
        asleep = [
            asyncio.create_task(cluster.read(c, consistency="strong")),
            asyncio.create_task(cluster.read(c)),
            asyncio.create_task(cluster.forward(c)),
        ]
        await a.sees_members(a)
        for _ in range(12):
            assert await cluster.forward(a) == "acknowledged"
        await a.sees(lambda status, at=slept_at: status["snapshot_epoch"] > at + 2)
        assert await retire_behind_snapshot(open_store(str(cluster.place), clock=Clock())) > slept_at + 1
        await asyncio.sleep(max(0.0, began + 3 - time.monotonic()))
        c.signal(signal.SIGCONT)
        await all_know(a, c)
        await c.sees(lambda status: status["fed"])
        async with asyncio.timeout(WAIT):
            strong, _, fate = await asyncio.gather(*asleep)
        assert len(strong.rows) >= 3 + 12 * (round_number + 1)
        assert fate == "acknowledged"
        await cluster.read(c)
    assert {member["id"] for member in (await a.status())["members"]["members"]} == {str(a.id), str(c.id)}
    await cluster.check(a, c)
