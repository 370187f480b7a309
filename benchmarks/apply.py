"""How fast a follower applies epochs: large ones against memcpy and against SQLite itself, small ones in microseconds.

    python benchmarks/apply.py [--pages 16384] [--small 3000]

Targets: at least 400 MB/s of pages for large epochs, at most 120 us for a small one. "apply" is all that a follower
does with the bytes of an epoch: verify them, compare the state checksum, write the WAL and publish it, checkpoint.
"bare sqlite3" executes the same statements, with the same settings, on a database beside it.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from littlebigcluster.clock import Clock
from littlebigcluster.database.checksum import StateChecksum
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.wal import FRAME_HEADER_BYTES, HEADER_BYTES, parse, squash
from littlebigcluster.database.walindex import WalIndex

PAGE_BYTES = 4096
ROWS = 10_000
ROUNDS = 7
SMALL = "UPDATE small SET value = value + 1 WHERE id = ?"
LARGE = "UPDATE large SET content = randomblob(?)"


class Database:
    """Plain sqlite3, with the settings of a primary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        for name, value in (("journal_mode", "WAL"), ("synchronous", "OFF"), ("wal_autocheckpoint", "0")):
            self.connection.execute(f"PRAGMA {name} = {value}").fetchall()

    def create(self, large_bytes: int) -> None:
        for statement in (
            "CREATE TABLE _lbc(key TEXT PRIMARY KEY, value)",
            "CREATE TABLE small(id INTEGER PRIMARY KEY, value, filler)",
            "CREATE TABLE large(content)",
        ):
            self.connection.execute(statement)
        rows = ((number, 0, "x" * 100) for number in range(ROWS))
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT INTO small VALUES (?, ?, ?)", rows)
        self.connection.execute("INSERT INTO large VALUES (randomblob(?))", (large_bytes,))
        self.connection.execute("COMMIT")
        self.checkpoint()

    def run(self, sql: str, parameter: int) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute(sql, (parameter,))
        self.connection.execute("COMMIT")

    def checkpoint(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


class Leader(Database):
    """A database whose transactions are taken as epochs."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        self.index = WalIndex(path)

    def epoch(self, sql: str, parameter: int) -> bytes:
        self.run(sql, parameter)
        size = HEADER_BYTES + self.index.frame_count() * (FRAME_HEADER_BYTES + PAGE_BYTES)
        with Path(f"{self.path}-wal").open("rb") as wal:
            raw = wal.read(size)
        self.checkpoint()
        return bytes(squash(raw))


def seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def apply(replica: Replica, raw: bytes) -> None:
    wal = parse(raw, page_size=PAGE_BYTES)
    replica.apply(wal, expected_checksum=replica.checksum_after(wal))


def large(leader: Leader, replica: Replica, bare: Database, pages: int) -> None:
    size = (pages - 20) * (PAGE_BYTES - 4)
    times: dict[str, list[float]] = {}

    def note(name: str, function: Callable[[], object]) -> None:
        times.setdefault(name, []).append(seconds(function))

    def sqlite() -> None:
        bare.run(LARGE, size)
        bare.checkpoint()

    for _ in range(ROUNDS):
        raw = leader.epoch(LARGE, size)
        note("memcpy of the same bytes", lambda raw=raw: bytearray(raw))  # type: ignore[misc]
        note("verify the WAL (part of apply)", lambda raw=raw: parse(raw))  # type: ignore[misc]
        note("apply", lambda raw=raw: apply(replica, raw))  # type: ignore[misc]
        note("bare sqlite3, the same transaction", sqlite)
    megabytes = len(raw) / 1e6
    print(f"large epochs, {parse(raw).frames} pages of {PAGE_BYTES} bytes, median of {ROUNDS}, checkpoints included")
    ours = statistics.median(times["apply"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"  {name:36} {megabytes / middle:8.0f} MB/s   apply takes {ours / middle:5.2f} x as long")


def small(leader: Leader, replica: Replica, bare: Database, count: int) -> None:
    ids = [number * 7919 % ROWS for number in range(count)]
    epochs = [leader.epoch(SMALL, number) for number in ids]
    ours, theirs = [], []
    for number, raw in zip(ids, epochs, strict=True):
        ours.append(seconds(lambda raw=raw: apply(replica, raw)))  # type: ignore[misc]
        theirs.append(seconds(lambda number=number: bare.run(SMALL, number)))  # type: ignore[misc]
        if number % 1000 == 0:
            bare.checkpoint()
    print(f"small epochs, {parse(epochs[0]).frames} page, {count} of them, checkpoints included")
    for name, taken in (("apply", ours), ("bare sqlite3, the same transaction", theirs)):
        middle, mean = statistics.median(taken), statistics.fmean(taken)
        high = sorted(taken)[int(len(taken) * 0.99)]
        ratio = statistics.median(ours) / middle
        print(
            f"  {name:36} p50 {middle * 1e6:6.0f} us  mean {mean * 1e6:6.0f} us  p99 {high * 1e6:6.0f} us"
            f"   apply takes {ratio:5.2f} x as long"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=16384, help="pages in a large epoch")
    parser.add_argument("--small", type=int, default=3000, help="how many small epochs")
    arguments = parser.parse_args()
    with TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in ("leader.db", "replica.db", "bare.db")]
        leader = Leader(paths[0])
        leader.create((arguments.pages - 20) * (PAGE_BYTES - 4))
        for path in paths[1:]:
            shutil.copy(paths[0], path)
        replica, bare = Replica.open(paths[1], clock=Clock()), Database(paths[2])
        small(leader, replica, bare, arguments.small)
        large(leader, replica, bare, arguments.pages)
        check(leader, replica)
        replica.close()
        bare.connection.close()
        leader.connection.close()


def check(leader: Leader, replica: Replica) -> None:
    """A benchmark of something wrong is worth nothing."""
    checksum = StateChecksum(PAGE_BYTES)
    checksum.feed(leader.path.read_bytes())
    assert checksum.value == replica.checksum, "the replica differs from the leader"


if __name__ == "__main__":
    main()
