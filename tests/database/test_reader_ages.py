"""Reads and connections that hold a snapshot for too long."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator

import pytest
from replicated import ENDLESS, Database, all_busy, until
from tests.clocks import HandClock

from littlebigcluster.database.connections import SnapshotConnection
from littlebigcluster.database.readers import Readers
from littlebigcluster.errors import LbcError, SnapshotExpired

FAR_TOO_LONG = 1000.0
PATIENCE = 10.0


@pytest.fixture
async def hasty(database: Database) -> AsyncIterator[Readers]:
    """Readers whose snapshots expire soon."""
    readers = Readers(database.replica.connect_as, threads=2, max_read_age=0.1)
    yield readers
    assert await readers.close(timeout=60)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def late(database: Database, clock: HandClock) -> AsyncIterator[Readers]:
    """Readers whose ages are looked at ten times a second, by a clock that jumps."""
    readers = Readers(database.replica.connect_as, threads=2, max_read_age=1, clock=clock)
    yield readers
    assert await readers.close(timeout=60)


@pytest.fixture
async def patient(database: Database, clock: HandClock) -> AsyncIterator[Readers]:
    """Readers whose snapshots expire when the clock is turned, and before that on no machine."""
    readers = Readers(database.replica.connect_as, threads=2, max_read_age=PATIENCE, clock=clock)
    yield readers
    assert await readers.close(timeout=60)


async def test_a_lease_held_idle_for_too_long_expires(patient: Readers, database: Database, clock: HandClock) -> None:
    released = False
    with pytest.raises(SnapshotExpired, match="max_read_age"), patient.lease() as db:  # noqa: PT012
        cursor = db.cursor()
        database.apply("UPDATE t SET v = 1")
        assert database.is_pinned()
        clock.pass_time(PATIENCE)
        await until(lambda: not database.is_pinned())  # long before the block ends
        released = True
        for use in (db.execute, cursor.execute):
            with pytest.raises(SnapshotExpired):
                use("SELECT v FROM t")
    assert released
    with patient.lease() as db:
        assert db.execute("SELECT v FROM t").fetchall() == [(1,)] * 3


async def test_a_statement_running_for_too_long_is_ended(hasty: Readers) -> None:
    with pytest.raises(SnapshotExpired), hasty.lease() as db:
        db.execute(ENDLESS)
    with pytest.raises(SnapshotExpired):
        await hasty.read(ENDLESS, timeout=600)
    with pytest.raises(SnapshotExpired):
        await hasty.run(lambda db: db.execute(ENDLESS), timeout=600)


async def test_a_half_read_cursor_ends_at_its_next_step(hasty: Readers, database: Database) -> None:
    with pytest.raises(SnapshotExpired), hasty.lease() as db:  # noqa: PT012
        cursor = db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT v, i FROM t, n")
        assert cursor.fetchone()[0] == 0
        database.apply("UPDATE t SET v = 1")
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            for _ in cursor:
                pass
        await until(lambda: not database.is_pinned())  # before the block ends


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
        await asyncio.to_thread(thread.join, 60)
    assert not any(thread.is_alive() for thread in threads)
    assert await readers.close(timeout=60)


async def test_a_snapshot_is_not_let_go_unannounced(late: Readers, database: Database, clock: HandClock) -> None:
    """However late its age is seen, as on a machine that stood still."""
    with pytest.raises(SnapshotExpired, match="max_read_age"), late.lease() as db:  # noqa: PT012
        clock.pass_time(FAR_TOO_LONG)
        for value in itertools.count(1):
            database.apply(f"UPDATE t SET v = {value}")
            assert db.execute("SELECT v FROM t").fetchall() == [(0,)] * 3


async def test_a_running_statement_is_ended_however_late_its_age_is_seen(patient: Readers, clock: HandClock) -> None:
    reading = asyncio.create_task(patient.read(ENDLESS, timeout=60))
    running = asyncio.create_task(patient.run(lambda db: db.execute(ENDLESS), timeout=60))
    await until(lambda: all_busy(patient))
    clock.pass_time(FAR_TOO_LONG)
    for task in (reading, running):
        with pytest.raises(SnapshotExpired):
            await task


async def test_a_lease_that_is_told_to_end_while_it_is_made_ends(late: Readers) -> None:
    reader = late._borrow()
    reader.expire(reader.use, SnapshotExpired("too old"))
    with pytest.raises(SnapshotExpired, match="too old"):
        reader.pin().execute("SELECT 1")
    late._give_back(reader)
    with late.lease() as db:
        assert db.execute("SELECT 1").fetchone() == (1,)


async def test_a_lease_that_is_made_while_the_readers_close_is_refused(database: Database) -> None:
    def connect(factory: type[SnapshotConnection]) -> SnapshotConnection:
        connection = database.replica.connect_as(factory)
        if leasing.is_set():
            connecting.set()
            assert closed.wait(60)
        return connection

    def lease() -> None:
        with readers.lease():
            pytest.fail("a connection of readers that are closed")

    leasing, connecting, closed = threading.Event(), threading.Event(), threading.Event()
    readers = Readers(connect, threads=1)
    leasing.set()
    lent = asyncio.create_task(asyncio.to_thread(lease))
    await until(connecting.is_set)
    assert await readers.close(timeout=60)
    closed.set()
    with pytest.raises(LbcError, match="closed"):
        await lent
    assert not readers._lent
    assert not readers._idle
