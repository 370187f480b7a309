"""Retention in a running cluster: what is within it is restored, row by row; what is older is gone."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import NotRetained
from littlebigcluster.epochs import epoch_of, names, read_identity, retained, survey_all
from littlebigcluster.epochs.pins import pinned
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.roles import restore, restore_at
from littlebigcluster.roles import retention as module
from littlebigcluster.roles.retention import STANDING_SECONDS, Retention
from littlebigcluster.store import Counting, Store
from tests.clocks import HandClock
from tests.dated import Dated
from tests.dying import Dying
from tests.scenarios.stage import Actor, Stage, eventually, stage

RETENTION = 3600.0


async def grow(s: Stage, a: Actor, epochs: int = 30) -> None:
    """Write epochs three minutes apart, with a snapshot at every fifth, however slow the machine is."""
    for _ in range(epochs):
        s.store.pass_time(180)  # type: ignore[attr-defined]
        assert await s.recorder.write(a.node) == "acknowledged"
        await eventually(lambda: a.node._local.since_snapshot.log_epochs < 5)


async def restored_rows(store: Store, directory: Path, epoch: int | None) -> tuple[int, list[int]]:
    """The epoch and the writes in what is restored: the head, or `epoch`."""
    identity, _ = await read_identity(store)
    if epoch is None:
        made = await restore(store, identity, directory, clock=HandClock(), afresh=True)
    else:
        made = await restore_at(store, identity, directory, await retained(store), epoch, clock=HandClock())
    with contextlib.closing(made.replica), contextlib.closing(made.replica.connect()) as db:
        return made.position.epoch, [row[0] for row in db.execute("SELECT id FROM op ORDER BY id")]


def writes_at(s: Stage, epoch: int) -> list[int]:
    return sorted(write for write, of in s.recorder.history.epochs.items() if of <= epoch)


def within(s: Stage, a: Actor) -> list[int]:
    """The epochs that were the newest one at some time within the retention."""
    store: Any = s.store
    head, cutoff = a.node.epoch.value, store.now - timedelta(seconds=RETENTION)
    return [epoch for epoch in range(1, head + 1) if epoch == head or store.dates[names.wal(epoch + 1)] > cutoff]


async def one_after_the_other(retention: Retention, clock: HandClock, passes: int) -> None:
    for _ in range(passes):
        clock.sleep_machine(STANDING_SECONDS + 1)
        await retention.make_pass()


def retention_of(s: Stage, a: Actor, clock: HandClock, store: Store | None = None) -> Retention:
    async def no_snapshot() -> None:
        raise AssertionError("there are snapshots enough")

    return Retention(store or s.store, a.node._local, RETENTION, make_snapshot=no_snapshot, clock=clock)


async def test_every_epoch_within_retention_is_restored_and_older_ones_are_refused(tmp_path: Path) -> None:
    async with stage(Dated()) as s:
        a = await s.leader(snapshot_epochs=5)
        await grow(s, a)
        clock, kept = HandClock(), within(s, a)
        await one_after_the_other(retention_of(s, a, clock), clock, 2)
        oldest = epoch_of((await survey_all(s.store)).epochs[0])
        assert 1 < oldest <= kept[0] < oldest + 8
        for epoch in kept:
            assert await restored_rows(s.store, tmp_path, epoch) == (epoch, writes_at(s, epoch))
        with pytest.raises(NotRetained, match=f"goes from epoch {oldest} "):
            await s.cluster.restore(tmp_path / "old.db", oldest - 1)
        await s.recorder.write(a.node)
        b = await s.follower()
        assert b.node.epoch.value == a.node.epoch.value
        await s.check()


@pytest.mark.parametrize("how", ["before", "after", "half"])
async def test_a_leader_that_dies_at_any_request_of_a_pass_takes_nothing_along(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELETE_BATCH", 6)
    async with stage(Dated()) as s:
        a = await s.leader(snapshot_epochs=5)
        await grow(s, a)
        original, died, kept = s.store, 0, within(s, a)
        assert isinstance(original, Dated)
        for at in range(1, 25):
            s.store = await original.copy()
            clock = HandClock()
            try:
                await one_after_the_other(retention_of(s, a, clock, Dying(s.store, at, how)), clock, 2)
            except StoreUnavailable:
                died += 1
            for epoch in (kept[0], kept[at % len(kept)]):
                assert await restored_rows(s.store, tmp_path, epoch) == (epoch, writes_at(s, epoch))
            assert await restored_rows(s.store, tmp_path, None) == (kept[-1], writes_at(s, kept[-1]))
            await one_after_the_other(retention_of(s, a, clock), clock, 3)
            left = await survey_all(s.store)
            assert epoch_of(left.epochs[0]) == epoch_of(left.snapshots[-1]) > 1
            assert await restored_rows(s.store, tmp_path, kept[0]) == (kept[0], writes_at(s, kept[0]))
        assert 8 < died < 24, "every request was tried"
        s.store = original


async def test_a_restore_that_is_pinned_outlives_passes(tmp_path: Path) -> None:
    async with stage(Dated()) as s:
        a = await s.leader(snapshot_epochs=5)
        await grow(s, a)
        clock = HandClock()
        retention = retention_of(s, a, clock)
        async with pinned(s.store, 7, clock=clock):
            await one_after_the_other(retention, clock, 3)
            assert await restored_rows(s.store, tmp_path, 7) == (7, writes_at(s, 7))
        await one_after_the_other(retention, clock, 3)
        with pytest.raises(NotRetained):
            await s.cluster.restore(tmp_path / "old.db", 7)


async def test_the_leader_makes_passes_by_itself_and_none_while_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PASS_SECONDS", 0.05)
    monkeypatch.setattr(module, "pass_interval", lambda _: 0.05)
    make_pass, passed = Retention.make_pass, list[int]()

    async def noted(self: Retention) -> None:
        head = self._local.epoch.value
        await make_pass(self)
        passed.append(head)

    monkeypatch.setattr(Retention, "make_pass", noted)
    async with stage(Dated()) as s:
        clock = HandClock()
        counting = Counting(s.store)
        a = await s.leader(snapshot_epochs=5, retention=RETENTION, clock=clock, store=counting)
        # Without a feed, a follower that is far behind would list; there is none.
        await grow(s, a)
        clock.sleep_machine(STANDING_SECONDS + 1)
        await s.recorder.write(a.node)
        await eventually(lambda: a.node._local.log.fence_holds)

        async def grows_until_old_ones_are_gone() -> None:
            while await s.store.get(names.wal(1)) is not None:
                clock.sleep_machine(STANDING_SECONDS + 1)
                await s.recorder.write(a.node)
                await asyncio.sleep(0.1)

        await asyncio.wait_for(grows_until_old_ones_are_gone(), 20)
        await eventually(lambda: passed[-1] == a.node.epoch.value)
        counting.reset()
        await asyncio.sleep(0.5)
        assert counting.requests["list"] == 0
        clock.sleep_machine(module.IDLE_SECONDS)
        await eventually(lambda: counting.requests["list"])
        await s.check()


async def test_a_pass_that_fails_is_tried_again_and_does_not_end_the_leadership(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PASS_SECONDS", 0.05)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)

    class NoLists(Dated):
        failing = False

        async def list(self, prefix: str, start_after: str = "") -> Any:
            if self.failing and prefix == names.DIRECTORY:
                raise StoreUnavailable("no list")
            return await super().list(prefix, start_after)

    store = NoLists()
    async with stage(store) as s:
        store.failing = True  # not before: `init` lists, too
        a = await s.leader()
        await eventually(lambda: caplog.text.count("will try again: no list") > 1)
        store.failing = False
        term = a.node.term
        assert await s.recorder.write(a.node) == "acknowledged"
        assert a.node.term == term
        await s.check()
