"""What a join reads, and how long it takes, over few and many epochs since the snapshot, with and without merged ones.

    python benchmarks/compaction.py [--epochs 10 1000 100000] [--rows 4000] [--row-bytes 800]

Each epoch is a transaction of SQLite that changes one row. There is one snapshot, before the first epoch: as if none
had been made since, or as when a point between two snapshots is restored. The store is in memory, where a request takes
no time; what it would take on S3 is computed from the number of requests, and said to be.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from littlebigcluster import ClusterSettings
from littlebigcluster.clock import Clock, seeded
from littlebigcluster.database import Primary, StateChecksum, Wal, parse, write_initial_database
from littlebigcluster.epochs import Identity, Metadata, Position, codec, names
from littlebigcluster.roles import restore
from littlebigcluster.roles.compactor import Compactor
from littlebigcluster.store import ObjectInfo, Store, open_store
from littlebigcluster.store.wrappers import Counting, Wrapper
from littlebigcluster.watch import Watch

CLOCK = Clock()
PAGE_SIZE = 4096
BEGIN = datetime(2026, 11, 22, tzinfo=UTC)
GET_SECONDS, LIST_SECONDS, IN_PARALLEL, LISTED = 0.063, 0.1, 16, 1000
"""A small GET, a LIST of so many rows, and how many GETs a join has under way."""


@dataclass(frozen=True)
class File:
    """A source for a primary."""

    path: Path

    def chunks(self) -> Iterator[bytes]:
        yield self.path.read_bytes()


class Instant(Wrapper):
    """Keeps what is put in a dictionary: nothing of this is to be measured."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._objects: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        return self._objects.get(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        body = self._objects.get(key)
        return None if body is None else body[start : start + length]

    async def put(self, key: str, body: bytes) -> None:
        self._objects[key] = body

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        found = sorted(key for key in self._objects if key.startswith(prefix) and key > start_after)
        return [ObjectInfo(key, len(self._objects[key]), BEGIN) for key in found]


class Unmerged(Wrapper):
    """The store as it would be without merged epochs."""

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        listed = await super().list(prefix, start_after)
        return [info for info in listed if names.parse_merged(info.key) is None]


class GrowingLog:
    """Epochs without a node."""

    def __init__(self, directory: Path, store: Store, rows: int, row_bytes: int) -> None:
        self.store, self.rows, self.row_bytes = store, rows, row_bytes
        self.identity = Identity("benchmark", BEGIN, ClusterSettings(page_size=PAGE_SIZE))
        self.random = seeded(1)
        start = directory / "start.db"
        system = {"cluster_id": "benchmark", "format_version": 1, "epoch": 0, "last_update": ""}
        write_initial_database(start, page_size=PAGE_SIZE, system=system)
        connection = sqlite3.connect(start)
        with connection:
            connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
            for number in range(rows):
                connection.execute("INSERT INTO t VALUES (?, ?)", (number, self._value()))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        self._start = start
        self.checksum = StateChecksum(PAGE_SIZE)
        self.checksum.feed(start.read_bytes())
        self.database_bytes = start.stat().st_size
        self._primary = Primary.create(directory / "primary.db", File(start), clock=CLOCK)
        self.position = Position(0, 0, "")
        self.epoch: Watch[int] = Watch(0)

    def _value(self) -> str:
        return self.random.randbytes(self.row_bytes // 2).hex()

    async def begin(self) -> None:
        """The snapshot."""
        body = self._object("db", self._start.read_bytes(), 0)
        await self.store.put(names.snapshot(0), body)
        self.position = Position(0, 0, hashlib.sha256(body).hexdigest())

    async def grow(self, head: int) -> None:
        """Up to this epoch."""
        for epoch in range(self.position.epoch + 1, head + 1):
            update = self._value(), self.random.randrange(self.rows)
            self._primary.transaction(lambda db, update=update: db.execute("UPDATE t SET v = ? WHERE id = ?", update))
            self._primary.system(epoch=epoch, last_update=(BEGIN + timedelta(seconds=epoch)).isoformat())
            raw = self._primary.take()
            assert raw is not None
            wal = parse(raw)
            self.checksum.advance(wal)
            body = self._object("wal", bytes(raw), epoch, wal)
            await self.store.put(names.wal(epoch), body)
            self.position = Position(epoch, 1, hashlib.sha256(body).hexdigest())
        self.epoch._set(head)

    def _object(self, kind: Any, raw: bytes, epoch: int, wal: Wal | None = None) -> bytes:
        compressor = codec.Compressor("zstd")
        stored = b"".join(compressor.feed([raw]))
        metadata = Metadata(
            kind=kind,
            cluster_id="benchmark",
            epoch=epoch,
            term=1 if epoch else 0,
            leader=None,
            created_at=BEGIN + timedelta(seconds=epoch),
            nonce=f"{epoch:032x}",
            transactions=1,
            pages=wal.frames if wal else self.checksum.database_pages,
            page_size=PAGE_SIZE,
            database_pages=self.checksum.database_pages,
            raw_size_bytes=compressor.raw_size_bytes,
            raw_sha256=compressor.raw_sha256,
            stored_xxh3=compressor.stored_xxh3,
            previous_sha256=self.position.sha256,
            state_checksum=f"{self.checksum.value:016x}",
            min_sqlite_version="3.35.0",
            compression="zstd",
        )
        return codec.encode_header(metadata) + stored

    def compactor(self) -> Compactor:
        """What the leader runs."""
        metadata = SimpleNamespace(page_size=PAGE_SIZE)
        local: Any = SimpleNamespace(epoch=self.epoch, metadata=metadata, cluster_id="benchmark")
        return Compactor(self.store, local, "zstd")

    def close(self) -> None:
        self._primary.discard()


@dataclass(frozen=True)
class Joined:
    """What a join took."""

    seconds: float
    gets: int
    lists: int
    read_bytes: int

    @property
    def far_away_seconds(self) -> float:
        """Computed: on S3, but for the transfer."""
        return self.seconds + self.gets * GET_SECONDS / IN_PARALLEL + self.lists * LIST_SECONDS


async def join(store: Store, log: GrowingLog, directory: Path) -> Joined:
    counting = Counting(store)
    rows = len(await store.list(names.LOG_PREFIX))
    start = time.monotonic()
    restored = await restore(counting, log.identity, directory, clock=CLOCK, afresh=True)
    seconds = time.monotonic() - start
    restored.replica.close()
    assert restored.position == log.position
    assert f"{log.checksum.value:016x}" == restored.metadata.state_checksum
    await asyncio.to_thread(shutil.rmtree, restored.replica.path.parent)
    gets = counting.requests["get"] + counting.requests["get_range"]
    lists = (counting.requests["list"] - 1) + -(-rows // LISTED)
    return Joined(seconds, gets, lists, counting.read_bytes)


async def measure(heads: list[int], rows: int, row_bytes: int, directory: Path) -> None:
    store = Instant(open_store("memory://", clock=CLOCK))
    log = GrowingLog(directory, store, rows, row_bytes)
    await log.begin()
    compactor = log.compactor()
    size = log.database_bytes
    await join(store, log, directory)  # to warm up
    alone = await join(store, log, directory)
    print(f"a database of {size / 1e6:.1f} MB; to join where no epoch follows the snapshot: {alone.seconds:.3f} s")
    print("                   objects  LISTs  MB read  x database  seconds  x snapshot   on S3, computed")
    merging = 0.0
    for head in heads:
        await log.grow(head)
        start = time.monotonic()
        await compactor.make_pass()
        merging += time.monotonic() - start
        plain, merged = await join(Unmerged(store), log, directory), await join(store, log, directory)
        print(f"{head:7,} epochs")
        for name, each in (("one by one", plain), ("merged", merged)):
            read = f"{each.gets:9,} {each.lists:6,} {each.read_bytes / 1e6:8.1f} {each.read_bytes / size:11.1f}"
            took = f"{each.seconds:8.2f} {each.seconds / alone.seconds:11.1f} {each.far_away_seconds:15.1f} s"
            print(f"    {name:12} {read} {took}")
        print(
            f"    ratio        {plain.gets / merged.gets:9.1f}        {plain.read_bytes / merged.read_bytes:8.1f}"
            f"             {plain.seconds / merged.seconds:8.1f}             "
            f"{plain.far_away_seconds / merged.far_away_seconds:15.1f}"
        )
    listed = await store.list(names.LOG_PREFIX)
    sizes = [
        sum(info.size_bytes for info in listed if bool(names.parse_merged(info.key)) is kind) for kind in (False, True)
    ]
    print(
        f"merging took {merging / heads[-1] * 1e6:.0f} us an epoch, and {sizes[1] / sizes[0] * 100:.0f}% more storage"
        f" than the epochs and the snapshot"
    )
    log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 1000, 100_000])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--row-bytes", type=int, default=800)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(sorted(options.epochs), options.rows, options.row_bytes, Path(directory)))


if __name__ == "__main__":
    main()
