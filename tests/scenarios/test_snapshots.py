"""Snapshots: made in the background, harmless when they fail, and what makes a join fast."""

from __future__ import annotations

import asyncio

import pytest

from littlebigcluster.epochs import epoch_of, names, survey_all
from littlebigcluster.store import Counting, Fault
from tests.scenarios.stage import WAIT, Actor, Stage, eventually, stage


def snapshot_epoch(actor: Actor) -> int:
    return actor.node._local.since_snapshot.epoch


async def stored(s: Stage) -> list[int]:
    return [epoch_of(info) for info in (await survey_all(s.store)).snapshots]


async def test_snapshots_are_made_by_number_of_epochs_and_a_join_fetches_little() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=10)
        for _ in range(35):
            await s.recorder.write(a.node)
            await asyncio.sleep(0.002)
        await eventually(lambda: a.node._local.since_snapshot.log_epochs < 10)
        assert len(await stored(s)) >= 3
        assert await s.store.get(names.LAST_SNAPSHOT) == names.marker(snapshot_epoch(a))
        counting = Counting(s.store)
        b = await s.follower(store=counting)
        assert b.node.epoch.value == a.node.epoch.value
        # The identity, the markers, the epoch behind the snapshot and those after it; not the 35.
        assert counting.requests["get"] + counting.requests["get_range"] < 20
        assert counting.requests["list"] <= 4
        await s.check()


async def test_snapshots_are_made_by_growth() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_growth=1.0)
        await a.node.execute("CREATE TABLE big(x)")
        for _ in range(12):
            await s.recorder.write(a.node, lambda db: db.execute("INSERT INTO big VALUES (randomblob(200000))"))
        await eventually(lambda: snapshot_epoch(a) > 0)
        await s.follower()
        await s.check()


async def test_an_upload_does_not_block_writes() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=5)
        a.gate.shut("put_stream")
        for _ in range(30):
            assert await s.recorder.write(a.node) == "acknowledged"
        await eventually(lambda: a.gate.held)
        for _ in range(30):
            assert await s.recorder.write(a.node) == "acknowledged"
        assert snapshot_epoch(a) == 0
        assert await stored(s) == [0]
        a.gate.open()
        await eventually(lambda: snapshot_epoch(a) > 0)
        # What was written meanwhile counts for the next one.
        await eventually(lambda: snapshot_epoch(a) > 35)
        await s.follower()
        await s.check()


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER, Fault.HANG], ids=lambda fault: fault.name.lower())
async def test_a_failed_upload_moves_no_marker_and_is_tried_again(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("littlebigcluster.roles.snapshotter._RETRY_SECONDS", 0.05)
    async with stage() as s:
        a = await s.leader(snapshot_epochs=5)
        a.network._zombie_seconds = None
        a.network.next("put_stream", fault, fault)
        seen = []
        for _ in range(8):
            await s.recorder.write(a.node)
            seen.append((await s.store.get(names.LAST_SNAPSHOT), snapshot_epoch(a)))
        assert (None, 0) in seen or (names.marker(0), 0) in seen
        await eventually(lambda: snapshot_epoch(a) > 0)
        assert [found for *_, found in a.network.faults] == [fault, fault]
        assert caplog.text.count("will be tried again") == 2
        await a.network.settle()
        await s.follower()
        await s.check()


async def test_a_marker_that_cannot_be_written_hides_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.roles.snapshotter._RETRY_SECONDS", 0.05)
    async with stage() as s:
        a = await s.leader(snapshot_epochs=5)
        a.network.next("put", *[Fault.BEFORE] * 2, key=names.LAST_SNAPSHOT)
        for _ in range(8):
            await s.recorder.write(a.node)
        await eventually(lambda: snapshot_epoch(a) > 0)
        await s.store.delete([names.LAST_SNAPSHOT])
        await s.follower()
        await s.check()


async def test_a_leader_that_is_replaced_in_the_midst_of_a_snapshot_does_no_harm() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=5)
        b = await s.actor(snapshot_epochs=5)
        a.gate.shut("put_stream")
        for _ in range(8):
            await s.recorder.write(a.node)
        await eventually(lambda: a.gate.held)
        a.gate.only = None
        await b.node.wait_until_leader(timeout=WAIT)
        for _ in range(12):
            await s.recorder.write(b.node)
        await eventually(lambda: snapshot_epoch(b) > 8)
        a.gate.open()
        await eventually(lambda: not a.node.is_leader)
        await s.follower()
        await s.check()
        newest = max(await stored(s))
        assert newest == snapshot_epoch(b)


async def test_a_new_leader_knows_how_old_the_last_snapshot_is() -> None:
    """It counts from there on, not from its own beginning: a log of many short leaderships stays short, too."""
    async with stage() as s:
        for _ in range(6):
            a = await s.leader(snapshot_epochs=10)
            await s.recorder.writes(a.node, 3)
            await a.leave()
        assert len(await stored(s)) > 1 or a.node._local.since_snapshot.log_epochs >= 10
        b = await s.leader(snapshot_epochs=10)
        await eventually(lambda: snapshot_epoch(b) > 0)
        await s.check()
