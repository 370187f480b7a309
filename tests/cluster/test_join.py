"""Joining: the node's directory, and joins that end before they are done."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Cluster, DirectoryInUse, Node, temporary
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import join
from littlebigcluster.cluster.listener import Listener
from littlebigcluster.database import Replica
from littlebigcluster.store import Store, Wrapper, open_store
from tests.scenarios.stage import FAST, WAIT


class CancelAt(Wrapper):
    """Cancels the task that joins at its n-th request, or lets it through and cancels then."""

    def __init__(self, store: Store, number: int, *, after: bool) -> None:
        super().__init__(store)
        self._left, self._after = number, after
        self.task: asyncio.Task[Any] | None = None
        self.cancelled = False

    async def _request(self, operation: Any, key: str, send: Callable[[], Awaitable[Any]]) -> Any:
        self._left -= 1
        if self._left != 0:
            return await send()
        result = await send() if self._after else None
        assert self.task is not None
        self.cancelled = self.task.cancel()
        await asyncio.sleep(0)
        return result if self._after else await send()


async def join_and_leave(cluster: Cluster, directory: Path | None) -> None:
    async with cluster.join(settings=replace(FAST, directory=directory), address="127.0.0.1:0"):
        pass


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 9))
async def test_a_cancelled_join_leaves_nothing_behind(
    store: Store, number: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Cluster(store).init("lol")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for directory in (tmp_path / "kept", None):
        network = CancelAt(store, number, after=after)
        network.task = asyncio.create_task(join_and_leave(Cluster(network), directory))
        async with asyncio.timeout(WAIT):
            await asyncio.wait([network.task])
        assert network.task.cancelled() or not network.cancelled
        async with asyncio.timeout(WAIT):
            await join_and_leave(Cluster(store), directory)
        assert list(temporary.iterdir()) == []
    gc.collect()


async def test_a_join_that_is_cancelled_twice_closes_everything_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.init("lol")
    nodes: list[Node] = []
    listening, closing, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hanging(listener: Listener) -> None:
        listening.set()
        await asyncio.Event().wait()

    async def slowly(listener: Listener) -> None:
        closing.set()
        await go_on.wait()

    class Noted(Node):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            nodes.append(self)

    monkeypatch.setattr(join, "Node", Noted)
    monkeypatch.setattr(Listener, "start", hanging)
    monkeypatch.setattr(Listener, "stop", slowly)
    joining = asyncio.create_task(join_and_leave(cluster, None))
    await listening.wait()
    joining.cancel()
    await closing.wait()
    joining.cancel()
    await asyncio.wait([joining], timeout=0.1)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await joining
    (node,) = nodes
    with pytest.raises(AttributeError):  # its descriptors are given back
        node._local.replica.connect()


async def test_a_former_copy_is_closed_when_the_join_is_given_up(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.init("lol")
    await join_and_leave(cluster, tmp_path)
    useless = tmp_path / "replica-~"  # is removed when the good one is open already
    (useless / "replica.db").mkdir(parents=True)
    removing, go_on = threading.Event(), threading.Event()
    removed, closed = list[Path](), list[Path]()
    rmtree, close = shutil.rmtree, Replica.close

    def remove_slowly(path: Path, **options: Any) -> None:
        removed.append(path)
        removing.set()
        assert go_on.wait(30)
        rmtree(path, **options)

    def noted(replica: Replica) -> None:
        closed.append(replica.path)
        close(replica)

    monkeypatch.setattr(Replica, "close", noted)
    monkeypatch.setattr(shutil, "rmtree", remove_slowly)
    joining = asyncio.create_task(join_and_leave(cluster, tmp_path))
    assert await asyncio.to_thread(removing.wait, 30)
    joining.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert removed == [useless]
    assert closed == list(tmp_path.glob("replica-*/replica.db"))


async def test_two_nodes_of_one_process_cannot_share_a_directory(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.init("lol")
    settings = replace(FAST, directory=tmp_path)
    async with cluster.join(settings=settings, address="127.0.0.1:0") as node:
        with pytest.raises(DirectoryInUse, match=str(tmp_path)):
            await cluster.join(settings=settings, address="127.0.0.1:0").__aenter__()
        assert await node.read("SELECT 1") == [(1,)]
    async with cluster.join(settings=settings, address="127.0.0.1:0"):
        pass


async def test_a_disk_that_fails_is_not_taken_for_another_node(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.init("lol")
    (tmp_path / "lock.db-journal").mkdir()
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        await join_and_leave(cluster, tmp_path)


async def test_a_temporary_directory_goes_with_the_node(cluster: Cluster) -> None:
    await cluster.init("lol")
    async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:
        path = node.database_path
        assert path.exists()
    assert not path.parent.exists()
    assert not path.parent.parent.exists()


async def test_a_given_directory_holds_one_copy_and_no_scratch(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.init("lol")
    for _ in range(3):
        settings = replace(FAST, directory=tmp_path)
        async with cluster.join(can_lead=True, settings=settings, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=WAIT)
            await node.execute("CREATE TABLE IF NOT EXISTS x(y)")
            path = node.database_path
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["lock.db", path.parent.name])


async def test_a_given_directory_is_cleared_of_what_a_killed_node_left_and_kept_from_then_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.init("lol")
    given = tmp_path / "lbc-given"
    given.mkdir(mode=0o700)
    for name in ("primary-1.db", "snapshot-1", "past-1", "rollback-1"):
        (given / name).mkdir()
        (given / name / "file").write_text("x")
    (given / temporary.MARK).write_text("x")  # somebody keeps what was a temporary one
    await join_and_leave(cluster, given)
    temporary.sweep(tmp_path)
    assert sorted(entry.name.partition("-")[0] for entry in given.iterdir()) == ["lock.db", "replica"]


@pytest.mark.parametrize("ends", ["well", "badly"])
async def test_a_join_sweeps_what_a_dead_node_left_and_does_not_wait_for_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    await cluster.init("lol")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = temporary.TemporaryDirectory()
    assert dead._lock is not None
    dead._lock.close()
    joined, removed = asyncio.Event(), temporary._removed
    loop = asyncio.get_running_loop()

    def removed_later(path: Path) -> bool:
        asyncio.run_coroutine_threadsafe(joined.wait(), loop).result()
        return removed(path)

    monkeypatch.setattr(temporary, "_removed", removed_later)
    fuse = loop.call_later(WAIT, joined.set)
    address = "127.0.0.1:0" if ends == "well" else "192.0.2.1:1"  # no address of this machine
    joining = cluster.join(settings=FAST, address=address)
    if ends == "well":
        async with joining as node:
            assert await node.read("SELECT 1") == [(1,)]
            assert dead.path.exists()
            joined.set()
    else:
        loop.call_soon(joined.set)
        with pytest.raises(OSError, match=r"192\.0\.2\.1"):
            await joining.__aenter__()
    fuse.cancel()
    assert list(tmp_path.iterdir()) == []


async def test_many_nodes_run_in_one_process(cluster: Cluster) -> None:
    await cluster.init("lol")
    joins = [cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") for _ in range(6)]
    nodes = await asyncio.gather(*(each.__aenter__() for each in joins))
    leading = [asyncio.create_task(node.wait_until_leader(timeout=WAIT)) for node in nodes]
    await asyncio.wait(leading, return_when=asyncio.FIRST_COMPLETED)
    for task in leading:
        task.cancel()
    (leader,) = [node for node in nodes if node.is_leader]
    done = await leader.execute("CREATE TABLE x(y)")
    for node in nodes:
        assert await node.read("SELECT * FROM x", at_least=done.epoch) == []
    for each in joins:
        await each.__aexit__(None, None, None)


async def test_a_cluster_in_a_directory_outlives_its_processes(tmp_path: Path) -> None:
    place = tmp_path / "a place" / "with #odd% näme"
    await Cluster(place).init("lol")
    for number in range(3):
        store = open_store(place, clock=Clock())
        async with Cluster(store).join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=WAIT)
            await node.execute("CREATE TABLE IF NOT EXISTS x(y)")
            await node.execute("INSERT INTO x VALUES (?)", (number,))
            assert await node.read("SELECT count(*) FROM x") == [(number + 1,)]
