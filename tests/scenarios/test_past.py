"""Restoring and reading what was: any epoch, as a file or in place."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Cluster, CorruptLog, NotRetained, StoreUnavailable, WrongCluster
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import past
from littlebigcluster.epochs import names
from littlebigcluster.store import Store
from littlebigcluster.store.wrappers import Wrapper
from tests.cluster.group import Group, eventually, group
from tests.scenarios.stage import Gate, memory

Rows = list[tuple[Any, ...]]


class LateClock(Clock):
    """Each epoch is written a minute after the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = datetime.now(UTC)

    def now(self) -> datetime:
        return self.moment


class History:
    """A cluster with a past, and the rows of each epoch of it."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, LateClock()
        self.cluster = Cluster(store, clock=self.clock)
        self.rows: dict[int, Rows] = {}
        self.moments: dict[int, datetime] = {}

    def now(self) -> datetime:
        self.clock.moment += timedelta(minutes=1)
        return self.clock.moment


QUERY = "SELECT * FROM job ORDER BY 1"


def rows_of(path: Path) -> Rows:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute(QUERY).fetchall()


async def lived(g: Group, epochs: int, *, seed: int = 0, snapshot_epochs: int = 7) -> History:
    """Epochs that grow, shrink and change the table; snapshots now and then."""
    chance = random.Random(seed)
    history = History(g.store)
    node = await g.node(can_lead=True, settings={"snapshot_epochs": snapshot_epochs})
    node._clock.now = history.now  # type: ignore[method-assign]
    await node.wait_until_leader()
    await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, v)")
    for _ in range(epochs):
        match chance.randrange(4):
            case 0:
                await node.execute("DELETE FROM job WHERE id % 3 = ?", (chance.randrange(3),))
            case 1:
                await node.execute("UPDATE job SET v = randomblob(?)", (chance.randrange(300),))
            case _:
                await node.executemany(
                    "INSERT INTO job(v) VALUES (?)", [(chance.randbytes(chance.randrange(5000)),) for _ in range(5)]
                )
        history.rows[node.epoch.value] = await node.read(QUERY)
        history.moments[node.epoch.value] = node._local.metadata.created_at
        since = node._local.since_snapshot
        if since.log_epochs >= snapshot_epochs:  # due: a slow machine would make fewer than tests count on
            await eventually(lambda since=since: node._local.since_snapshot is not since)
    await g.leave(node)
    return history


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def test_every_epoch_can_be_restored_and_read(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 40)
    assert len([info for info in await g.store.list(names.DIRECTORY) if info.key.endswith(".db")]) > 3
    for epoch, rows in history.rows.items():
        path = tmp_path / f"{epoch}.db"
        seen: list[tuple[int, int]] = []
        metadata = await history.cluster.restore(path, epoch, on_bytes=lambda *at, seen=seen: seen.append(at))
        assert metadata.epoch == epoch
        assert rows_of(path) == rows
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]
        async with history.cluster.at(epoch) as state:
            assert (await state.query(QUERY)).rows == rows
    assert {path.suffix for path in tmp_path.iterdir()} == {".db"}, "nothing is left beside the files"


async def test_a_moment_means_the_epoch_that_was_the_newest_then(g: Group) -> None:
    history = await lived(g, 12)
    last = max(history.rows)
    for epoch, moment in history.moments.items():
        for shift in (timedelta(0), timedelta(seconds=59)) if epoch < last else (timedelta(0),):
            async with history.cluster.at(moment + shift) as state:
                assert state.metadata.epoch == epoch
    history.clock.moment = history.moments[last] + timedelta(hours=5)
    async with history.cluster.at(timedelta(hours=5, minutes=1)) as state:
        assert state.metadata.epoch == last - 1
    async with history.cluster.at(history.moments[last].astimezone(timezone(timedelta(hours=9)))) as state:
        assert state.metadata.epoch == last


async def test_points_that_are_not_there_are_refused_and_say_what_is(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 5)
    head = max(history.rows) + 1  # the release
    history.clock.moment = history.moments[head - 1] + timedelta(days=1)
    for point, why in [
        (head + 1, rf"epoch {head + 1} is not in the log, which goes from epoch 0 \(.*Z\) to epoch {head} \("),
        (-1, "epoch -1 is not in the log"),
        (timedelta(days=5000), "is not in the log, which goes from epoch 0"),
        (history.clock.moment + timedelta(seconds=1), "is still to come; the log goes"),
        (timedelta(seconds=-5), "still to come"),
    ]:
        with pytest.raises(NotRetained, match=why):
            await history.cluster.restore(tmp_path / "x.db", point)
    for bad, kind in [(datetime(2026, 1, 1), ValueError), ("2026", TypeError), (True, TypeError), (1.5, TypeError)]:  # noqa: DTZ001
        with pytest.raises(kind):
            await history.cluster.restore(tmp_path / "x.db", bad)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WrongCluster):
        await Cluster(g.store, id="other").restore(tmp_path / "x.db")


async def test_a_file_that_is_there_is_left_as_it_is(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 2)
    path = tmp_path / "x.db"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="is left as it is"):
        await history.cluster.restore(path)
    assert path.read_bytes() == b"precious"
    (tmp_path / "x.db-wal").touch()
    with pytest.raises(FileExistsError, match=r"x\.db-wal belongs to another database"):
        await history.cluster.restore(path, overwrite=True)
    (tmp_path / "x.db-wal").unlink()
    await history.cluster.restore(path, overwrite=True)
    assert rows_of(path) == history.rows[max(history.rows)]
    with pytest.raises(IsADirectoryError):
        await history.cluster.restore(tmp_path)
    with pytest.raises(FileNotFoundError):
        await history.cluster.restore(tmp_path / "nowhere" / "x.db")


async def test_a_damaged_snapshot_is_passed_over_and_a_damaged_epoch_is_named(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 20)
    snapshots = [info.key for info in await g.store.list(names.DIRECTORY) if info.key.endswith(".db")]
    newest = int(Path(snapshots[-1]).stem)
    for key in snapshots[1:]:
        await g.store.put(key, (await g.store.get(key) or b"")[:-20] + b"x" * 20)
    path = tmp_path / "x.db"
    await history.cluster.restore(path, newest)
    assert rows_of(path) == history.rows[newest]
    broken = names.wal(newest - 1)
    await g.store.put(broken, b"x" * 5000)
    with pytest.raises(CorruptLog, match=broken):
        await history.cluster.restore(tmp_path / "y.db", newest)
    await history.cluster.restore(tmp_path / "z.db", newest - 2)
    await g.store.delete([broken])
    with pytest.raises(CorruptLog, match="the log has a hole"):
        await history.cluster.restore(tmp_path / "y.db", newest)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.db", "z.db"]


async def test_a_full_disk_leaves_nothing(g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = await lived(g, 3)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(past.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        await history.cluster.restore(tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_whose_content_is_not_what_the_log_says_does_not_appear(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = await lived(g, 3)
    finish = past._finish

    def after_damage(restored: Any, *how: Any) -> None:
        with restored.replica.path.open("r+b") as file:
            file.seek(4096 + 100)
            file.write(b"bad luck")
        finish(restored, *how)

    monkeypatch.setattr(past, "_finish", after_damage)
    with pytest.raises(CorruptLog, match="state checksum"):
        await history.cluster.restore(tmp_path / "x.db", 0)
    assert list(tmp_path.iterdir()) == []


async def test_what_is_being_restored_is_pinned_and_let_go(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 12)
    seen: list[dict[str, Any]] = []
    gate = Gate(g.store)
    cluster = Cluster(gate, clock=history.clock)
    gate.shut(only="get_range")  # snapshots are read by ranges
    restoring = asyncio.create_task(cluster.restore(tmp_path / "x.db", 9))
    await eventually(lambda: gate.held)
    for info in await g.store.list(names.PINS):
        seen.append(json.loads(await g.store.get(info.key) or b""))
    gate.open()
    assert (await restoring).epoch == 9
    assert [(pin["epoch"], pin["purpose"]) for pin in seen] == [(9, "a restore")]
    assert await g.store.list(names.PINS) == []


async def test_who_may_only_read_can_restore(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 3)

    class ReadOnly(Wrapper):
        async def _request(self, operation: Any, key: str, send: Any) -> Any:
            if operation not in ("get", "get_range", "list"):
                raise StoreUnavailable("access denied", transient=False)
            return await send()

    await Cluster(ReadOnly(g.store), clock=history.clock).restore(tmp_path / "x.db", 3)
    assert rows_of(tmp_path / "x.db") == history.rows[3]


class Running(Wrapper):
    """Counts the requests that are under way; from the third epoch on they get no answer."""

    under_way = 0

    async def _request(self, operation: Any, key: str, send: Any) -> Any:
        self.under_way += 1
        try:
            parsed = names.parse(key)
            if operation == "get_range" and parsed is not None and parsed[1] > 2:
                await asyncio.Event().wait()
            return await send()
        finally:
            self.under_way -= 1


async def test_a_history_that_is_not_read_to_its_end_leaves_no_request_behind(g: Group) -> None:
    await lived(g, 10)
    store = Running(g.store)
    async with aclosing(Cluster(store).history()) as entries:
        await anext(entries)
        assert store.under_way
    assert store.under_way == 0
