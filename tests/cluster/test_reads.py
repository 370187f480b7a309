"""Reads of every consistency, and watches."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

from littlebigcluster import (
    Cluster,
    DeadlineExceeded,
    LbcError,
    Node,
    NotAllowed,
    SnapshotExpired,
)
from tests.cluster.vocabulary import FOREVER, names_of, with_settings
from tests.scenarios.stage import FAST, WAIT


async def test_all_levels_of_consistency_see_what_they_must(cluster: Cluster, node: Node) -> None:
    async with cluster.join(settings=FAST, address="127.0.0.1:0") as follower:
        for number in range(20):
            done = await node.execute("INSERT INTO job(name) VALUES (?)", (f"n{number}",))
            how: dict[str, Any] = {"at_least": done.epoch} if number % 2 else {"consistency": "strong"}
            assert (await follower.read("SELECT count(*) FROM job", **how)) == [(number + 1,)]
            assert (await node.read("SELECT count(*) FROM job", consistency="strong")) == [(number + 1,)]


async def test_a_connection_sees_one_snapshot(node: Node) -> None:
    await node.execute("INSERT INTO job(name) VALUES ('a')")
    with node.connection() as db:
        assert db.execute("SELECT count(*) FROM job").fetchone() == (1,)
        await node.execute("INSERT INTO job(name) VALUES ('b')")
        assert db.execute("SELECT count(*) FROM job").fetchone() == (1,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM job")
    with pytest.raises(NotAllowed), node.connection() as db:
        db.execute("DELETE FROM job")
    assert len(await names_of(node)) == 2


async def test_reads_cannot_write(node: Node) -> None:
    for sql in ("DELETE FROM job", "ATTACH ':memory:' AS x", "PRAGMA query_only = OFF", "BEGIN"):
        with pytest.raises(NotAllowed):
            await node.read(sql)


async def test_a_read_is_timed_out_and_cancelled(node: Node) -> None:
    with pytest.raises(DeadlineExceeded):
        await node.read(FOREVER, timeout=0.1)
    cancelled = asyncio.create_task(node.read(FOREVER))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    async with asyncio.timeout(WAIT):  # there is one thread, and it is free again
        assert await node.read("SELECT 1") == [(1,)]


async def test_a_read_that_waits_for_the_future_is_timed_out(node: Node) -> None:
    with pytest.raises(DeadlineExceeded, match="at epoch"):
        await node.read("SELECT 1", at_least=node.epoch.value + 1, timeout=0.1)


@with_settings(max_read_age=0.2)
async def test_a_snapshot_that_is_held_too_long_expires(node: Node) -> None:
    with pytest.raises(SnapshotExpired, match="max_read_age"), node.connection() as db:  # noqa: PT012
        while True:
            db.execute("SELECT 1")
            await asyncio.sleep(0.01)
    assert await node.read("SELECT 1") == [(1,)]


async def test_rows_come_as_asked_for(node: Node) -> None:
    (row,) = await node.read("SELECT 1 AS one", row_factory=sqlite3.Row)
    assert row["one"] == 1


# -- watches -------------------------------------------------------------------------------------------------------


async def test_watches_can_be_awaited_and_iterated(cluster: Cluster, node: Node) -> None:
    start = node.epoch.value
    seen = []

    async def watch() -> None:
        async for epoch in node.epoch:
            seen.append(epoch)
            if epoch >= start + 3:
                return

    watching = asyncio.create_task(watch())
    waiting = asyncio.create_task(node.epoch.until(lambda epoch: epoch > start + 1))
    for number in range(3):
        await node.execute("INSERT INTO job(name) VALUES (?)", (f"n{number}",))
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT):
        await watching
        assert await waiting == start + 2
    assert seen == sorted(set(seen))
    with pytest.raises(TimeoutError):
        await node.epoch.until(lambda epoch: epoch < 0, timeout=0.05)
    leader = await node.leader.until(lambda leader: leader)
    assert leader is not None
    assert leader.uuid == node.id


async def test_watches_end_with_the_node(cluster: Cluster) -> None:
    await cluster.init("lol")
    async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:
        waits = [
            asyncio.create_task(node.epoch.until(lambda epoch: epoch > 99)),
            asyncio.create_task(node.leader.until(lambda leader: leader)),
            asyncio.create_task(node.read("SELECT 1", at_least=99)),
        ]
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT):
        results = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(result, LbcError) for result in results), results


async def test_time_passes_for_nobody_while_a_read_runs(node: Node) -> None:
    """The event loop goes on while a thread reads."""
    slow = asyncio.create_task(node.read(FOREVER, timeout=WAIT))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not slow.done()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
