"""Awaited reads, and connections lent on one snapshot."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.database.connections import SnapshotConnection
from littlebigcluster.database.initial import write_initial_database
from littlebigcluster.database.primary import Primary
from littlebigcluster.database.readers import Readers
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.wal import Wal, parse
from littlebigcluster.errors import DeadlineExceeded, LbcError, NotAllowed, Overloaded, SnapshotExpired

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


class Database:
    """A replica, and the primary that its epochs come from."""

    def __init__(self, directory: Path) -> None:
        write_initial_database(directory / "replica.db", page_size=4096, system={"epoch": 0})
        self.replica = Replica.open(directory / "replica.db", clock=Clock())
        with self.replica.pages() as image:
            self.primary = Primary.create(directory / "primary.db", image)
        self.apply("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        self.apply("INSERT INTO t(v) VALUES (0), (0), (0)")

    def apply(self, sql: str) -> None:
        self.replica.apply(self.epoch(sql), expected_checksum=None)

    def epoch(self, sql: str) -> Wal:
        """In the thread of the test, as the primary is made there."""
        self.primary.transaction(lambda db: db.execute(sql).close())
        raw = self.primary.take()
        assert raw is not None
        return parse(raw)

    def wal_frames(self) -> int:
        """Committed frames in the replica's WAL, after a checkpoint that waits for nobody."""
        applier = self.replica._applier
        (_, frames, _) = applier.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return int(frames)

    def is_pinned(self) -> bool:
        """Does a reader keep the WAL from being emptied?"""
        applier = self.replica._applier
        applier.execute("PRAGMA busy_timeout = 0")
        busy, _, _ = applier.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(busy)

    def close(self) -> None:
        self.primary.discard()
        self.replica.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()


@pytest.fixture
async def readers(database: Database) -> AsyncIterator[Readers]:
    readers = Readers(database.replica.connect_as, threads=2, max_read_age=60)
    yield readers
    assert await readers.close(timeout=5)


@pytest.fixture
async def hasty(database: Database) -> AsyncIterator[Readers]:
    """Readers whose snapshots expire soon."""
    readers = Readers(database.replica.connect_as, threads=2, max_read_age=0.1)
    yield readers
    assert await readers.close(timeout=5)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_read_returns_rows(readers: Readers) -> None:
    assert await readers.read("SELECT v FROM t WHERE id = ?", (1,), timeout=5) == [(0,)]
    assert await readers.read("SELECT v FROM t WHERE id = :id", {"id": 9}, timeout=5) == []
    (row,) = await readers.read("SELECT id, v FROM t LIMIT 1", timeout=5, row_factory=sqlite3.Row)
    assert row["v"] == 0


async def test_a_read_sees_what_was_applied_before_it(readers: Readers, database: Database) -> None:
    for value in range(1, 30):
        database.apply(f"UPDATE t SET v = {value}")
        assert await readers.read("SELECT DISTINCT v FROM t", timeout=5) == [(value,)]


async def test_reads_run_while_epochs_are_applied(readers: Readers, database: Database) -> None:
    epochs = [database.epoch(f"UPDATE t SET v = {value}") for value in range(1, 500)]

    def apply() -> None:
        for epoch in epochs:
            database.replica.apply(epoch, expected_checksum=None)

    applying = asyncio.ensure_future(asyncio.to_thread(apply))
    seen, queries = [0], 0
    while not applying.done():
        ((low, high),) = await readers.read("SELECT min(v), max(v) FROM t", timeout=5)
        assert low == high >= seen[-1]  # whole epochs, never back
        seen.append(high)
        queries += 1
    await applying
    assert queries > 10


async def test_run_sees_one_snapshot(readers: Readers, database: Database) -> None:
    epoch = database.epoch("UPDATE t SET v = 1")

    def twice(db: sqlite3.Connection) -> list[Any]:
        before = db.execute("SELECT v FROM t").fetchall()
        database.replica.apply(epoch, expected_checksum=None)
        return [before, db.execute("SELECT v FROM t").fetchall()]

    before, after = await readers.run(twice, timeout=5)
    assert before == after == [(0,)] * 3
    assert await readers.read("SELECT v FROM t", timeout=5) == [(1,)] * 3


async def test_errors_come_out_as_they_are(readers: Readers) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await readers.read("SELECT * FROM nope", timeout=5)
    with pytest.raises(ZeroDivisionError):
        await readers.run(lambda db: 1 / 0, timeout=5)
    with pytest.raises(NotAllowed, match="cannot write"):
        await readers.read("DELETE FROM t", timeout=5)
    with pytest.raises(NotAllowed, match="PRAGMA journal_mode"):
        await readers.read("PRAGMA journal_mode = DELETE", timeout=5)
    assert await readers.read("SELECT count(*) FROM t", timeout=5) == [(3,)]


async def test_a_refusal_does_not_colour_a_later_error(readers: Readers) -> None:
    for _ in range(4):
        with pytest.raises(NotAllowed):
            await readers.read("BEGIN", timeout=5)
        with pytest.raises(sqlite3.OperationalError):
            await readers.read("SELECT * FROM nope", timeout=5)


async def test_a_read_past_its_time_out_is_ended(readers: Readers) -> None:
    begun = time.monotonic()
    for _ in range(4):  # more than there are threads
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await readers.read(ENDLESS, timeout=0.05)
    assert time.monotonic() - begun < 1
    assert await readers.read("SELECT 1", timeout=1) == [(1,)]


async def test_a_cancelled_read_is_ended(readers: Readers) -> None:
    tasks = [asyncio.ensure_future(readers.read(ENDLESS, timeout=60)) for _ in range(2)]
    await asyncio.sleep(0.05)
    queued = asyncio.ensure_future(readers.read("SELECT 1", timeout=60))
    skipped = asyncio.ensure_future(readers.read(ENDLESS, timeout=60))
    await asyncio.sleep(0)
    for task in (*tasks, skipped):
        task.cancel()
    begun = time.monotonic()
    assert await queued == [(1,)]
    assert await readers.read("SELECT 2", timeout=1) == [(2,)]  # both threads are free
    assert time.monotonic() - begun < 0.5


async def test_a_queued_read_times_out_while_all_threads_are_busy(readers: Readers) -> None:
    release = threading.Event()
    busy = [asyncio.ensure_future(readers.run(lambda db: release.wait(5), timeout=10)) for _ in range(2)]
    await asyncio.sleep(0.02)
    with pytest.raises(DeadlineExceeded):
        await readers.read("SELECT 1", timeout=0.05)
    release.set()
    await asyncio.gather(*busy)


async def test_reads_beyond_those_that_may_wait_are_refused(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.database.readers.MAX_WAITING", 3)
    release = threading.Event()
    busy = [asyncio.create_task(readers.run(lambda db: release.wait(5), timeout=5)) for _ in readers._serving]
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(readers.read("SELECT 1", timeout=5)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 reads are waiting"):
        await readers.read("SELECT 1", timeout=5)
    release.set()
    assert await asyncio.gather(*waiting) == [[(1,)]] * 3
    assert await readers.read("SELECT 1", timeout=5) == [(1,)]
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
        await readers.run(lambda db: db.create_function("twice", 1, abs), timeout=5)
    with pytest.raises(sqlite3.OperationalError, match="no such function"):
        await readers.read("SELECT twice(2)", timeout=5)


@pytest.mark.parametrize("reads", [1, 2])
async def test_closing_while_connections_are_replaced_ends_all_threads(database: Database, reads: int) -> None:
    def connect(factory: type[SnapshotConnection]) -> SnapshotConnection:
        if delay:
            time.sleep(delay)
        return database.replica.connect_as(factory)

    delay = 0.0
    readers = Readers(connect, threads=2, max_read_age=60)
    delay = 0.2
    for _ in range(reads):
        altering = [readers.run(lambda db: db.create_function("twice", 1, abs), timeout=5) for _ in range(2)]
        done = asyncio.gather(*altering, return_exceptions=True)
        await asyncio.sleep(0.1)
    assert await readers.close(timeout=5)
    await done
    await until(lambda: not any(thread.name.startswith("lbc-reader-") for thread in threading.enumerate()))


async def test_a_connection_that_cannot_be_opened_fails_one_read_and_no_thread(database: Database) -> None:
    def connect(factory: type[SnapshotConnection]) -> SnapshotConnection:
        if broken:
            raise sqlite3.OperationalError("unable to open database file")
        return database.replica.connect_as(factory)

    broken = False
    readers = Readers(connect, threads=1, max_read_age=60)
    await readers.run(lambda db: db.create_function("twice", 1, abs), timeout=5)
    broken = True
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await readers.read("SELECT 1", timeout=5)
    broken = False
    assert await readers.read("SELECT 1", timeout=5) == [(1,)]
    with pytest.raises(sqlite3.OperationalError, match="no such function"):
        await readers.read("SELECT twice(2)", timeout=5)
    assert await readers.close(timeout=5)


async def test_exceptions_of_the_block_come_out_as_they_are(readers: Readers) -> None:
    with pytest.raises(KeyError), readers.lease():
        raise KeyError
    with pytest.raises(sqlite3.OperationalError, match="nope"), readers.lease() as db:
        db.execute("SELECT * FROM nope")


async def test_a_lease_held_idle_for_too_long_expires(hasty: Readers, database: Database) -> None:
    released = False
    with pytest.raises(SnapshotExpired, match="max_read_age"), hasty.lease() as db:  # noqa: PT012
        cursor = db.cursor()
        database.apply("UPDATE t SET v = 1")
        assert database.is_pinned()
        await until(lambda: not database.is_pinned())  # long before the block ends
        released = True
        for use in (db.execute, cursor.execute):
            with pytest.raises(SnapshotExpired):
                use("SELECT v FROM t")
    assert released
    with hasty.lease() as db:
        assert db.execute("SELECT v FROM t").fetchall() == [(1,)] * 3


async def test_a_statement_running_for_too_long_is_ended(hasty: Readers) -> None:
    begun = time.monotonic()
    with pytest.raises(SnapshotExpired), hasty.lease() as db:
        db.execute(ENDLESS)
    with pytest.raises(SnapshotExpired):
        await hasty.read(ENDLESS, timeout=60)
    with pytest.raises(SnapshotExpired):
        await hasty.run(lambda db: db.execute(ENDLESS), timeout=60)
    assert time.monotonic() - begun < 2


async def test_a_half_read_cursor_ends_at_its_next_step(hasty: Readers, database: Database) -> None:
    with pytest.raises(SnapshotExpired), hasty.lease() as db:  # noqa: PT012
        cursor = db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT v, i FROM t, n")
        assert cursor.fetchone()[0] == 0
        database.apply("UPDATE t SET v = 1")
        await asyncio.sleep(0.3)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            for _ in cursor:
                pass
        assert not database.is_pinned()


async def test_expiry_never_deadlocks_with_a_busy_connection(database: Database) -> None:
    """The reaper lets go of a snapshot while its user is in SQLite, in callbacks and in between."""
    readers = Readers(database.replica.connect_as, threads=1, max_read_age=0.02)
    stop = threading.Event()
    expired = [0]

    def use(function: str) -> None:
        while not stop.is_set():
            try:
                with readers.lease() as db:
                    if function == "f":
                        db.create_function("f", 1, lambda x: x)
                    while True:
                        db.execute("SELECT a.v, b.v FROM t a, t b WHERE a.id <> ?", (9,)).fetchall()
                        db.execute(f"SELECT {function}(v) FROM t").fetchone()
            except SnapshotExpired:
                expired[0] += 1

    threads = [threading.Thread(target=use, args=(name,), daemon=True) for name in ("f", "abs", "hex")]
    for thread in threads:
        thread.start()
    await until(lambda: expired[0] > 50, 90)
    stop.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, 5)
    assert not any(thread.is_alive() for thread in threads)
    assert await readers.close(timeout=5)


async def test_close_ends_everything(database: Database) -> None:
    readers = Readers(database.replica.connect_as, threads=2)
    running = [asyncio.ensure_future(readers.read(ENDLESS, timeout=60)) for _ in range(5)]
    await asyncio.sleep(0.05)
    with pytest.raises(SnapshotExpired, match="closed"), readers.lease() as db:  # noqa: PT012
        assert not await readers.close(timeout=0.05)  # the lease is still there
        with pytest.raises(SnapshotExpired):
            db.execute("SELECT 1")
    assert await readers.close(timeout=5)
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, SnapshotExpired)
    for _ in range(2):
        with pytest.raises(LbcError, match="closed"):
            await readers.read("SELECT 1", timeout=1)
        with pytest.raises(LbcError, match="closed"), readers.lease():
            pass


async def test_many_reads_at_once(readers: Readers) -> None:
    results = await asyncio.gather(*(readers.read("SELECT ?", (i,), timeout=10) for i in range(1000)))
    assert results == [[(i,)] for i in range(1000)]
