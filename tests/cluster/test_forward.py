"""Writes from any node: they travel to the leader, are done once, and are visible where they were asked for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator

import pytest

from littlebigcluster import Cluster, LbcError, Node, NodeSettings, NotAllowed, NotLeader, OutcomeUnknown
from littlebigcluster.cluster import statements
from littlebigcluster.net import Client

FAST = NodeSettings(epoch_interval=0, leader_timeout=2, poll_interval=0.1)


@pytest.fixture
async def cluster() -> Cluster:
    cluster = Cluster("memory://")
    await cluster.init("lol")

    @cluster.procedure
    def add(db: sqlite3.Connection, name: str, blob: bytes = b"") -> dict[str, object]:
        row = db.execute("INSERT INTO job(name) VALUES (?) RETURNING id", (name,)).fetchone()
        return {"id": row[0], "name": name, "blob": blob + b"!"}

    return cluster


@pytest.fixture
async def leader(cluster: Cluster) -> AsyncIterator[Node]:
    async with cluster.join(can_lead=True, settings=FAST) as node:
        await node.wait_until_leader(timeout=10)
        await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB)")
        yield node


@pytest.fixture
async def follower(cluster: Cluster, leader: Node) -> AsyncIterator[Node]:
    async with cluster.join(settings=FAST) as node:
        yield node


async def test_a_follower_writes_and_reads_its_own_write(leader: Node, follower: Node) -> None:
    done = await follower.execute("INSERT INTO job(name, data) VALUES (?, ?) RETURNING id, data", ("a", b"\x00\xff"))
    assert done.value.rows == [(1, b"\x00\xff")]
    assert follower.epoch.value >= done.epoch
    assert await follower.read("SELECT name FROM job") == [("a",)]


async def test_all_kinds_of_writes_travel(leader: Node, follower: Node) -> None:
    await follower.executescript("CREATE TABLE t(x); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")
    many = await follower.executemany("INSERT INTO t VALUES (:x)", [{"x": 3}, {"x": 4}])
    assert many.value.rowcount == 2
    both = await follower.batch([("INSERT INTO t VALUES (?)", (5,)), ("SELECT max(x) FROM t", ())])
    assert both.value[1].rows == [(5,)]
    assert await follower.read("SELECT x FROM t ORDER BY x") == [(1,), (2,), (3,), (4,), (5,)]
    called = await follower.call("add", name="p", blob=b"\x01")
    assert called.value == {"id": 1, "name": "p", "blob": b"\x01!"}
    assert (await leader.call("add", name="q")).value["id"] == 2


async def test_errors_of_sql_come_back_as_they_are_here(leader: Node, follower: Node) -> None:
    await follower.execute("INSERT INTO job(name) VALUES ('a')")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        await follower.execute("INSERT INTO job(name) VALUES ('a')")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await follower.execute("INSERT INTO missing VALUES (1)")
    with pytest.raises(NotAllowed):
        await follower.execute("UPDATE _lbc SET value = 9")
    with pytest.raises(ValueError, match="no procedure"):
        await follower.call("unknown")
    with pytest.raises(TypeError, match="cannot travel"):
        await follower.execute("INSERT INTO job(name) VALUES (?)", (object(),))
    assert await follower.read("SELECT count(*) FROM job") == [(1,)]


async def test_functions_do_not_travel(leader: Node, follower: Node) -> None:
    with pytest.raises(NotLeader) as caught:
        await follower.transaction(lambda db: None)
    assert caught.value.leader.uuid == leader.id


async def test_the_same_key_is_done_once(leader: Node) -> None:
    work = statements.execute("INSERT INTO job(name) VALUES ('x') RETURNING id", ())
    first = await leader._run_with_key(work, "k" * 32, 10)
    again = await leader._run_with_key(work, "k" * 32, 10)
    assert first.value == again.value
    assert again.epoch >= first.epoch
    assert await leader.read("SELECT count(*) FROM job") == [(1,)]


async def test_a_failed_write_keeps_no_answer(leader: Node) -> None:
    work = statements.execute("INSERT INTO job(name) VALUES ('x')", ())
    await leader.execute("INSERT INTO job(name) VALUES ('x')")
    with pytest.raises(sqlite3.IntegrityError):
        await leader._run_with_key(work, "k" * 32, 10)
    await leader.execute("DELETE FROM job")
    await leader._run_with_key(work, "k" * 32, 10)
    assert await leader.read("SELECT count(*) FROM job") == [(1,)]


async def test_a_lost_answer_is_asked_again_and_the_write_done_once(
    leader: Node, follower: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    from littlebigcluster.errors import PeerUnavailable

    original, lost = Client.request, []

    async def lose_the_first(self: Client, method: str, path: str, **options: object) -> object:
        response = await original(self, method, path, **options)  # type: ignore[arg-type]
        if path == "/.lbc/write" and not lost:
            lost.append(response)
            raise PeerUnavailable("the answer is lost", sent=True)
        return response

    monkeypatch.setattr(Client, "request", lose_the_first)
    done = await follower.execute("INSERT INTO job(name) VALUES ('once') RETURNING id")
    assert lost
    assert done.value.rows == [(1,)]
    assert await follower.read("SELECT count(*) FROM job") == [(1,)]


async def test_writes_in_flight_survive_a_failover_and_are_done_once(cluster: Cluster) -> None:
    async with cluster.join(settings=FAST) as follower, cluster.join(can_lead=True, settings=FAST) as second:
        await second.wait_until_leader(timeout=10)
        await second.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        async with cluster.join(can_lead=True, settings=FAST) as third:
            stop = asyncio.Event()
            written: list[int] = []

            async def write(start: int) -> None:
                number = start
                while not stop.is_set():
                    await follower.execute(
                        "INSERT INTO job(id, name) VALUES (?, ?)", (number, f"n{number}"), timeout=30
                    )
                    written.append(number)
                    number += 10

            writers = [asyncio.create_task(write(start)) for start in range(10)]
            await follower.epoch.until(lambda epoch: epoch > 10, timeout=10)
            await second.members.until(lambda members: len(members) == 3, timeout=10)
            await second.step_down()
            await third.wait_until_leader(timeout=20)
            count = len(written)
            await follower.epoch.until(lambda _: len(written) >= count + 20, timeout=20)
            stop.set()
            await asyncio.gather(*writers)
            rows = await follower.read("SELECT id FROM job", consistency="strong")
            assert sorted(row[0] for row in rows) == sorted(written)


async def test_without_a_leader_a_write_waits_and_then_says_that_it_is_not_written(cluster: Cluster) -> None:
    async with cluster.join(settings=FAST) as alone:
        with pytest.raises(NotLeader, match="not written"):
            await alone.execute("CREATE TABLE t(x)", timeout=0.5)


async def test_without_any_answer_the_outcome_is_unknown(
    leader: Node, follower: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    from littlebigcluster.errors import PeerUnavailable

    async def lose(self: Client, method: str, path: str, **options: object) -> object:
        raise PeerUnavailable("the answer is lost", sent=True)

    monkeypatch.setattr(Client, "request", lose)
    with pytest.raises(OutcomeUnknown):
        await follower.execute("INSERT INTO job(name) VALUES ('?')", timeout=2)


async def test_old_keys_are_forgotten_and_recent_ones_kept(leader: Node) -> None:
    writer = leader._leadership.writer if leader._leadership else None
    assert writer is not None
    work = statements.execute("INSERT INTO job DEFAULT VALUES", ())
    for generation in range(4):
        await leader._run_with_key(work, f"key {generation}".ljust(32), 10)
        writer._forget_at = 0.0
        await leader._run_with_key(work, f"other {generation}".ljust(32), 10)
    kept = {key.strip() for (key,) in await leader.read("SELECT key FROM _lbc_request")}
    assert "other 3" in kept
    assert "key 3" in kept
    assert "key 0" not in kept
    assert len(kept) <= 4


async def test_the_keys_are_out_of_reach_for_users(leader: Node) -> None:
    for sql in ("DELETE FROM _lbc_request", "DROP TABLE _lbc_request", "ALTER TABLE _lbc_request RENAME TO x"):
        with pytest.raises((NotAllowed, LbcError)):
            await leader.execute(sql)
