"""Snapshots: made in the background, harmless when they fail, and what makes a join fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from littlebigcluster.database import StateMismatch
from littlebigcluster.epochs import epoch_of, names, read_metadata, survey_all
from littlebigcluster.store import Counting, Fault, Store
from littlebigcluster.store.wrappers import Wrapper
from tests.scenarios.stage import WAIT, Actor, Stage, eventually, memory, stage


def snapshot_epoch(actor: Actor) -> int:
    return actor.node._local.since_snapshot.epoch


async def stored(s: Stage) -> list[int]:
    return [epoch_of(info) for info in (await survey_all(s.store)).snapshots]


async def epochs(s: Stage, actor: Actor, number: int) -> None:
    for _ in range(number):
        await s.recorder.write(actor.node)


async def test_snapshots_are_made_by_number_of_epochs_and_a_join_fetches_little() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=10)
        for _ in range(35):
            await s.recorder.write(a.node)
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
        faults = [found for *_, found in a.network.faults]
        # Where only the answer was lost, the second attempt may find that the snapshot is there, and sound.
        assert faults in ([[fault], [fault, fault]] if fault is Fault.AFTER else [[fault, fault]])
        assert caplog.text.count("will be tried again") == len(faults)
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
        await eventually(lambda: snapshot_epoch(b) > 8 and b.node._local.since_snapshot.log_epochs < 5)
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


async def test_snapshots_are_made_by_age_once_something_was_written() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_age=0.3)
        await eventually(lambda: snapshot_epoch(a) == a.node.epoch.value)
        quiet = await stored(s)
        await asyncio.sleep(0.5)
        assert await stored(s) == quiet
        await s.recorder.write(a.node)
        await eventually(lambda: snapshot_epoch(a) == a.node.epoch.value)
        written = await read_metadata(s.store, names.wal(a.node.epoch.value))
        made = await read_metadata(s.store, names.snapshot(a.node.epoch.value))
        assert made.created_at - written.created_at >= timedelta(seconds=0.3)
        await s.check()


class Spoiling(Wrapper):
    """A store that keeps the first `times` snapshots with one bit turned over at `place` (below 0: from the end)."""

    def __init__(self, store: Store, times: int, place: int) -> None:
        super().__init__(store)
        self.times, self.place = times, place

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        body = bytearray(b"".join([chunk async for chunk in chunks]))
        if self.times > 0:
            self.times -= 1
            body[self.place] ^= 1

        async def sent() -> AsyncIterator[bytes]:
            yield bytes(body)

        await self.inner.put_stream(key, sent())


@pytest.mark.parametrize("place", [0, 100, -1], ids=["magic", "metadata", "content"])
async def test_what_the_store_keeps_wrongly_is_overwritten_before_the_marker_moves(
    place: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=5, store=Spoiling(s.store, 2, place))
        await epochs(s, a, 8)
        await eventually(lambda: snapshot_epoch(a) > 0)
        assert caplog.text.count("gives back another snapshot than was sent") == 2
        assert not (await s.cluster.verify(deep=True)).findings
        await s.follower()
        await s.check()


async def test_a_marker_never_moves_to_what_stays_damaged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("littlebigcluster.roles.snapshotter._RETRY_SECONDS", 0.05)
    async with stage() as s:
        before = await s.store.get(names.LAST_SNAPSHOT)
        store = Spoiling(s.store, 1000, -1)
        a = await s.leader(snapshot_epochs=5, store=store)
        await epochs(s, a, 8)
        await eventually(lambda: caplog.text.count("will be tried again") > 1)
        assert await s.store.get(names.LAST_SNAPSHOT) == before
        assert "expected stored content with XXH3" in caplog.text
        assert snapshot_epoch(a) == 0
        await s.follower()
        store.times = 0
        await eventually(lambda: snapshot_epoch(a) > 0)
        assert await s.store.get(names.LAST_SNAPSHOT) == names.marker(snapshot_epoch(a))
        await s.check()


async def test_a_sound_snapshot_of_another_node_is_left_as_it_is_and_a_damaged_one_overwritten() -> None:
    async with stage() as s:
        a = await s.leader()
        await s.recorder.writes(a.node, 3)
        b = await s.follower()
        made = await a.node._snapshotter.make()
        name = names.snapshot(made.epoch)
        first = await s.store.get(name)
        assert first
        assert await b.node._snapshotter.make() == replace(made, size_bytes=len(first))
        assert await s.store.get(name) == first
        await s.store.put(name, first[:-5] + bytes(5))
        assert (await b.node._snapshotter.make()).epoch == made.epoch
        assert await s.store.get(name) != first
        assert not (await s.cluster.verify(deep=True)).findings


async def test_a_late_upload_of_an_older_epoch_does_not_move_the_marker_back() -> None:
    async with stage() as s:
        a = await s.leader()
        await s.recorder.writes(a.node, 3)
        b = await s.follower()
        b.gate.shut("put_stream")
        late = asyncio.create_task(b.node._snapshotter.make())
        await eventually(lambda: b.gate.held)
        await s.recorder.writes(a.node, 3)
        newest = await a.node._snapshotter.make()
        b.gate.open()
        assert (await late).epoch < newest.epoch
        assert await s.store.get(names.LAST_SNAPSHOT) == names.marker(newest.epoch)


async def test_a_cancelled_snapshot_leaves_nothing() -> None:
    async with stage() as s:
        a = await s.leader()
        await s.recorder.writes(a.node, 3)
        a.gate.shut("put_stream")
        making = asyncio.create_task(a.node._snapshotter.make())
        await eventually(lambda: a.gate.held)
        assert list(a.node._directory.glob("snapshot-*"))
        making.cancel()
        await asyncio.wait([making])
        a.gate.open()
        assert not list(a.node._directory.glob("snapshot-*"))
        assert await stored(s) == [0]
        await s.recorder.writes(a.node, 3)
        await s.check()


async def test_the_leader_makes_none_when_another_node_just_has() -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=12)
        b = await s.follower()
        await epochs(s, a, 8 - a.node.epoch.value)
        await b.node.epoch.until(lambda epoch: epoch == a.node.epoch.value, timeout=WAIT)
        made = await b.node._snapshotter.make()
        await epochs(s, a, 12 - a.node.epoch.value)
        await eventually(lambda: snapshot_epoch(a) == made.epoch)
        since = a.node._local.since_snapshot
        assert (since.log_epochs, since.size_bytes) == (a.node.epoch.value - made.epoch, made.size_bytes)
        assert since.log_bytes == sum(
            info.size_bytes
            for info in (await survey_all(s.store)).epochs
            if made.epoch < epoch_of(info) <= a.node.epoch.value
        )
        assert await stored(s) == [made.epoch, 0]


async def test_a_damaged_local_copy_makes_no_snapshot() -> None:
    async with stage(memory()) as s:
        a = await s.leader()
        await s.recorder.writes(a.node, 3)
        a.node._local.replica._checksum.value ^= 1  # as if what is on the disk were not what was written
        await a.node.execute("CREATE TABLE other(x)")
        with pytest.raises(StateMismatch, match="the local copy is damaged"):
            await a.node._snapshotter.make()
        assert await stored(s) == [0]
