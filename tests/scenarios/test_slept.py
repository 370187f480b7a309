"""Nodes that slept while the log behind them was deleted: an absent epoch is not the head of the log for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from littlebigcluster import Cluster
from littlebigcluster.epochs import epoch_of, names, survey_all
from littlebigcluster.roles.retention import STANDING_SECONDS, Retention
from littlebigcluster.store import Store
from tests.clocks import HandClock
from tests.dated import Dated
from tests.scenarios.stage import WAIT, Actor, Stage, eventually, stage

HOURS = 7200.0


Retire = Callable[[Store, Actor], Awaitable[int]]
"""Deletes what is before the newest snapshot. Returns its epoch."""


async def retire_behind_snapshot(store: Store) -> int:
    """Delete what is before the newest snapshot, at once. Returns its epoch."""
    found = await survey_all(store)
    keep = epoch_of(found.snapshots[0])
    await store.put(names.LAST_RETAINED, names.marker(keep))
    old = [info.key for info in found.epochs if epoch_of(info) < keep]
    await store.delete(old + [info.key for info in found.snapshots[1:]])
    return keep


async def at_once(store: Store, leader: Actor) -> int:
    """Sooner than retention would: the fence has lapsed all the same."""
    return await retire_behind_snapshot(store)


async def by_retention(store: Store, leader: Actor) -> int:
    """Everything is older than the retention, and the leader makes two passes."""
    assert isinstance(store, Dated)
    clock = HandClock()
    retention = Retention(store, leader.node._local, 3600, make_snapshot=never, clock=clock)
    store.pass_time(HOURS)
    for _ in range(2):
        clock.sleep_machine(STANDING_SECONDS + 1)
        await retention.make_pass()
    found = await survey_all(store)
    keep = epoch_of(found.epochs[0])
    assert epoch_of(found.snapshots[-1]) == keep
    return keep


async def never() -> None:
    """There are snapshots enough."""


@pytest.fixture(params=[at_once, by_retention], ids=lambda retire: retire.__name__)
def retire(request: pytest.FixtureRequest) -> Retire:
    return request.param  # type: ignore[no-any-return]


async def sleep_and_lose_the_log(s: Stage, sleeper: Actor, clock: HandClock, other: Actor, retire: Retire) -> None:
    """`sleeper` stands still; `other` leads, and goes on for so long that nothing is left of where the log was."""
    sleeper.gate.shut()
    await other.node.wait_until_leader(timeout=WAIT)
    await s.recorder.prepare(other.node)
    at = sleeper.node.epoch.value
    for _ in range(12):
        await s.recorder.write(other.node)
    await eventually(lambda: other.node._local.since_snapshot.epoch > at + 2)
    assert await retire(s.store, other) > at + 1
    clock.sleep_machine(HOURS)


async def test_a_leader_that_wakes_up_does_not_write_into_the_gap(retire: Retire) -> None:
    async with stage(Dated()) as s:
        clock = HandClock()
        a = await s.leader(clock=clock)
        b = await s.actor(snapshot_epochs=5)
        late = asyncio.create_task(s.recorder.write(a.node))
        await asyncio.sleep(0)
        await late
        epoch = a.node.epoch.value
        await sleep_and_lose_the_log(s, a, clock, b, retire)
        late = asyncio.create_task(s.recorder.write(a.node))
        a.gate.open()
        assert await late == "refused"
        assert await s.store.get(names.wal(epoch + 1)) is None
        await a.node.leader.until(lambda leader: leader and leader.uuid == b.node.id, timeout=WAIT)
        await s.check()


async def test_a_create_that_was_under_way_while_the_leader_slept_proves_nothing(retire: Retire) -> None:
    """The request itself slept, arrives in the gap, and is created there: an orphan, never acknowledged."""
    async with stage(Dated()) as s:
        clock = HandClock()
        a = await s.leader(clock=clock)
        b = await s.actor(snapshot_epochs=5)
        epoch = a.node.epoch.value
        a.gate.shut("create")
        late = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: a.gate.held)
        a.gate.only = None
        await sleep_and_lose_the_log(s, a, clock, b, retire)
        a.gate.open()
        assert await late in ("refused", "unknown")
        assert await s.store.get(names.wal(epoch + 1)) is not None  # it did take effect
        await eventually(lambda: not a.node.is_leader)
        await s.check()
        async with Cluster(s.store).join(address="127.0.0.1:0") as fresh:
            await s.recorder.check(fresh)


async def test_a_standby_that_wakes_up_does_not_claim_in_the_gap(retire: Retire) -> None:
    async with stage(Dated()) as s:
        clock = HandClock()
        b = await s.leader(snapshot_epochs=5)
        a = await s.actor(clock=clock)
        await s.recorder.write(b.node)
        await a.node.epoch.until(lambda epoch: epoch >= b.node.epoch.value, timeout=WAIT)
        epoch = a.node.epoch.value
        await sleep_and_lose_the_log(s, a, clock, b, retire)
        await b.kill()
        a.gate.open()
        await a.node.wait_until_leader(timeout=WAIT)
        assert await s.store.get(names.wal(epoch + 1)) is None
        assert await s.recorder.write(a.node) == "acknowledged"
        await s.check(a)


async def test_a_strong_read_that_wakes_up_does_not_show_the_past(retire: Retire) -> None:
    async with stage(Dated()) as s:
        clock = HandClock()
        b = await s.leader(snapshot_epochs=5)
        a = await s.follower(clock=clock)
        await a.node.epoch.until(lambda epoch: epoch >= b.node.epoch.value, timeout=WAIT)
        await sleep_and_lose_the_log(s, a, clock, b, retire)
        reading = asyncio.create_task(s.recorder.read(a.node, consistency="strong"))
        await asyncio.sleep(0)
        a.gate.open()
        assert len((await reading).rows) == 12
        await s.check()


async def test_a_strong_read_whose_request_slept_does_not_show_the_past(retire: Retire) -> None:
    async with stage(Dated()) as s:
        clock = HandClock()
        b = await s.leader(snapshot_epochs=5)
        a = await s.follower(clock=clock)
        await a.node.epoch.until(lambda epoch: epoch >= b.node.epoch.value, timeout=WAIT)
        a.gate.shut()
        reading = asyncio.create_task(s.recorder.read(a.node, consistency="strong"))
        await eventually(lambda: a.gate.held)
        await sleep_and_lose_the_log(s, a, clock, b, retire)
        a.gate.open()
        assert len((await reading).rows) == 12
        await s.check()


async def test_a_follower_that_wakes_up_restores_and_says_so(retire: Retire, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(Dated()) as s:
        clock = HandClock()
        b = await s.leader(snapshot_epochs=5)
        a = await s.follower(clock=clock)
        await sleep_and_lose_the_log(s, a, clock, b, retire)
        before = a.node.database_path
        a.gate.open()
        await a.node.epoch.until(lambda epoch: epoch >= b.node.epoch.value, timeout=WAIT)
        assert a.node.database_path != before
        assert "the log behind the local copy is gone" in caplog.text
        await s.check()


async def test_a_kept_copy_that_is_too_old_is_dropped_at_the_next_join(retire: Retire, tmp_path: object) -> None:
    async with stage(Dated()) as s:
        b = await s.leader(snapshot_epochs=5)
        a = await s.follower(directory=tmp_path)
        await a.leave()
        for _ in range(12):
            await s.recorder.write(b.node)
        await eventually(lambda: b.node._local.since_snapshot.epoch > a.node.epoch.value + 2)
        await retire(s.store, b)
        again = await s.follower(directory=tmp_path)
        assert again.node.database_path != a.node.database_path
        await s.check()
