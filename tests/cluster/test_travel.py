"""Reads of the past on a node."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
import threading
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import CorruptLog, DeadlineExceeded, LbcError, Node, NotAllowed, NotRetained, SnapshotExpired
from littlebigcluster.cluster import travel
from littlebigcluster.database import Replica
from littlebigcluster.epochs import names
from littlebigcluster.roles import Restored
from tests.cluster.group import Group, eventually, group
from tests.scenarios.stage import Gate, memory

Rows = list[tuple[Any, ...]]
QUERY = "SELECT id, v FROM t ORDER BY id"
PAGE = 4096


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


class Writer:
    """Writes on a leader, and knows what each epoch holds."""

    def __init__(self, node: Node, seed: int = 0) -> None:
        self.node, self._chance = node, random.Random(seed)
        self.rows: dict[int, Rows] = {}

    async def write(self, epochs: int) -> None:
        for _ in range(epochs):
            match self._chance.randrange(4):
                case 0:
                    sql, rows = "DELETE FROM t WHERE id % 3 = ?", [(self._chance.randrange(3),)]
                case 1:
                    sql, rows = "UPDATE t SET v = ?", [(self._chance.randbytes(self._chance.randrange(300)),)]
                case _:
                    some = [(self._chance.randbytes(self._chance.randrange(5000)),) for _ in range(5)]
                    sql, rows = "INSERT INTO t(v) VALUES (?)", some
            done = await self.node.executemany(sql, rows)
            self.rows[done.epoch] = await self.node.read(QUERY)


async def written(g: Group, epochs: int, **settings: Any) -> tuple[Node, Writer]:
    node = await g.node(can_lead=True, settings={"snapshot_epochs": 7, **settings})
    await node.wait_until_leader(timeout=20)
    await node.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    writer = Writer(node)
    await writer.write(epochs)
    return node, writer


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("past-*"))


async def read_at(node: Node, point: Any) -> Rows:
    async with node.at(point) as past:
        return await past.read(QUERY)


# -- what is read ------------------------------------------------------------------------------------------------


async def test_every_epoch_is_read_by_many_while_the_leader_writes(g: Group, tmp_path: Path) -> None:
    leader, writer = await written(g, 25)
    size = leader._local.replica.size_bytes
    follower = await g.node(settings={"past_cache_bytes": 8 * size, "directory": tmp_path})
    known = dict(writer.rows)
    chance = random.Random(1)

    async def ask(node: Node) -> None:
        for epoch in chance.sample(sorted(known), 12):
            async with node.at(epoch) as past:
                assert past.epoch == epoch
                assert await past.read(QUERY) == known[epoch]
                with past.connection() as db:
                    assert db.execute(QUERY).fetchall() == known[epoch]

    newest: list[tuple[int, Rows]] = []

    async def ask_for_the_present(node: Node) -> None:
        while not writing.done():
            async with node.at(node.epoch.value) as past:  # which becomes the past on the way
                newest.append((past.epoch, await past.read(QUERY)))

    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(writer.write(25))
        for node in (leader, follower) * 3:
            tasks.create_task(ask(node))
        for node in (leader, follower):
            tasks.create_task(ask_for_the_present(node))
    for epoch, rows in newest:
        assert rows == writer.rows[epoch]
    kept = sum(path.stat().st_size for path in tmp_path.glob("past-*/**/*") if path.is_file())
    assert 0 < kept <= 8 * size
    for epoch, rows in writer.rows.items():
        assert await read_at(follower, epoch) == rows
        assert await follower.read(QUERY, at_least=max(writer.rows)) == writer.rows[max(writer.rows)]


async def test_a_point_is_an_epoch_a_moment_or_an_age(g: Group) -> None:
    node, writer = await written(g, 6)
    epoch = sorted(writer.rows)[2]
    async with node.at(epoch) as past:
        moment = past.moment
    async with node.at(moment) as past:
        assert (past.epoch, past.moment) == (epoch, moment)
        assert await past.read(QUERY) == writer.rows[epoch]
    async with node.at(timedelta(0)) as past:
        assert past.epoch == node.epoch.value
    for bad, kind in [
        (node.epoch.value + 1, NotRetained),
        (-1, NotRetained),
        (timedelta(days=1), NotRetained),
        (timedelta(days=-1), NotRetained),
        (datetime(2026, 1, 1), ValueError),  # noqa: DTZ001
        ("yesterday", TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(kind):
            await read_at(node, bad)


async def test_the_past_is_read_like_the_present(g: Group) -> None:
    node, writer = await written(g, 6, max_read_age=0.2)
    epoch = sorted(writer.rows)[2]
    async with node.at(epoch) as past:
        named = await past.read("SELECT ? AS a", (7,), row_factory=sqlite3.Row)
        assert named[0]["a"] == 7
        for sql in ("DELETE FROM t", "ATTACH 'x' AS x", "PRAGMA journal_mode = DELETE"):
            with pytest.raises(NotAllowed):
                await past.read(sql)
        with pytest.raises(DeadlineExceeded):
            await past.read(
                "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i FROM n) SELECT * FROM n", timeout=0.1
            )
        with past.connection() as db:
            await asyncio.sleep(1.5)  # far longer than max_read_age, which is for the present
            assert db.execute(QUERY).fetchall() == writer.rows[epoch]
            with pytest.raises(sqlite3.OperationalError):
                db.execute("DELETE FROM t")
    with pytest.raises(LbcError, match=f"the state of epoch {epoch} was given back"):
        await past.read(QUERY)
    with pytest.raises(LbcError, match="was given back"), past.connection():
        pass


# -- who shares it ---------------------------------------------------------------------------------------------------


class Restores:
    """Counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs: list[int] = []
        real = travel.restore_at

        async def restore_at(store: Any, identity: Any, directory: Any, found: Any, epoch: int, **more: Any) -> Any:
            self.epochs.append(epoch)
            return await real(store, identity, directory, found, epoch, **more)

        monkeypatch.setattr(travel, "restore_at", restore_at)


async def gated(g: Group, tmp_path: Path, epochs: int = 10) -> tuple[Gate, Node, Writer]:
    """A follower whose store can be shut."""
    _, writer = await written(g, epochs, snapshot_epochs=1000)
    gate = Gate(g.store)
    return gate, await g.node(store=gate, settings={"directory": tmp_path}), writer


async def test_two_who_ask_at_once_cause_one_restore(g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restores = Restores(monkeypatch)
    gate, node, writer = await gated(g, tmp_path)
    epoch = min(writer.rows)
    gate.shut("get")
    asking = [asyncio.create_task(read_at(node, epoch)) for _ in range(5)]
    await eventually(lambda: gate.held)
    asking[0].cancel()
    asking[3].cancel()
    await asyncio.wait([asking[0], asking[3]])
    gate.open()
    for task in (asking[1], asking[2], asking[4]):
        assert await task == writer.rows[epoch]
    assert await read_at(node, epoch) == writer.rows[epoch]
    assert restores.epochs == [epoch]
    assert len(left(tmp_path)) == 1


@pytest.mark.parametrize("operation", ["get", "get_range"])
async def test_the_last_who_gives_up_ends_it(g: Group, tmp_path: Path, operation: Any) -> None:
    gate, node, writer = await gated(g, tmp_path)
    epoch = min(writer.rows)
    for asking in (1, 3):
        gate.shut(operation)
        tasks = [asyncio.create_task(read_at(node, epoch)) for _ in range(asking)]
        await eventually(lambda: gate.held)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert left(tmp_path) == []
        assert node._travel._states == {}
        gate.open()
    assert await read_at(node, epoch) == writer.rows[epoch]


async def test_cancelled_at_any_moment_it_leaves_nothing(g: Group, tmp_path: Path) -> None:
    _, node, writer = await gated(g, tmp_path, 20)
    chance = random.Random(5)
    for _ in range(30):
        asking = asyncio.create_task(read_at(node, chance.choice(sorted(writer.rows)[:-1])))
        await asyncio.sleep(chance.random() * 0.05)
        asking.cancel()
        await asyncio.wait([asking])
        used = {kept.directory.name for kept in node._travel._states.values()}
        assert set(left(tmp_path)) == used, "what is on the disk is what is kept"
        for kept in list(node._travel._states.values()):
            node._travel._drop(kept)
        await eventually(lambda: not node._travel._ending)
        assert left(tmp_path) == []


async def test_cancelled_while_a_thread_opens_the_copy_it_waits_for_that(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, node, writer = await gated(g, tmp_path)
    opened: list[Replica] = []
    go_on = threading.Event()
    real = Replica.open

    def slow(*arguments: Any, **more: Any) -> Replica:
        opened.append(real(*arguments, **more))
        assert go_on.wait(30)
        return opened[0]

    monkeypatch.setattr(Replica, "open", slow)
    asking = asyncio.create_task(read_at(node, min(writer.rows)))
    await eventually(lambda: opened)
    asking.cancel()
    await asyncio.sleep(0.05)
    assert not asking.done()
    go_on.set()
    await asyncio.wait([asking])
    assert opened[0]._closed
    assert left(tmp_path) == []


# -- the disk --------------------------------------------------------------------------------------------------------


async def big(g: Group, epochs: int = 6) -> tuple[Node, list[int]]:
    """A leader whose database is about 100 pages in each epoch."""
    node = await g.leader()
    done = []
    for number in range(epochs):
        await node.execute("DELETE FROM job")
        done.append((await node.execute("INSERT INTO job VALUES (zeroblob(400000) || ?)", (number,))).epoch)
    return node, done


async def test_the_least_recently_used_go_first_and_those_in_use_stay(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restores = Restores(monkeypatch)
    leader, (a, b, c, d, *_) = await big(g)
    size = leader._local.replica.size_bytes
    node = await g.node(settings={"past_cache_bytes": 2 * size + 5 * PAGE, "directory": tmp_path})

    async def ask(epoch: int) -> None:
        async with node.at(epoch) as past:
            await past.read("SELECT 1")

    for epoch in (a, b, a, c, a):  # c takes the place of b
        await ask(epoch)
    assert restores.epochs == [a, b, c]
    await ask(b)  # takes the place of c
    assert restores.epochs == [a, b, c, b]
    async with node.at(a) as first:
        async with node.at(d):
            assert len(left(tmp_path)) == 2
            with pytest.raises(LbcError, match=r"takes \d+ bytes; past_cache_bytes is \d+, of which \d+ are in use"):
                await ask(c)
            assert len(left(tmp_path)) == 2
        await ask(c)
        assert await first.read("SELECT count(*) FROM job") == [(1,)]
    assert restores.epochs == [a, b, c, b, d, c]
    assert sum(path.stat().st_size for path in tmp_path.glob("past-*/**/*") if path.is_file()) <= 2 * size + 5 * PAGE


async def test_one_that_is_larger_than_all_the_room_is_refused(g: Group, tmp_path: Path) -> None:
    _, (a, *_) = await big(g, 2)
    node = await g.node(settings={"past_cache_bytes": 10 * PAGE, "directory": tmp_path})
    with pytest.raises(LbcError, match="past_cache_bytes is 40960, of which 0 are in use"):
        await read_at(node, a)
    async with node.at(2):  # is small
        pass


@pytest.mark.parametrize("present", [False, True])
async def test_a_full_disk_leaves_nothing(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    _, node, writer = await gated(g, tmp_path)
    last = max(writer.rows)
    await node.epoch.until(lambda epoch: epoch >= last, timeout=20)

    def full(*arguments: Any, **__: Any) -> Any:
        if isinstance(arguments[0], Restored):
            arguments[0].replica.close()  # as `fold` does, first of all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(travel, "write_database" if present else "fold", full)
        with pytest.raises(OSError, match="No space left"):
            await read_at(node, last if present else last - 1)
    assert left(tmp_path) == []
    assert await read_at(node, last if present else last - 1) == writer.rows[last if present else last - 1]


async def test_damaged_and_missing_objects_are_named_and_nothing_is_left(g: Group, tmp_path: Path) -> None:
    _, node, writer = await gated(g, tmp_path)
    first, *_, last = sorted(writer.rows)
    broken = names.wal(first)
    good = await g.store.get(broken)
    assert good is not None
    for damage in (good[:-20] + b"x" * 20, None):
        if damage is None:
            await g.store.delete([broken])
        else:
            await g.store.put(broken, damage)
        with pytest.raises(CorruptLog, match=broken):
            await read_at(node, last - 1)
        assert left(tmp_path) == []
    await g.store.put(broken, good)
    assert await read_at(node, last - 1) == writer.rows[last - 1]


async def test_it_goes_with_the_node_and_what_a_crashed_node_left_with_the_next_one(g: Group, tmp_path: Path) -> None:
    _, node, writer = await gated(g, tmp_path)
    epoch = min(writer.rows)
    await read_at(node, epoch)
    assert len(left(tmp_path)) == 1
    await g.leave(node)
    assert left(tmp_path) == []
    (tmp_path / "past-00ff").mkdir()
    (tmp_path / "past-00ff" / "copy.db").write_bytes(b"x")
    node = await g.node(settings={"directory": tmp_path})
    assert left(tmp_path) == []
    assert await read_at(node, epoch) == writer.rows[epoch]


async def test_reads_end_when_the_node_does(g: Group, tmp_path: Path) -> None:
    gate, node, writer = await gated(g, tmp_path)
    first, second, *_ = sorted(writer.rows)
    held, over = threading.Event(), threading.Event()

    async def hold() -> None:
        async with node.at(first) as past:

            def read() -> None:
                with past.connection() as db:
                    held.set()
                    assert over.wait(30)
                    db.execute(QUERY)

            await asyncio.to_thread(read)

    holding = asyncio.create_task(hold())
    assert await asyncio.to_thread(held.wait, 30)
    gate.shut("get")
    waiting = asyncio.create_task(read_at(node, second))
    await eventually(lambda: gate.held)
    leaving = asyncio.create_task(node._travel.close())
    await asyncio.sleep(0.1)
    over.set()
    gate.open()
    await leaving
    with pytest.raises(LbcError, match="the node has stopped"):
        await waiting
    with pytest.raises(SnapshotExpired):
        await holding
    with pytest.raises(LbcError, match="the node has stopped"):
        await read_at(node, first)
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["past-", "replica-"])
async def test_who_gives_up_while_a_directory_is_being_made_leaves_none(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _, node, writer = await gated(g, tmp_path)
    making, go_on, made = threading.Event(), threading.Event(), threading.Event()
    mkdir = Path.mkdir

    def slowly(self: Path, *args: Any, **options: Any) -> None:
        if self.name.startswith(kind):
            making.set()
            assert go_on.wait(30)
        mkdir(self, *args, **options)
        if self.name.startswith(kind):
            made.set()

    monkeypatch.setattr(Path, "mkdir", slowly)
    reading = asyncio.create_task(read_at(node, min(writer.rows)))
    assert await asyncio.to_thread(making.wait, 30)
    reading.cancel()
    await asyncio.wait([reading], timeout=0.2)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await asyncio.to_thread(made.wait, 30)
    await node._travel.close()
    assert left(tmp_path) == []


# -- where it comes from ---------------------------------------------------------------------------------------------


async def test_the_present_is_copied_from_the_local_replica(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restores = Restores(monkeypatch)
    _, node, writer = await gated(g, tmp_path)
    last = max(writer.rows)
    await node.epoch.until(lambda epoch: epoch >= last, timeout=20)
    async with node.at(last) as past:
        await writer.write(3)
        await node.epoch.until(lambda epoch: epoch >= last + 3, timeout=20)
        assert await past.read(QUERY) == writer.rows[last]
    assert restores.epochs == []


async def test_a_local_replica_that_is_damaged_is_not_copied(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restores = Restores(monkeypatch)
    _, node, writer = await gated(g, tmp_path)
    last = max(writer.rows)
    await node.epoch.until(lambda epoch: epoch >= last, timeout=20)
    real = travel.write_database

    def damaged(path: Path, chunks: Any, *, page_size: int) -> Any:
        return real(path, (bytes(chunk[:-1]) + b"!" for chunk in chunks), page_size=page_size)

    monkeypatch.setattr(travel, "write_database", damaged)
    assert await read_at(node, last) == writer.rows[last]
    assert restores.epochs == [last]


async def test_what_retention_has_passed_is_refused_but_read_while_it_is_at_hand(g: Group, tmp_path: Path) -> None:
    _, node, writer = await gated(g, tmp_path)
    first, second, *_ = sorted(writer.rows)
    await read_at(node, first)
    await g.store.put(names.LAST_RETAINED, names.marker(max(writer.rows)))
    with pytest.raises(NotRetained):
        await read_at(node, second)
    assert await read_at(node, first) == writer.rows[first]
    assert len(left(tmp_path)) == 1
