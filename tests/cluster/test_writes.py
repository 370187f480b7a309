"""Writes on the leader, and what fails them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from littlebigcluster import (
    Aborted,
    DeadlineExceeded,
    EpochTooLarge,
    Node,
    NotAllowed,
    Overloaded,
)
from tests.cluster.vocabulary import FOREVER, names_of, with_settings
from tests.scenarios.stage import WAIT


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


@with_settings(transaction_timeout=2)  # also for those that do not hang
async def test_a_transaction_that_hangs_in_sql_is_ended(node: Node) -> None:
    slow = asyncio.create_task(node.execute(FOREVER))
    await asyncio.sleep(0)
    other = asyncio.create_task(node.execute("INSERT INTO job(name) VALUES ('a')"))
    with pytest.raises(DeadlineExceeded, match="took too long"):
        await slow
    await other
    assert await names_of(node) == ["a"]


@with_settings(transaction_timeout=2)
async def test_a_transaction_that_hangs_in_python_costs_the_writer_and_not_the_leadership(node: Node) -> None:
    ended = threading.Event()

    def hang(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO job(name) VALUES ('bad')")
        ended.wait(WAIT)

    await node.execute("INSERT INTO job(name) VALUES ('a')")
    hung = asyncio.create_task(node.transaction(hang))
    await asyncio.sleep(0)
    behind = node.submit(lambda db: db.execute("INSERT INTO job(name) VALUES ('behind')"))
    sent_on = asyncio.create_task(node.execute("INSERT INTO job(name) VALUES ('b')"))
    for aborted in (hung, behind):
        with pytest.raises(Aborted):
            await aborted
    await sent_on
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
    with pytest.raises(Overloaded, match="max_queued_writes"):  # noqa: PT012
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
