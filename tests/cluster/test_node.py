"""What an application does with a node: writes, reads, watches; and what it is told when it does it wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from littlebigcluster import (
    Aborted,
    Cluster,
    DeadlineExceeded,
    EpochTooLarge,
    LbcError,
    Node,
    NodeSettings,
    NotAllowed,
    SnapshotExpired,
    StoreUnavailable,
)
from tests.scenarios.stage import FAST, WAIT

FOREVER = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def node(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A leader with a table."""
    await cluster.init("lol")
    settings = replace(FAST, **getattr(request, "param", {}))
    async with cluster.join(can_lead=True, settings=settings, address="127.0.0.1:0") as node:
        await node.wait_until_leader(timeout=WAIT)
        await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL)")
        yield node


def with_settings(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [settings], indirect=True, ids=[""])


async def names_of(node: Node) -> list[str]:
    return [name for (name,) in await node.read("SELECT name FROM job ORDER BY id")]


# -- writes --------------------------------------------------------------------------------------------------------


async def test_a_write_tells_its_value_and_epoch(node: Node) -> None:
    done = await node.transaction(lambda db: db.execute("INSERT INTO job(name) VALUES ('a')").lastrowid)
    assert (done.value, done.epoch) == (1, node.epoch.value)
    assert await node.read("SELECT * FROM job", at_least=done.epoch) == [(1, "a")]
    done2 = await node.execute("INSERT INTO job(name) VALUES (:name) RETURNING id", {"name": "b"})
    assert done2.value.rows == [(2,)]
    assert done2.epoch == done.epoch + 1
    assert (await node.executemany("INSERT INTO job(name) VALUES (?)", [("c",), ("d",)])).value.rowcount == 2
    await node.executescript("CREATE TABLE x(y); INSERT INTO x VALUES (1); -- and so on\n")
    assert await node.read("SELECT * FROM x") == [(1,)]


async def test_a_peek_comes_before_durability(node: Node) -> None:
    pending = node.submit(lambda db: db.execute("INSERT INTO job(name) VALUES ('a')").lastrowid)
    assert await pending.peek() == 1
    assert (await pending).value == 1
    assert await pending.peek() == 1


async def test_what_changes_nothing_costs_no_epoch(node: Node) -> None:
    epoch = node.epoch.value
    done = await node.execute("UPDATE job SET name = 'x' WHERE id = 99")
    assert done.value.rowcount == 0
    assert node.epoch.value == done.epoch == epoch


async def test_writes_at_once_share_epochs(node: Node) -> None:
    epoch = node.epoch.value
    await asyncio.gather(*(node.execute("INSERT INTO job(name) VALUES (?)", (f"n{n}",)) for n in range(100)))
    assert node.epoch.value - epoch < 20
    assert len(await names_of(node)) == 100


async def test_vacuum_works(node: Node) -> None:
    await node.execute("CREATE TABLE big(x)")
    await node.execute("INSERT INTO big VALUES (zeroblob(1000000))")
    await node.execute("DROP TABLE big")
    before = (await node.read("PRAGMA page_count"))[0][0]
    for sql in ("VACUUM", " vacuum ; "):
        await node.execute(sql)
    assert (await node.read("PRAGMA page_count"))[0][0] < before / 10


async def test_a_function_that_raises_is_rolled_back_alone(node: Node) -> None:
    class Mine(Exception):
        pass

    def bad(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO job(name) VALUES ('bad')")
        raise Mine("no")

    good = [node.execute("INSERT INTO job(name) VALUES (?)", (name,)) for name in ("a", "b")]
    results = await asyncio.gather(good[0], node.transaction(bad), good[1], return_exceptions=True)
    assert isinstance(results[1], Mine)
    assert await names_of(node) == ["a", "b"]


async def test_an_sql_error_fails_that_transaction_alone(node: Node) -> None:
    statements = [
        "INSERT INTO job(name) VALUES ('a')",
        "INSERT INTO job(name) VALUES ('a')",
        "INSERT INTO job(name) VALUES (NULL)",
        "INSERT OR ROLLBACK INTO job(name) VALUES ('a')",
        "SELEKT",
        "SELECT * FROM missing",
        "INSERT INTO job(name) VALUES ('b')",
    ]
    results = await asyncio.gather(*(node.execute(sql) for sql in statements), return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds[1:6] == [sqlite3.IntegrityError] * 3 + [sqlite3.OperationalError] * 2
    assert await names_of(node) == ["a", "b"]


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT", "ROLLBACK", "BEGIN", "END", "ATTACH ':memory:' AS x", "DETACH main", "PRAGMA journal_mode = DELETE",
        "PRAGMA synchronous = FULL", "PRAGMA writable_schema = 1", "DELETE FROM _lbc", "UPDATE _lbc SET value = 1",
        "DROP TABLE _lbc", "CREATE TABLE _lbc_mine(x)", "CREATE TEMP TABLE x(y)", "ALTER TABLE job RENAME TO _lbc2",
    ],
)  # fmt: skip
async def test_what_would_break_replication_is_refused(node: Node, sql: str) -> None:
    def function(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO job(name) VALUES ('bad')")
        db.execute(sql)

    for attempt in (node.transaction(function), node.execute(sql), node.transaction(lambda db: db.commit())):
        with pytest.raises((NotAllowed, sqlite3.Error)):
            await attempt
    await node.execute("INSERT INTO job(name) VALUES ('good')")
    assert await names_of(node) == ["good"]
    assert node.is_leader


@with_settings(transaction_timeout=0.3)
async def test_a_transaction_that_hangs_in_sql_is_ended(node: Node) -> None:
    slow = asyncio.create_task(node.execute(FOREVER))
    await asyncio.sleep(0)
    other = asyncio.create_task(node.execute("INSERT INTO job(name) VALUES ('a')"))
    with pytest.raises(DeadlineExceeded, match="took too long"):
        await slow
    await other
    assert await names_of(node) == ["a"]


@with_settings(transaction_timeout=0.1)
async def test_a_transaction_that_hangs_in_python_costs_the_writer_and_not_the_leadership(node: Node) -> None:
    ended = threading.Event()

    def hang(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO job(name) VALUES ('bad')")
        ended.wait(WAIT)

    await node.execute("INSERT INTO job(name) VALUES ('a')")
    hung = asyncio.create_task(node.transaction(hang))
    await asyncio.sleep(0)
    behind = asyncio.create_task(node.execute("INSERT INTO job(name) VALUES ('behind')"))
    with pytest.raises(Aborted):
        await hung
    with pytest.raises(Aborted):
        await behind
    while True:
        try:
            await node.execute("INSERT INTO job(name) VALUES ('b')")
            break
        except Aborted:
            await asyncio.sleep(0.05)
    ended.set()
    assert await names_of(node) == ["a", "b"]
    assert (node.is_leader, node.term) == (True, 1)


async def test_a_coroutine_is_no_transaction(node: Node) -> None:
    async def function(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO job(name) VALUES ('bad')")

    for bad in (function, lambda db: [function(db)][0]):
        with pytest.raises(TypeError, match="async"):
            await node.transaction(bad)
    assert await names_of(node) == []


async def test_a_transaction_of_100_mb_is_refused_and_the_rest_goes_on(node: Node) -> None:
    await node.execute("CREATE TABLE big(x)")

    def large(db: sqlite3.Connection) -> None:
        for _ in range(100):
            db.execute("INSERT INTO big VALUES (zeroblob(1000000))")

    results = await asyncio.gather(
        node.execute("INSERT INTO job(name) VALUES ('a')"),
        node.transaction(large),
        node.execute("INSERT INTO job(name) VALUES ('b')"),
        return_exceptions=True,
    )
    assert isinstance(results[1], EpochTooLarge)
    assert await names_of(node) == ["a", "b"]
    assert await node.read("SELECT count(*) FROM big") == [(0,)]


@with_settings(max_queued_writes=10)
async def test_too_many_waiting_writes_are_refused(node: Node) -> None:
    release = threading.Event()
    first = node.submit(lambda db: release.wait(WAIT))
    waiting = []
    with pytest.raises(StoreUnavailable, match="max_queued_writes"):  # noqa: PT012
        for _ in range(20):
            waiting.append(node.submit(lambda db: None))
    release.set()
    await asyncio.gather(first, *waiting)


async def test_a_write_that_is_cancelled_before_it_begins_is_not_written(node: Node) -> None:
    release = threading.Event()
    node.submit(lambda db: release.wait(WAIT))
    cancelled = asyncio.create_task(node.execute("INSERT INTO job(name) VALUES ('bad')"))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    release.set()
    await node.execute("INSERT INTO job(name) VALUES ('good')")
    assert await names_of(node) == ["good"]


# -- reads ---------------------------------------------------------------------------------------------------------


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
    with pytest.raises(SnapshotExpired), node.connection() as db:  # noqa: PT012
        db.execute("SELECT 1")
        await asyncio.sleep(0.7)
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


# -- the end -------------------------------------------------------------------------------------------------------


async def test_nothing_works_after_the_end_and_says_so(cluster: Cluster) -> None:
    await cluster.init("lol")
    async with cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
        await node.wait_until_leader(timeout=WAIT)
    with pytest.raises(LbcError):
        await node.read("SELECT 1")
    with pytest.raises(LbcError):
        await node.read("SELECT 1", consistency="strong")
    with pytest.raises(LbcError):
        await node.execute("SELECT 1")
    with pytest.raises(LbcError), node.connection():
        pass
    with pytest.raises(LbcError):
        await node.wait_until_leader(timeout=1)


async def test_an_exception_of_the_body_comes_out_as_it_is(cluster: Cluster) -> None:
    class Mine(Exception):
        pass

    await cluster.init("lol")
    with pytest.raises(Mine):  # noqa: PT012
        async with cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=WAIT)
            raise Mine
    # and the leadership was released all the same
    assert (await cluster.status()).leader is None


async def test_a_failure_in_the_background_ends_the_body_and_comes_out(cluster: Cluster) -> None:
    await cluster.init("lol")
    reached = False
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:

            async def fail() -> Any:
                raise ZeroDivisionError

            node._local.log.next = fail  # type: ignore[method-assign]
            await asyncio.sleep(WAIT)
            reached = True
    assert not reached
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # and the cancellation does not linger


async def test_a_failure_in_the_background_does_not_hide_one_of_the_body(cluster: Cluster) -> None:
    class Mine(Exception):
        pass

    await cluster.init("lol")
    with pytest.raises(Mine):  # noqa: PT012
        async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:

            async def fail() -> Any:
                raise ZeroDivisionError

            node._local.log.next = fail  # type: ignore[method-assign]
            try:
                await asyncio.sleep(WAIT)
            except asyncio.CancelledError:
                raise Mine from None


async def test_a_cancelled_body_is_cancelled(cluster: Cluster) -> None:
    await cluster.init("lol")
    inside = asyncio.Event()

    async def body() -> None:
        async with cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=WAIT)
            inside.set()
            await asyncio.sleep(WAIT)

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await cluster.status()).leader is None


# -- wrong calls ---------------------------------------------------------------------------------------------------


def test_bad_arguments_of_join_raise_at_the_call(cluster: Cluster) -> None:
    bad: list[dict[str, Any]] = [
        {"az": 5}, {"az": None}, {"can_lead": "no"}, {"settings": {}}, {"settings": "fast"}, {"roles": "one"},
        {"roles": [1]}, {"address": "host:port:x"}, {"metadata": {"x": object()}}, {"metadata": {"x": "y" * 5000}},
    ]  # fmt: skip
    for arguments in bad:
        with pytest.raises((TypeError, ValueError)):
            cluster.join(**arguments)


@pytest.mark.parametrize("place", [5, None, b"x", "", "ftp://x", "s3://"])
def test_bad_places_raise_at_the_call(place: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Cluster(place)


@pytest.mark.parametrize(
    "settings",
    [
        {"leader_timeout": 0}, {"poll_interval": -1}, {"epoch_interval": "1"}, {"readers": 0}, {"epoch_burst": True},
        {"fence_validity": 3600}, {"write_timeout": float("nan")}, {"max_epoch_bytes": -5}, {"snapshot_growth": 0},
    ],
)  # fmt: skip
def test_bad_settings_raise_at_the_call(settings: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        NodeSettings(**settings)


async def test_bad_arguments_of_reads_and_writes_raise(node: Node) -> None:
    calls: list[Any] = [
        lambda: node.read("SELECT 1", consistency="weak"),
        lambda: node.read("SELECT 1", at_least="5"),
        lambda: node.read("SELECT 1", at_least=True),
        lambda: node.read("SELECT 1", timeout="soon"),
        lambda: node.read(5),
        lambda: node.read("SELECT ?", 5),
        lambda: node.execute(5),
        lambda: node.execute("SELECT ?", 5),
        lambda: node.executemany(5, []),
        lambda: node.executescript(5),
        lambda: node.transaction("SELECT 1"),
        lambda: node.transaction(lambda db: None, timeout="soon"),
        lambda: node.wait_until_leader(timeout="soon"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises((TypeError, ValueError, sqlite3.ProgrammingError)):  # noqa: PT012
            await call()
            pytest.fail(f"call {number} was accepted")


async def test_a_node_that_cannot_lead_does_not_wait_to(cluster: Cluster) -> None:
    await cluster.init("lol")
    async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:
        with pytest.raises(ValueError, match="can_lead"):
            await node.wait_until_leader()


async def test_the_cluster_s_own_objects_are_out_of_reach(node: Node) -> None:
    await node.store.put("mine/x", b"1")
    assert await node.store.get("mine/x") == b"1"
    with pytest.raises(ValueError, match="lbc"):
        await node.store.put(".lbc/cluster.json", b"")
    assert [info.key for info in await node.store.list("")] == ["mine/x"]


async def test_time_passes_for_nobody_while_a_read_runs(node: Node) -> None:
    """The event loop goes on while a thread reads."""
    slow = asyncio.create_task(node.read(FOREVER, timeout=0.5))
    start = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - start < 0.4
    with pytest.raises(DeadlineExceeded):
        await slow
