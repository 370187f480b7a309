"""Objects of the log that are damaged, foreign, missing or out of place: at a join, and under a running follower."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from littlebigcluster import Cluster, CorruptLog, FormatTooNew, WrongCluster
from littlebigcluster.epochs import codec, names
from littlebigcluster.epochs.metadata import FORMAT_VERSION
from littlebigcluster.store import Store
from tests.epochs.logs import epoch_object, position_of
from tests.scenarios.damage import body_of, grown, wrong_bit
from tests.scenarios.stage import WAIT, eventually, stage

Damage = Callable[[Store, int], Awaitable[None]]


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
