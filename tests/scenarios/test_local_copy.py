"""The local copy of a node: written to by somebody else, kept, spoilt, too old, of another cluster."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from littlebigcluster import Cluster
from tests.scenarios.damage import wrong_bit
from tests.scenarios.stage import WAIT, eventually, memory, stage


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
        while b.node.database_path == before:
            if reads == 20:
                b.gate.open()
            await b.node.read("SELECT count(*) FROM op")
            with b.node.connection() as first, b.node.connection() as second:
                assert first.execute("SELECT 1").fetchall() == second.execute("SELECT 1").fetchall()
            reads += 1
            await asyncio.sleep(0.005)
        assert reads >= 20
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
