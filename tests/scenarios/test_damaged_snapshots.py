"""Snapshots and markers that are damaged, foreign or missing."""

from __future__ import annotations

import asyncio

import pytest

from littlebigcluster import Cluster, CorruptLog
from littlebigcluster.epochs import epoch_of, names, survey_all
from littlebigcluster.store import Store
from tests.scenarios.damage import body_of, grown, wrong_bit
from tests.scenarios.stage import Stage, memory, stage


async def with_snapshots(s: Stage) -> list[int]:
    """A leader has made at least two snapshots, and left; their epochs, newest first."""
    a = await s.leader(snapshot_epochs=4)
    while len((await survey_all(s.store)).snapshots) < 3:
        await s.recorder.write(a.node)
        await asyncio.sleep(0.01)
    await a.leave()
    return [epoch_of(info) for info in (await survey_all(s.store)).snapshots]  # it may have made one more


async def damaged_snapshot(store: Store, epoch: int, how: str) -> None:
    name = names.snapshot(epoch)
    body = await body_of(store, name)
    match how:
        case "truncated":
            await store.put(name, body[:-20])
        case "empty":
            await store.put(name, b"")
        case "bit flipped in its content":
            await store.put(name, wrong_bit(body, len(body) - 60))
        case "bit flipped in its metadata":
            await store.put(name, wrong_bit(body, 50))
        case "of another epoch":
            await store.put(name, await body_of(store, names.snapshot(0)))
        case "an epoch in its place":
            await store.put(name, await body_of(store, names.wal(epoch)))
        case "of another cluster":
            other = memory()
            await Cluster(other).init("other")
            await store.put(name, await body_of(other, names.snapshot(0)))
        case "missing":
            await store.delete([name])


DAMAGED_SNAPSHOTS = (
    "truncated", "empty", "bit flipped in its content", "bit flipped in its metadata", "of another epoch",
    "an epoch in its place", "of another cluster", "missing",
)  # fmt: skip


@pytest.mark.parametrize("how", DAMAGED_SNAPSHOTS)
async def test_a_damaged_newest_snapshot_is_passed_over(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stage() as s:
        newest, *_ = await with_snapshots(s)
        await damaged_snapshot(s.store, newest, how)
        await s.follower()
        await s.check()
        if how != "missing":
            assert names.snapshot(newest) in caplog.text


@pytest.mark.parametrize("how", [how for how in DAMAGED_SNAPSHOTS if how != "of another epoch"])
async def test_a_damaged_only_snapshot_is_named(how: str) -> None:
    async with stage() as s:
        await grown(s)
        await damaged_snapshot(s.store, 0, how if how != "an epoch in its place" else "truncated")
        with pytest.raises(CorruptLog) as caught:
            await s.follower()
        assert caught.value.object == names.snapshot(0)


async def test_damaged_markers_are_only_hints() -> None:
    async with stage() as s:
        await with_snapshots(s)
        for marker in (b"", b"nonsense", b"9" * 20, names.marker(3)):
            await s.store.put(names.LAST_SNAPSHOT, marker)
            await s.store.put(names.BEACON, marker)
            fresh = await s.follower()
            await s.check(fresh)
            await fresh.leave()
