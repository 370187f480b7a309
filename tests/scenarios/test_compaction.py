"""Merged epochs in a running cluster: a join reads few objects, and nothing else changes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from littlebigcluster.epochs import Span, names, span_of, survey_all
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import Counting, Fault
from littlebigcluster.store.wrappers import Operation, Wrapper
from tests.roles.long_logs import small_spans
from tests.scenarios.stage import WAIT, Stage, eventually, stage

restore_module = sys.modules["littlebigcluster.roles.restore"]  # the package has a function of this name

__all__ = ["small_spans"]

T = TypeVar("T")


async def merged(s: Stage) -> list[Span]:
    return [span_of(info) for info in (await survey_all(s.store)).merged]


async def until_merged(s: Stage, span: Span) -> None:
    async with asyncio.timeout(WAIT):
        while span not in await merged(s):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_join_over_many_epochs_reads_few_objects() -> None:
    async with stage() as s:
        a = await s.leader()
        while a.node.epoch.value < 150:
            assert await s.recorder.write(a.node) == "acknowledged"
        await until_merged(s, Span(65, 128))
        counting = Counting(s.store)
        b = await s.follower(store=counting)
        assert b.node.epoch.value == a.node.epoch.value
        assert counting.requests["get"] < 150 - 128 + 10
        assert [entry.metadata.epoch async for entry in s.cluster.history(limit=None)] == [
            *range(1, a.node.epoch.value + 1)
        ]
        assert (await s.cluster.verify(deep=True)).findings == []
        await s.check()


async def test_leaders_make_up_for_what_others_have_left_undone(small_spans: None) -> None:
    async with stage() as s:
        a = await s.leader()
        await eventually(lambda: a.node.epoch.value >= 2)
        a.gate.shut("put")  # beacons and merged epochs
        while a.node.epoch.value < 13:
            assert await s.recorder.write(a.node) == "acknowledged"
        assert await merged(s) == []
        await a.kill()
        b = await s.leader()
        while b.node.epoch.value < 16:
            assert await s.recorder.write(b.node) == "acknowledged"
        await until_merged(s, Span(1, 16))
        assert await merged(s) == sorted([Span(1, 16), *(Span(first, first + 3) for first in (1, 5, 9, 13))])
        assert (await s.cluster.verify(deep=True)).findings == []
        await s.check()


async def test_a_deposed_leader_that_writes_merged_epochs_late_does_no_harm(small_spans: None, tmp_path: Path) -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        a.network._zombie_seconds = None
        late = Span(1, 4)
        a.network.next("put", Fault.HANG, key=late.name)
        while a.node.epoch.value < 5:
            assert await s.recorder.write(a.node) == "acknowledged"
        await eventually(lambda: a.network.zombies)
        await a.kill()
        await b.node.wait_until_leader(timeout=WAIT)
        while b.node.epoch.value < 24:
            assert await s.recorder.write(b.node) == "acknowledged"
        await until_merged(s, Span(1, 16))
        before = await s.store.get(late.name)
        await s.store.delete([late.name])
        await a.network.settle()
        assert await s.store.get(late.name) == before
        await s.cluster.restore(tmp_path / "x.db", 6)
        await s.follower()
        await s.check()


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_follower_that_is_far_behind_catches_up_by_merged_epochs(small_spans: None, damaged: bool) -> None:
    async with stage() as s:
        a = await s.leader()
        counting = Counting(s.store)
        b = await s.follower(store=counting)
        b.gate.shut()
        at = b.node.epoch.value
        while a.node.epoch.value < 150:
            assert await s.recorder.write(a.node) == "acknowledged"
        await until_merged(s, Span(145, 148))
        if damaged:
            for span in await merged(s):
                if span.first % 3 == 0:
                    await s.store.put(span.name, b"rubbish")
        counting.reset()
        b.gate.open()
        await eventually(lambda: b.node.epoch.value == a.node.epoch.value)
        assert counting.requests["get"] < (150 - at) / (2 if damaged else 3)
        assert b.node._local.metadata.kind == "wal"
        await s.check()


class WithoutMerged(Wrapper):
    """A store that answers nothing but errors when it is asked for merged epochs."""

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        if operation == "get" and names.parse_merged(key):
            raise StoreUnavailable(f"GET {key}: 500")
        return await super()._request(operation, key, send)


async def test_merged_epochs_that_the_store_does_not_give_hold_nobody_up(small_spans: None) -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.follower(store=WithoutMerged(s.store))
        b.gate.shut()
        while a.node.epoch.value < 60:
            assert await s.recorder.write(a.node) == "acknowledged"
        await until_merged(s, Span(49, 52))
        b.gate.open()
        await eventually(lambda: b.node.epoch.value == a.node.epoch.value)
        c = await s.follower(store=WithoutMerged(s.store))
        assert c.node.epoch.value == a.node.epoch.value
        await s.check()


@pytest.mark.parametrize("most", [3, 30])
async def test_a_kept_copy_is_caught_up_unless_it_lacks_many_objects(
    small_spans: None, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(restore_module, "_MAX_CATCH_UP", most)
    async with stage() as s:
        a = await s.leader(snapshot_epochs=40)
        b = await s.follower(directory=tmp_path)
        await eventually(lambda: b.node.epoch.value == a.node.epoch.value)
        await b.leave()
        while a.node.epoch.value < 70:
            assert await s.recorder.write(a.node) == "acknowledged"
        await until_merged(s, Span(1, 64))
        await eventually(lambda: a.node._local.since_snapshot.epoch)
        counting = Counting(s.store)
        c = await s.follower(directory=tmp_path, store=counting)
        assert c.node.epoch.value == a.node.epoch.value
        assert ("dropping the former local copy" in caplog.text) is (most == 3)
        assert counting.requests["get"] < 40
        await s.check()
