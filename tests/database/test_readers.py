"""Awaited reads, and connections lent on one snapshot."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from replicated import ENDLESS, Database, all_busy, is_busy, until

from littlebigcluster.database.connections import SnapshotConnection
from littlebigcluster.database.readers import Readers
from littlebigcluster.errors import DeadlineExceeded, LbcError, NotAllowed, Overloaded, SnapshotExpired


@pytest.fixture
async def readers(database: Database) -> AsyncIterator[Readers]:
    readers = Readers(database.replica.connect_as, threads=2, max_read_age=600)
    yield readers
    assert await readers.close(timeout=60)


async def test_a_read_returns_rows(readers: Readers) -> None:
    assert await readers.read("SELECT v FROM t WHERE id = ?", (1,), timeout=60) == [(0,)]
    assert await readers.read("SELECT v FROM t WHERE id = :id", {"id": 9}, timeout=60) == []
    (row,) = await readers.read("SELECT id, v FROM t LIMIT 1", timeout=5, row_factory=sqlite3.Row)
    assert row["v"] == 0


async def test_a_read_sees_what_was_applied_before_it(readers: Readers, database: Database) -> None:
    for value in range(1, 30):
        database.apply(f"UPDATE t SET v = {value}")
        assert await readers.read("SELECT DISTINCT v FROM t", timeout=60) == [(value,)]


async def test_reads_run_while_epochs_are_applied(tmp_path: Path) -> None:
    def apply() -> None:
        values = itertools.count(1)
        while not enough.is_set():
            for epoch in [database.epoch(f"UPDATE t SET v = {next(values)}") for _ in range(50)]:
                database.replica.apply(epoch, expected_checksum=None)

    enough = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        database = thread.submit(Database, tmp_path).result()
        readers = Readers(database.replica.connect_as, threads=2, max_read_age=600)
        applying = thread.submit(apply)
        seen = [0]
        while len(set(seen)) < 50 and not applying.done():
            ((low, high),) = await readers.read("SELECT min(v), max(v) FROM t", timeout=60)
            assert low == high >= seen[-1]  # whole epochs, never back
            seen.append(high)
        enough.set()
        applying.result()
        assert await readers.close(timeout=60)
        thread.submit(database.close).result()


async def test_run_sees_one_snapshot(readers: Readers, database: Database) -> None:
    epoch = database.epoch("UPDATE t SET v = 1")

    def twice(db: sqlite3.Connection) -> list[Any]:
        before = db.execute("SELECT v FROM t").fetchall()
        database.replica.apply(epoch, expected_checksum=None)
        return [before, db.execute("SELECT v FROM t").fetchall()]

    before, after = await readers.run(twice, timeout=60)
    assert before == after == [(0,)] * 3
    assert await readers.read("SELECT v FROM t", timeout=60) == [(1,)] * 3


async def test_errors_come_out_as_they_are(readers: Readers) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await readers.read("SELECT * FROM nope", timeout=60)
    with pytest.raises(ZeroDivisionError):
        await readers.run(lambda db: 1 / 0, timeout=60)
    with pytest.raises(NotAllowed, match="cannot write"):
        await readers.read("DELETE FROM t", timeout=60)
    with pytest.raises(NotAllowed, match="PRAGMA journal_mode"):
        await readers.read("PRAGMA journal_mode = DELETE", timeout=60)
    assert await readers.read("SELECT count(*) FROM t", timeout=60) == [(3,)]


async def test_a_refusal_does_not_colour_a_later_error(readers: Readers) -> None:
    for _ in range(4):
        with pytest.raises(NotAllowed):
            await readers.read("BEGIN", timeout=60)
        with pytest.raises(sqlite3.OperationalError):
            await readers.read("SELECT * FROM nope", timeout=60)


async def test_a_read_past_its_time_out_is_ended(readers: Readers) -> None:
    for _ in range(4):  # more than there are threads
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await readers.read(ENDLESS, timeout=0.05)
    assert await readers.read("SELECT 1", timeout=60) == [(1,)]


async def test_a_cancelled_read_is_ended(readers: Readers) -> None:
    tasks = [asyncio.ensure_future(readers.read(ENDLESS, timeout=600)) for _ in range(2)]
    await until(lambda: all_busy(readers))
    queued = asyncio.ensure_future(readers.read("SELECT 1", timeout=60))
    skipped = asyncio.ensure_future(readers.read(ENDLESS, timeout=600))
    await asyncio.sleep(0)
    for task in (*tasks, skipped):
        task.cancel()
    assert await queued == [(1,)]
    await until(lambda: not any(is_busy(reader) for reader in readers._serving))


async def test_a_queued_read_times_out_while_all_threads_are_busy(readers: Readers) -> None:
    release = threading.Event()
    busy = [asyncio.ensure_future(readers.run(lambda db: release.wait(600), timeout=600)) for _ in range(2)]
    await until(lambda: all_busy(readers))
    with pytest.raises(DeadlineExceeded):
        await readers.read("SELECT 1", timeout=0.05)
    release.set()
    await asyncio.gather(*busy)


async def test_reads_beyond_those_that_may_wait_are_refused(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.database.readers.MAX_WAITING", 3)
    release = threading.Event()
    busy = [asyncio.create_task(readers.run(lambda db: release.wait(600), timeout=600)) for _ in readers._serving]
    await until(lambda: all_busy(readers))
    waiting = [asyncio.create_task(readers.read("SELECT 1", timeout=60)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 reads are waiting"):
        await readers.read("SELECT 1", timeout=60)
    release.set()
    assert await asyncio.gather(*waiting) == [[(1,)]] * 3
    assert await readers.read("SELECT 1", timeout=60) == [(1,)]
    await asyncio.gather(*busy)


async def test_a_lease_sees_one_snapshot(readers: Readers, database: Database) -> None:
    with readers.lease() as db:
        assert db.execute("SELECT v FROM t").fetchall() == [(0,)] * 3
        for _ in range(5):
            database.apply("UPDATE t SET v = v + 1")
        assert db.execute("SELECT v FROM t").fetchall() == [(0,)] * 3
        db.commit()
        db.rollback()
        with db:
            assert db.execute("SELECT v FROM t").fetchall() == [(0,)] * 3
        assert database.is_pinned()
        with readers.lease() as newer:
            assert newer.execute("SELECT v FROM t").fetchall() == [(5,)] * 3
    assert not database.is_pinned()
    with readers.lease() as db:
        assert db.execute("SELECT v FROM t").fetchall() == [(5,)] * 3


async def test_the_snapshot_is_that_of_the_beginning_of_the_block(readers: Readers, database: Database) -> None:
    with readers.lease() as db:
        database.apply("UPDATE t SET v = 1")
        assert db.execute("SELECT v FROM t").fetchall() == [(0,)] * 3


async def test_a_lease_can_neither_write_nor_let_go(readers: Readers, database: Database) -> None:
    statements = ["COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT s", "DELETE FROM t", "PRAGMA query_only = OFF"]
    for sql in statements:
        with pytest.raises(NotAllowed), readers.lease() as db:
            db.execute(sql)
    with readers.lease() as db:
        database.apply("UPDATE t SET v = 1")
        for sql in statements:
            with pytest.raises(sqlite3.DatabaseError):
                db.execute(sql)
        assert db.execute("SELECT v FROM t").fetchall() == [(0,)] * 3


async def test_cursors_left_open_do_not_hold_the_snapshot(readers: Readers, database: Database) -> None:
    with readers.lease() as db:
        cursor = db.execute("SELECT v FROM t")
        assert cursor.fetchone() == (0,)
    assert not database.is_pinned()
    with pytest.raises(sqlite3.ProgrammingError):
        cursor.fetchone()
    for use in (db.execute, db.cursor):
        with pytest.raises(NotAllowed, match="given back"):
            use(*("SELECT 1",) if use == db.execute else ())


async def test_settings_do_not_outlive_a_lease(readers: Readers) -> None:
    with readers.lease() as db:
        db.row_factory = sqlite3.Row
        db.text_factory = bytes
    with readers.lease() as again:
        assert again is db
        assert again.execute("SELECT 'a'").fetchone() == ("a",)


async def test_functions_do_not_outlive_a_lease(readers: Readers) -> None:
    for _ in range(2):
        with readers.lease() as db:
            db.create_function("twice", 1, lambda x: 2 * x)
            assert db.execute("SELECT twice(2)").fetchone() == (4,)
    with pytest.raises(sqlite3.OperationalError, match="no such function"), readers.lease() as db:
        db.execute("SELECT twice(2)")
    for _ in range(4):
        await readers.run(lambda db: db.create_function("twice", 1, abs), timeout=60)
    with pytest.raises(sqlite3.OperationalError, match="no such function"):
        await readers.read("SELECT twice(2)", timeout=60)


@pytest.mark.parametrize("replaced", [1, 2])
async def test_closing_while_connections_are_replaced_ends_all_threads(database: Database, replaced: int) -> None:
    def connect(factory: type[SnapshotConnection]) -> SnapshotConnection:
        if slow.is_set():
            connecting.append(factory)
            assert closing.wait(60)
        return database.replica.connect_as(factory)

    def alter(db: sqlite3.Connection) -> None:
        both.wait(60)
        db.create_function("twice", 1, abs)

    slow, closing, both, connecting = threading.Event(), threading.Event(), threading.Barrier(2), list[Any]()
    readers = Readers(connect, threads=2, max_read_age=600)
    await asyncio.gather(*(readers.run(alter, timeout=60) for _ in range(2)))
    slow.set()
    reads = [asyncio.create_task(readers.read("SELECT 1", timeout=60)) for _ in range(replaced)]
    await until(lambda: len(connecting) == replaced)
    closed = asyncio.create_task(readers.close(timeout=60))
    await asyncio.sleep(0)  # so that it has begun
    closing.set()
    assert await closed
    await asyncio.gather(*reads, return_exceptions=True)
    await until(lambda: not any(thread.name.startswith("lbc-reader-") for thread in threading.enumerate()))


async def test_a_connection_that_cannot_be_opened_fails_one_read_and_no_thread(database: Database) -> None:
    def connect(factory: type[SnapshotConnection]) -> SnapshotConnection:
        if broken:
            raise sqlite3.OperationalError("unable to open database file")
        return database.replica.connect_as(factory)

    broken = False
    readers = Readers(connect, threads=1, max_read_age=600)
    await readers.run(lambda db: db.create_function("twice", 1, abs), timeout=60)
    broken = True
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await readers.read("SELECT 1", timeout=60)
    broken = False
    assert await readers.read("SELECT 1", timeout=60) == [(1,)]
    with pytest.raises(sqlite3.OperationalError, match="no such function"):
        await readers.read("SELECT twice(2)", timeout=60)
    assert await readers.close(timeout=60)


async def test_exceptions_of_the_block_come_out_as_they_are(readers: Readers) -> None:
    with pytest.raises(KeyError), readers.lease():
        raise KeyError
    with pytest.raises(sqlite3.OperationalError, match="nope"), readers.lease() as db:
        db.execute("SELECT * FROM nope")


async def test_close_ends_everything(database: Database) -> None:
    readers = Readers(database.replica.connect_as, threads=2)
    running = [asyncio.ensure_future(readers.read(ENDLESS, timeout=600)) for _ in range(5)]
    await until(lambda: all_busy(readers))
    with pytest.raises(SnapshotExpired, match="closed"), readers.lease() as db:  # noqa: PT012
        assert not await readers.close(timeout=0.05)  # the lease is still there
        with pytest.raises(SnapshotExpired):
            db.execute("SELECT 1")
    assert await readers.close(timeout=60)
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, SnapshotExpired)
    for _ in range(2):
        with pytest.raises(LbcError, match="closed"):
            await readers.read("SELECT 1", timeout=60)
        with pytest.raises(LbcError, match="closed"), readers.lease():
            pass


async def test_many_reads_at_once(readers: Readers) -> None:
    results = await asyncio.gather(*(readers.read("SELECT ?", (i,), timeout=60) for i in range(1000)))
    assert results == [[(i,)] for i in range(1000)]


async def test_a_connection_asked_for_while_the_node_stops_says_so(database: Database) -> None:
    connecting, go_on = threading.Event(), threading.Event()

    def connect(factory: type[SnapshotConnection]) -> SnapshotConnection:
        if threading.current_thread() is thread:
            connecting.set()
            assert go_on.wait(30)
        return database.replica.connect_as(factory)

    def borrow() -> None:
        try:
            with readers.lease():
                pass
        except Exception as error:
            raised.append(error)

    raised = list[Exception]()
    thread = threading.Thread(target=borrow)
    readers = Readers(connect, threads=1)
    thread.start()
    assert await asyncio.to_thread(connecting.wait, 30)
    assert await readers.close(timeout=60)
    database.replica.close()
    go_on.set()
    await asyncio.to_thread(thread.join)
    (error,) = raised
    assert (type(error), "stopped" in str(error)) == (LbcError, True)
