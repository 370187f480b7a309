"""What a read costs over bare `sqlite3`: SELECT by key from the local copy, while nothing is written.

    python benchmarks/read.py

All are measured in turns in one run, on the same file; the ratios are what counts.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from time import perf_counter

from littlebigcluster.clock import Clock
from littlebigcluster.database import Primary, Readers, Replica, parse, write_initial_database

ROWS = 10_000
READS = 4_000
TURNS = 15
SELECT = "SELECT value FROM item WHERE id = ?"


def fill(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, value TEXT)")
    db.executemany("INSERT INTO item VALUES (?, ?)", ((i, "x" * 50) for i in range(ROWS)))


def open_replica(directory: Path) -> Replica:
    write_initial_database(directory / "replica.db", page_size=4096, system={"epoch": 0})
    replica = Replica.open(directory / "replica.db", clock=Clock())
    with replica.pages() as image:
        primary = Primary.create(directory / "primary.db", image)
    primary.transaction(fill)
    raw = primary.take()
    assert raw is not None
    replica.apply(parse(raw), expected_checksum=None)
    primary.discard()
    return replica


def by_key(db: sqlite3.Connection) -> None:
    for i in range(READS):
        assert db.execute(SELECT, (i % ROWS,)).fetchone() is not None


def microseconds(work: Callable[[], object], count: int) -> float:
    begun = perf_counter()
    work()
    return (perf_counter() - begun) / count * 1e6


async def awaited(readers: Readers, in_flight: int) -> float:
    async def task() -> None:
        for i in range(READS // in_flight):
            assert await readers.read(SELECT, (i % ROWS,), timeout=30)

    begun = perf_counter()
    await asyncio.gather(*(task() for _ in range(in_flight)))
    return (perf_counter() - begun) / READS * 1e6


async def hops() -> float:
    """What no awaited read can go below: handing a future to a thread, and having it set from there."""
    loop = asyncio.get_running_loop()
    queue: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()

    def answer() -> None:
        while (future := queue.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    thread = threading.Thread(target=answer)
    thread.start()
    started = perf_counter()
    for _ in range(READS):
        future: asyncio.Future[None] = loop.create_future()
        queue.put(future)
        await future
    elapsed = perf_counter() - started
    queue.put(None)
    thread.join()
    return elapsed / READS * 1e6


def leases(readers: Readers) -> None:
    for i in range(READS):
        with readers.lease() as db:
            assert db.execute(SELECT, (i % ROWS,)).fetchone() is not None


async def main() -> None:
    with TemporaryDirectory(prefix="lbc-") as directory:
        replica = open_replica(Path(directory))
        bare = sqlite3.connect(f"file:{directory}/replica.db?mode=ro", uri=True, isolation_level=None)
        readers = Readers(replica.connect_as)

        def in_transaction() -> None:
            bare.execute("BEGIN")
            by_key(bare)
            bare.execute("COMMIT")

        def on_lease() -> None:
            with readers.lease() as db:
                by_key(db)

        times: dict[str, list[float]] = {}
        for _ in range(TURNS):
            for name, value in (
                ("bare", microseconds(lambda: by_key(bare), READS)),
                ("bare, in BEGIN", microseconds(in_transaction, READS)),
                ("connection()", microseconds(on_lease, READS)),
                ("a connection() each", microseconds(lambda: leases(readers), READS)),
                ("a hop to a thread and back", await hops()),
                ("await read()", await awaited(readers, 1)),
                ("await read(), 64 in flight", await awaited(readers, 64)),
            ):
                times.setdefault(name, []).append(value)
        await readers.close(timeout=5)
        bare.close()
        replica.close()
    report({name: statistics.median(values) for name, values in times.items()})


def report(times: dict[str, float]) -> None:
    bare, pinned = times["bare"], times["bare, in BEGIN"]
    print(f"SELECT by key, {ROWS} rows, SQLite {sqlite3.sqlite_version}, median of {TURNS} turns\n")
    for name, value in times.items():
        print(f"{name:28} {value:7.2f} us   {value / bare:5.2f} x bare   {value - bare:+7.2f} us")
    lease = times["connection()"]
    print(
        f"\nconnection() against bare: {lease / bare:.2f} x (at most 1.2); in one transaction: {lease / pinned:.2f} x"
    )
    hop = times["a hop to a thread and back"]
    print(f"await read() over bare: {times['await read()'] - bare:.1f} us (at most 50), {hop:.1f} us of it the hop")


if __name__ == "__main__":
    asyncio.run(main())
