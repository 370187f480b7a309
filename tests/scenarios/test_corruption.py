"""Objects of the log that are damaged, foreign, missing or out of place: at a join, and under a running follower."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from littlebigcluster import Cluster, CorruptLog, FormatTooNew, WrongCluster
from littlebigcluster.epochs import codec, epoch_of, names, survey_all
from littlebigcluster.epochs.metadata import FORMAT_VERSION
from littlebigcluster.store import Store
from tests.epochs.logs import epoch_object, position_of
from tests.scenarios.stage import WAIT, Stage, eventually, memory, stage

Damage = Callable[[Store, int], Awaitable[None]]


def wrong_bit(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]


async def body_of(store: Store, name: str) -> bytes:
    body = await store.get(name)
    assert body is not None
    return body


async def truncated(store: Store, epoch: int) -> None:
    body = await body_of(store, names.wal(epoch))
    await store.put(names.wal(epoch), body[:-10])


async def cut_in_its_header(store: Store, epoch: int) -> None:
    body = await body_of(store, names.wal(epoch))
    await store.put(names.wal(epoch), body[:20])


async def empty(store: Store, epoch: int) -> None:
    await store.put(names.wal(epoch), b"")


async def bit_flipped_in_its_content(store: Store, epoch: int) -> None:
    body = await body_of(store, names.wal(epoch))
    await store.put(names.wal(epoch), wrong_bit(body, len(body) - 30))


async def bit_flipped_in_its_metadata(store: Store, epoch: int) -> None:
    await store.put(names.wal(epoch), wrong_bit(await body_of(store, names.wal(epoch)), 40))


async def missing(store: Store, epoch: int) -> None:
    await store.delete([names.wal(epoch)])


async def duplicated(store: Store, epoch: int) -> None:
    await store.put(names.wal(epoch), await body_of(store, names.wal(epoch - 1)))


async def reordered(store: Store, epoch: int) -> None:
    this, other = await body_of(store, names.wal(epoch)), await body_of(store, names.wal(epoch + 1))
    await store.put(names.wal(epoch), other)
    await store.put(names.wal(epoch + 1), this)


async def of_another_cluster(store: Store, epoch: int) -> None:
    at = position_of(await body_of(store, names.wal(epoch - 1)), epoch - 1)
    await store.put(names.wal(epoch), epoch_object(at, cluster_id="other"))


async def of_another_history(store: Store, epoch: int) -> None:
    """Right in all but what it follows."""
    at = position_of(b"something else", epoch - 1)
    await store.put(names.wal(epoch), epoch_object(at))


async def no_sqlite_inside(store: Store, epoch: int) -> None:
    at = position_of(await body_of(store, names.wal(epoch - 1)), epoch - 1)
    await store.put(names.wal(epoch), epoch_object(at, content=b"hello"))


async def leading_to_another_state(store: Store, epoch: int) -> None:
    body = await body_of(store, names.wal(epoch))
    metadata, end = codec.decode_header(body, name=names.wal(epoch))
    await store.put(names.wal(epoch), codec.encode_header(replace(metadata, state_checksum="0" * 16)) + body[end:])


async def a_snapshot_in_its_place(store: Store, epoch: int) -> None:
    await store.put(names.wal(epoch), await body_of(store, names.snapshot(0)))


DAMAGES: list[Damage] = [
    truncated, cut_in_its_header, empty, bit_flipped_in_its_content, bit_flipped_in_its_metadata, missing, duplicated,
    reordered, of_another_cluster, of_another_history, no_sqlite_inside, leading_to_another_state,
    a_snapshot_in_its_place,
]  # fmt: skip


async def grown(s: Stage, number: int = 6) -> int:
    """A leader has written and left; returns an epoch in the middle of the log."""
    a = await s.leader()
    for _ in range(number):
        await s.recorder.write(a.node)
    await a.leave()
    return a.node.epoch.value - 3


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_epoch_is_named_at_a_join(damage: Damage) -> None:
    async with stage() as s:
        epoch = await grown(s)
        await damage(s.store, epoch)
        with pytest.raises(CorruptLog) as caught:
            await s.follower()
        assert caught.value.object == names.wal(epoch)
        assert names.wal(epoch) in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_epoch_ends_a_running_follower_with_its_name(damage: Damage) -> None:
    """It tries to restore afresh, which does not help here. What it has read so far stays readable until then."""
    async with stage() as s:
        a = await s.leader()
        # A missing epoch looks like the head, until the fence has lapsed and asks for a listing.
        b = await s.follower(fence_validity=0.3)
        await s.recorder.write(a.node)
        await b.node.epoch.until(lambda epoch: epoch >= a.node.epoch.value, timeout=WAIT)
        b.gate.shut()
        await eventually(lambda: b.gate.held)
        epoch = a.node.epoch.value + (1 if damage is missing else 2)
        for _ in range(4):
            await s.recorder.write(a.node)
        await damage(s.store, epoch)
        assert (await s.recorder.read(b.node)).rows
        await eventually(lambda: not b.node._local.log.fence_holds)
        b.gate.open()
        with pytest.raises(CorruptLog) as caught:
            async with asyncio.timeout(WAIT):
                await b.wait()
        assert caught.value.object == names.wal(epoch)


@pytest.mark.parametrize("damage", [truncated, missing, reordered], ids=lambda damage: damage.__name__)
async def test_a_running_follower_passes_a_damaged_epoch_by_a_newer_snapshot(
    damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage() as s:
        a = await s.leader(snapshot_epochs=8)
        b = await s.follower(fence_validity=0.3)
        await b.node.epoch.until(lambda epoch: epoch >= a.node.epoch.value, timeout=WAIT)
        b.gate.shut()
        await eventually(lambda: b.gate.held)
        epoch = a.node.epoch.value + (1 if damage is missing else 2)
        for _ in range(9):
            await s.recorder.write(a.node)
        await eventually(lambda: a.node._local.since_snapshot.epoch > epoch + 1)
        await damage(s.store, epoch)
        await eventually(lambda: not b.node._local.log.fence_holds)
        b.gate.open()
        await s.check()
        assert "restoring from the store" in caplog.text


async def test_an_epoch_of_a_newer_format_asks_for_an_upgrade() -> None:
    async with stage() as s:
        epoch = await grown(s)
        at = position_of(await body_of(s.store, names.wal(epoch - 1)), epoch - 1)
        await s.store.put(names.wal(epoch), epoch_object(at, format_version=FORMAT_VERSION + 1))
        with pytest.raises(FormatTooNew, match="upgrade"):
            await s.follower()


async def test_an_epoch_of_a_newer_sqlite_asks_for_an_upgrade() -> None:
    async with stage() as s:
        epoch = await grown(s)
        at = position_of(await body_of(s.store, names.wal(epoch - 1)), epoch - 1)
        await s.store.put(names.wal(epoch), epoch_object(at, min_sqlite_version="99.0.0"))
        with pytest.raises(FormatTooNew, match=r"99\.0\.0"):
            await s.follower()


async def test_a_running_follower_ends_when_the_format_becomes_too_new() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        await b.node.epoch.until(lambda epoch: epoch >= a.node.epoch.value, timeout=WAIT)
        epoch = a.node.epoch.value + 1
        await a.kill()
        at = position_of(await body_of(s.store, names.wal(epoch - 1)), epoch - 1)
        await s.store.put(names.wal(epoch), epoch_object(at, format_version=FORMAT_VERSION + 1))
        with pytest.raises(FormatTooNew, match="upgrade"):
            async with asyncio.timeout(WAIT):
                await b.wait()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", CorruptLog),
        (b"{}", CorruptLog),
        (b"\xff\xfe", CorruptLog),
        (b'["lol"]', CorruptLog),
        (b'{"format_version": 999}', FormatTooNew),
        (b'{"format_version": "one"}', CorruptLog),
    ],
)
async def test_a_damaged_identity_is_named(body: bytes, error: type[Exception]) -> None:
    async with stage() as s:
        await s.store.put(names.CLUSTER, body)
        with pytest.raises(error) as caught:
            await s.follower()
        if error is CorruptLog:
            assert names.CLUSTER in str(caught.value)


async def test_another_cluster_than_the_one_expected_is_refused() -> None:
    async with stage() as s:
        with pytest.raises(WrongCluster, match='"lol", not "other"'):
            async with Cluster(s.store, id="other").join():
                pass


# -- snapshots ---------------------------------------------------------------------------------------------------


async def with_snapshots(s: Stage) -> list[int]:
    """A leader has made at least two snapshots, and left; their epochs, newest first."""
    a = await s.leader(snapshot_epochs=4)
    while len(found := (await survey_all(s.store)).snapshots) < 3:
        await s.recorder.write(a.node)
        await asyncio.sleep(0.01)
    await a.leave()
    return [epoch_of(info) for info in found]


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


# -- the local copy ----------------------------------------------------------------------------------------------


def write_into(path: Path) -> None:
    """As somebody does who opens the replica to write."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE op SET epoch = epoch + 1")


async def test_a_follower_whose_copy_was_written_to_restores_it_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        await s.recorder.writes(a.node, 3)
        await s.check()
        before = b.node.database_path
        await asyncio.to_thread(write_into, before)
        await s.recorder.write(a.node)
        await s.check()
        assert b.node.database_path != before
        assert "the local copy differs from the leader's" in caplog.text
        await eventually(lambda: not before.exists())


async def test_a_leader_whose_copy_was_written_to_restores_it_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        await s.recorder.writes(a.node, 3)
        await s.check()
        before = a.node.database_path
        await asyncio.to_thread(write_into, before)
        assert await s.recorder.write(a.node) == "acknowledged"
        await a.node.epoch.until(lambda epoch: epoch > 4, timeout=WAIT)
        await a.node.wait_until_leader(timeout=WAIT)
        await eventually(lambda: a.node.database_path != before)
        await a.node.wait_until_leader(timeout=WAIT)
        await s.check(a, b)
        assert "restoring" in caplog.text


async def test_reads_go_on_while_a_copy_is_restored() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        await s.recorder.writes(a.node, 3)
        await s.check()
        before = b.node.database_path
        await asyncio.to_thread(write_into, before)
        b.gate.shut("list")
        await s.recorder.write(a.node)
        await eventually(lambda: b.gate.held)
        reads = 0
        opening = asyncio.get_running_loop().call_later(0.3, b.gate.open)
        while b.node.database_path == before:
            await b.node.read("SELECT count(*) FROM op")
            with b.node.connection() as first, b.node.connection() as second:
                assert first.execute("SELECT 1").fetchall() == second.execute("SELECT 1").fetchall()
            reads += 1
            await asyncio.sleep(0.005)
        opening.cancel()
        assert reads > 1
        await s.check()


async def test_a_read_that_runs_while_its_copy_is_replaced_is_run_again() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        await s.recorder.writes(a.node, 3)
        await s.check()
        before = b.node.database_path
        await asyncio.to_thread(write_into, before)
        slow = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 4000000) SELECT count(*) FROM n"
        reading = asyncio.create_task(b.node.read(slow))
        await s.recorder.write(a.node)
        await eventually(lambda: b.node.database_path != before)
        assert await reading == [(4000000,)]
        await s.check()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def flip(path: Path) -> None:
    path.write_bytes(wrong_bit(path.read_bytes(), path.stat().st_size - 100))


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 3000)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def no_system_table(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM _lbc")


def another_epoch(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE _lbc SET value = 99999 WHERE key = 'epoch'")


def half_written(path: Path) -> None:
    """As by `kill -9` in the midst of a join: the first pages only, and no WAL."""
    path.write_bytes(path.read_bytes()[:8192])
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


COPIES = [truncate, cut_off, flip, garbage, nothing, no_system_table, another_epoch, half_written]


@pytest.mark.parametrize("spoil", COPIES, ids=lambda spoil: spoil.__name__)
async def test_a_kept_copy_that_is_spoilt_is_dropped_and_restored(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.follower(directory=tmp_path)
        await s.recorder.writes(a.node, 3)
        await s.check()
        await b.leave()
        spoil(b.node.database_path)
        again = await s.follower(directory=tmp_path)
        assert again.node.database_path != b.node.database_path
        assert not b.node.database_path.exists()
        assert "dropping the former local copy" in caplog.text
        await s.check()


async def test_a_kept_copy_is_used_again(tmp_path: Path) -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.follower(directory=tmp_path)
        await s.recorder.writes(a.node, 3)
        await s.check()
        await b.leave()
        await s.recorder.writes(a.node, 3)
        again = await s.follower(directory=tmp_path)
        assert again.node.database_path == b.node.database_path
        await s.check()


async def test_a_kept_copy_of_another_cluster_is_dropped(tmp_path: Path) -> None:
    async with stage() as s:
        a = await s.leader(directory=tmp_path)
        await s.recorder.write(a.node)
        await a.leave()
    other = memory()
    await Cluster(other).init("other")
    async with Cluster(other).join(settings=a._settings, address="127.0.0.1:0") as node:
        assert node.epoch.value == 0
        assert node.database_path != a.node.database_path


async def test_a_copy_is_dropped_when_the_cluster_was_made_anew_under_the_same_id(tmp_path: Path) -> None:
    async with stage() as s:
        a = await s.leader(directory=tmp_path)
        await s.recorder.write(a.node)
        await a.leave()
    async with stage() as s:
        b = await s.leader()
        await s.recorder.writes(b.node, 3)
        await s.recorder.write(b.node)
        again = await s.follower(directory=tmp_path)
        assert again.node.database_path != a.node.database_path
        await s.check()
