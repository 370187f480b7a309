"""Merged epochs: whatever becomes of them, what is restored is what was; and who merges them does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.clocks import HandClock
from tests.dated import Dated
from tests.dying import Dying
from tests.roles.long_logs import LongLog, small_spans

from littlebigcluster import Cluster
from littlebigcluster.database import parse
from littlebigcluster.database.wal import to_wal
from littlebigcluster.epochs import (
    Entry,
    MergedMetadata,
    Span,
    codec,
    epoch_of,
    merged,
    names,
    retained,
    survey_after,
    survey_all,
)
from littlebigcluster.errors import CorruptLog, StoreUnavailable
from littlebigcluster.roles import compactor, merger
from littlebigcluster.roles.compactor import undone
from littlebigcluster.roles.retention import STANDING_SECONDS, Retention
from littlebigcluster.store import Counting, Store

__all__ = ["small_spans"]

pytestmark = pytest.mark.usefixtures("small_spans")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LongLog]:
    made = await LongLog(tmp_path, seed=1).begin()
    yield made
    made.close()


async def objects(store: Store) -> dict[str, bytes]:
    return {info.key: await store.get(info.key) or b"" for info in (await survey_all(store)).merged}


async def test_epochs_become_merged_objects_of_all_sizes(log: LongLog, tmp_path: Path) -> None:
    await log.write(70)
    await log.compactor().make_pass()
    assert await log.merged() == sorted(
        [Span(first, first + 3) for first in range(1, 69, 4)]
        + [Span(first, first + 15) for first in range(1, 65, 16)]
        + [Span(1, 64)]
    )
    counting = Counting(log.store)
    assert await log.restored(tmp_path, store=counting) == log.states[70]
    # 64 as one, 4 as one, and two; and the marker. The snapshot, and what is behind merged ones, in ranges.
    assert counting.requests["get"] == 1 + 1 + 2 + 1
    assert counting.requests["list"] == 1


async def test_merged_objects_say_what_they_hold_and_go_on_with_the_chain(log: LongLog) -> None:
    await log.write(16)
    await log.compactor().make_pass()
    for span in await log.merged():
        entry = codec.decode(await log.store.get(span.name) or b"", name=span.name)
        metadata = entry.metadata
        assert isinstance(metadata, MergedMetadata)
        parts = [
            codec.decode(await log.store.get(names.wal(epoch)) or b"", name="").metadata
            for epoch in range(span.first, span.last + 1)
        ]
        assert (metadata.kind, metadata.first_epoch, metadata.epoch) == ("merged", *span)
        assert metadata.previous_sha256 == log.positions[span.first - 1].sha256
        assert metadata.last_sha256 == log.positions[span.last].sha256
        assert metadata.nonce == metadata.last_sha256[:32]
        assert metadata.transactions == sum(part.transactions for part in parts)
        last = parts[-1]
        for field in ("term", "leader", "created_at", "database_pages", "state_checksum", "page_size"):
            assert getattr(metadata, field) == getattr(last, field)
        wal = parse(entry.raw, page_size=log.page_size)
        assert wal.frames == metadata.pages == len(set(wal.page_numbers))
        assert len(entry.raw) < sum(part.raw_size_bytes for part in parts)


STRANGE: dict[str, bytes] = {}


async def strange_objects(directory: Path) -> dict[str, bytes]:
    """Merged objects of another cluster; made once."""
    if not STRANGE:
        other = await LongLog(directory, 100).begin()
        await other.write(80)
        await other.compactor().make_pass()
        STRANGE.update(await objects(other.store))
        other.close()
    return STRANGE


@pytest.mark.parametrize("seed", range(1, 5))
async def test_every_epoch_is_restored_whatever_has_become_of_merged_objects(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    log, strange = await LongLog(tmp_path, seed).begin(), await strange_objects(tmp_path)
    while log.head < 80:
        await log.write(random.randrange(1, 30))
        if random.random() < 0.5:
            await log.snapshot()
        await log.compactor(done=log.head // 4 * 4).make_pass()
    for name, body in (await objects(log.store)).items():
        match random.randrange(8):
            case 0:
                await log.store.delete([name])
            case 1:
                at = random.randrange(len(body))
                await log.store.put(name, body[:at] + bytes([body[at] ^ 1 << random.randrange(8)]) + body[at + 1 :])
            case 2:
                await log.store.put(name, body[: random.randrange(len(body))])
            case 3:
                await log.store.put(name, random.choice(list((await objects(log.store)).values())))
            case 4:
                await log.store.put(name, strange.get(name, b""))
    for epoch in range(log.head + 1):
        assert await log.restored(tmp_path, epoch) == log.states[epoch], f"epoch {epoch}, seed {seed}"
    assert await log.restored(tmp_path) == log.states[-1]
    log.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_retention_leaves_what_is_needed_to_restore_every_epoch_that_it_keeps(seed: int, tmp_path: Path) -> None:
    store, clock, random = Dated(), HandClock(), Random(seed)
    log = await LongLog(tmp_path, seed, store).begin()
    retention = Retention(store, log.local, 3600.0, make_snapshot=log.snapshot, clock=clock)
    compactor = log.compactor()
    while log.head < 80:
        store.pass_time(180)
        await log.write(1)
        if random.random() < 0.1:
            await log.snapshot()
        if log.head % 4 == 0 and random.random() < 0.9:
            await compactor.make_pass()
        if random.random() < 0.1:
            clock.sleep_machine(STANDING_SECONDS + 1)
            await retention.make_pass()
        if random.random() < 0.05:
            found = await retained(store)
            first = epoch_of(found.snapshots[-1])
            epoch = random.randrange(first, log.head + 1)
            assert await log.restored(tmp_path, epoch) == log.states[epoch]
            assert await log.restored(tmp_path) == log.states[-1]
    for _ in range(3):
        clock.sleep_machine(STANDING_SECONDS + 1)
        await retention.make_pass()
    first = epoch_of((await retained(store)).snapshots[-1])
    assert 0 < first <= log.head - 20
    assert all(span.first > first for span in await log.merged())
    assert Span(73, 76) in await log.merged()
    for epoch in range(first, log.head + 1):
        assert await log.restored(tmp_path, epoch) == log.states[epoch]
    log.close()


async def test_merged_objects_of_another_history_are_passed_over(
    log: LongLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sound in themselves, and they begin where the log does: as after a repair that went on from an earlier epoch."""
    await log.write(5)
    content = bytearray(log._path.read_bytes())
    await log.write(4)
    await log.compactor().make_pass()
    former = await objects(log.store)
    assert Span(5, 8).name in former
    del log.positions[6:], log.states[6:]
    log.epoch._set(5)
    for number in range(5):
        content[-log.page_size :] = page = bytes([number]) * log.page_size
        size = len(content) // log.page_size
        raw = to_wal([(size, page)], page_size=log.page_size, database_pages=size, salt=b"saltsalt")
        await log.append(parse(raw), bytes(content))
    assert await log.restored(tmp_path) == log.states[10]
    assert f"passing over merged epochs: {Span(5, 8).name}: expected an end at" in caplog.text
    await log.compactor(done=4).make_pass()
    assert await log.store.get(Span(5, 8).name) != former[Span(5, 8).name]
    caplog.clear()
    assert await log.restored(tmp_path) == log.states[10]
    assert caplog.text == ""


async def test_it_does_not_matter_who_merges_when_and_how_often(log: LongLog) -> None:
    await log.write(32)
    first = log.compactor()
    await first.make_pass()
    made = await objects(log.store)
    await log.compactor(done=3).make_pass()
    assert await objects(log.store) == made
    await log.store.delete(made)
    for head in (5, 17, 23, 32):
        log.epoch._set(head)
        await log.compactor(done=head // 4 * 4 - 4).make_pass()
    assert await objects(log.store) == made


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_leader_that_dies_at_any_request_leaves_nothing_undone(how: str, log: LongLog, tmp_path: Path) -> None:
    await log.write(22)
    await log.compactor().make_pass()
    made, at = await objects(log.store), 0
    while True:
        at += 1
        await log.store.delete(made)
        try:
            await log.compactor(Dying(log.store, at, how)).make_pass()
        except StoreUnavailable:
            assert await log.restored(tmp_path) == log.states[-1]
        else:
            break
        # The same leader goes on; or another one begins, when there is more to merge.
        if at % 2:
            await log.compactor(done=22).make_pass()
        else:
            dying = log.compactor(mortal := Dying(log.store, at, how))
            with pytest.raises(StoreUnavailable):
                await dying.make_pass()
            mortal._left = 10**9
            await dying.make_pass()
        assert await objects(log.store) == made
    assert at > 30, "every request was tried"


async def test_a_leader_looks_back_once_and_not_before_there_is_something_to_merge(log: LongLog) -> None:
    await log.write(7)
    counting = Counting(log.store)
    running = log.compactor(counting, done=7)
    task = asyncio.create_task(running.run())
    await asyncio.sleep(0.05)
    assert not counting.requests
    await log.write(1)
    async with asyncio.timeout(60):
        while await log.merged() != [Span(1, 4), Span(5, 8)]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    counting.reset()
    await log.write(5)
    async with asyncio.timeout(60):
        while Span(9, 12) not in await log.merged():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert counting.requests == {"get": 4, "put": 1}
    task.cancel()
    await asyncio.wait([task])


async def test_a_store_that_fails_is_tried_again(
    log: LongLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compactor, "_RETRY_SECONDS", 0.01)
    await log.write(20)
    mortal = Dying(log.store, 9, "before")
    task = asyncio.create_task(log.compactor(mortal).run())
    async with asyncio.timeout(60):
        while "will try again: died" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        mortal._left = 10**9
        while len(await log.merged()) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])


async def test_large_epochs_are_not_merged_nor_what_they_would_be_part_of(
    log: LongLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.write(32)
    stored = {names.parse(info.key)[1]: info.size_bytes for info in (await survey_all(log.store)).epochs}  # type: ignore[index]
    of_eight = sum(stored[epoch] for epoch in range(5, 9))
    for module in (merger, compactor):
        monkeypatch.setattr(module, "MAX_MERGED_BYTES", of_eight - 1)
    await log.compactor().make_pass()
    made = await log.merged()
    assert Span(5, 8) not in made
    assert Span(1, 16) not in made
    assert not {Span(5, 8), Span(1, 16)} & set(undone(await survey_after(log.store, 0), 0, 32)), "nor is it tried again"


async def test_a_damaged_epoch_is_told_of_and_the_others_are_merged(
    log: LongLog, caplog: pytest.LogCaptureFixture
) -> None:
    await log.write(12)
    body = await log.store.get(names.wal(6)) or b""
    await log.store.put(names.wal(6), body[:-9] + b"\0" + body[-8:])
    await log.compactor().make_pass()
    assert await log.merged() == [Span(1, 4), Span(9, 12)]
    assert f"epochs 5 to 8 cannot be merged: {names.wal(6)}" in caplog.text
    await log.store.delete([names.wal(10), Span(9, 12).name])
    await log.compactor(done=12).make_pass()
    assert await log.merged() == [Span(1, 4)]


async def test_merged_epochs_bridge_a_damaged_one(log: LongLog, tmp_path: Path) -> None:
    await log.write(20)
    await log.compactor().make_pass()
    await log.store.put(names.wal(7), b"rubbish")
    assert await log.restored(tmp_path) == log.states[-1]
    assert await log.restored(tmp_path, 9) == log.states[9]


@pytest.mark.parametrize("deep", [False, True])
async def test_verify_finds_merged_objects_that_are_not_what_the_epochs_say(deep: bool, log: LongLog) -> None:
    await log.write(22)
    await log.compactor().make_pass()
    cluster = Cluster(log.store)
    seen: list[tuple[int, int]] = []
    verified = await cluster.verify(deep=deep, on_bytes=lambda *at: seen.append(at))
    assert (verified.findings, verified.restorable, verified.merged) == ([], [(0, 22)], 6)
    assert seen[-1][0] == seen[-1][1]
    sound = await objects(log.store)
    name = Span(5, 8).name
    entry = codec.decode(sound[name], name=name)
    for body, problem in [
        (sound[name][:-1], "complete zstd frame"),
        (sound[Span(9, 12).name], "epochs 5 to 8, found 9 to 12"),
        (await log.store.get(names.wal(5)) or b"", 'merged epochs, found "wal"'),
        (rewritten(entry, previous_sha256="00" * 32), "another epoch 5 than the log has"),
        (rewritten(entry, last_sha256="00" * 32), "another epoch 8 than the log has"),
        (rewritten(entry, state_checksum="00" * 8), "another epoch 8 than the log has"),
        (rewritten(entry, cluster_id="other"), 'epochs of cluster "lol"'),
    ]:
        await log.store.put(name, body)
        (finding,) = (await cluster.verify(deep=deep)).findings
        assert finding.object == name
        assert problem in finding.problem
    other = codec.decode(sound[Span(13, 16).name], name="")
    await log.store.put(name, rewritten(replace(entry, raw=other.raw)))
    found = (await cluster.verify(deep=deep)).findings
    assert [finding.object for finding in found] == [name] * deep
    assert all("leads to state checksum" in finding.problem for finding in found)


async def test_verify_says_what_merged_objects_still_make_restorable(log: LongLog, tmp_path: Path) -> None:
    await log.write(22)
    await log.compactor().make_pass()
    await log.store.put(names.wal(7), b"rubbish")
    cluster = Cluster(log.store)
    verified = await cluster.verify()
    assert [finding.object for finding in verified.findings] == [names.wal(7)]
    assert verified.restorable == [(0, 6), (9, 22)]
    for epoch in (6, 9, 16, 17, 22):
        assert await log.restored(tmp_path, epoch) == log.states[epoch]
    await log.store.delete([Span(5, 8).name])
    assert (await cluster.verify()).restorable == [(0, 6), (17, 22)]
    with pytest.raises(CorruptLog):
        await log.restored(tmp_path, 9)


def rewritten(entry: Entry, **changes: Any) -> bytes:
    """A merged object that differs from `entry`, and whose own hashes are right."""
    stored = codec.Compressor("zstd")
    body = b"".join(stored.feed([entry.raw]))
    changes |= {
        "raw_size_bytes": stored.raw_size_bytes, "raw_sha256": stored.raw_sha256, "stored_xxh3": stored.stored_xxh3
    }  # fmt: skip
    return codec.encode_header(replace(entry.metadata, **changes)) + body


def test_what_can_be_merged_is_aligned_and_parts_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert merged.complete(0, 63) == []
    assert merged.complete(0, 200) == [Span(1, 64), Span(65, 128), Span(129, 192)]
    assert merged.complete(4090, 4100) == [Span(4033, 4096), Span(1, 4096)]
    assert merged.complete(4096, 4096) == []
    assert merged.complete(64**3 - 1, 64**3) == [Span(64**3 - 63, 64**3), Span(64**3 - 4095, 64**3), Span(1, 64**3)]
    assert Span(1, 4096).parts[:2] == [Span(1, 64), Span(65, 128)]
    assert len(Span(1, 64**3).parts) == len(Span(65, 128).parts) == 64
    assert Span(65, 128).parts[0].name == names.wal(65)


def test_the_way_takes_the_longest_that_begin_there_and_ends_with_an_epoch() -> None:
    spans = [Span(1, 4), Span(1, 16), Span(5, 8), Span(9, 12), Span(17, 20)]
    assert merged.steps(spans, 1, 19) == [Span(1, 16), Span(17, 17), Span(18, 18), Span(19, 19)]
    assert merged.steps(spans, 1, 16)[:3] == [Span(1, 4), Span(5, 8), Span(9, 12)]
    assert merged.steps(spans, 2, 9) == [Span(2, 2), Span(3, 3), Span(4, 4), Span(5, 8), Span(9, 9)]
    assert merged.steps([], 3, 4) == [Span(3, 3), Span(4, 4)]
    assert merged.steps(spans, 5, 4) == []
