"""What a join reads, and how long it takes, after few and many epochs, with and without merged ones and snapshots.

    python benchmarks/compaction.py [--epochs 10 1000 100000] [--rows 4000] [--row-bytes 800]

Each epoch is a transaction of SQLite that changes one row. Without snapshots there is only the one before the first
epoch: the worst that a restore between two snapshots can meet. With them it is a join by default settings. The store
takes no time, so a join is CPU, and seconds are of that, whatever else the machine does. What it would take on S3 is
computed from the number of requests, and said to be. All of it takes about two minutes.
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

from littlebigcluster import ClusterSettings, NodeSettings
from littlebigcluster.clock import Clock, seeded
from littlebigcluster.database import Primary, StateChecksum, Wal, parse, write_initial_database
from littlebigcluster.epochs import Identity, Metadata, Position, codec, names
from littlebigcluster.roles import SinceSnapshot, restore
from littlebigcluster.roles.compactor import Compactor
from littlebigcluster.roles.snapshotter import is_due
from littlebigcluster.store import ObjectInfo, Store, open_store
from littlebigcluster.store.wrappers import Counting, Wrapper
from littlebigcluster.watch import Watch

CLOCK = Clock()
SETTINGS = NodeSettings()
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


class View(Wrapper):
    """The store as it would be without merged epochs, or without snapshots but the first."""

    def __init__(self, store: Store, *, merged: bool, snapshots: bool) -> None:
        super().__init__(store)
        self._merged, self._snapshots = merged, snapshots
        self.lists = 0
        """Requests, if each shows so many rows."""

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        found = [info for info in await super().list(prefix, start_after) if self._shows(info.key)]
        self.lists += max(1, -(-len(found) // LISTED))
        return found

    async def get(self, key: str) -> bytes | None:
        return None if key == names.LAST_SNAPSHOT and not self._snapshots else await super().get(key)

    def _shows(self, key: str) -> bool:
        if names.parse_merged(key):
            return self._merged
        return self._snapshots or not key.endswith(".db") or key == names.snapshot(0)


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
        self._path = directory / "primary.db"
        self._primary = Primary.create(self._path, File(start), clock=CLOCK)
        self.position = Position(0, 0, "")
        self._since = SinceSnapshot(0, 0)
        self.epoch: Watch[int] = Watch(0)

    def _value(self) -> str:
        return self.random.randbytes(self.row_bytes // 2).hex()

    async def begin(self) -> None:
        """The snapshot."""
        body = self._object("db", self._start.read_bytes(), 0)
        await self.store.put(names.snapshot(0), body)
        self.position = Position(0, 0, hashlib.sha256(body).hexdigest())
        self._since = SinceSnapshot(0, len(body))

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
            self._since.add(len(body), BEGIN)
            if is_due(self._since, SETTINGS, BEGIN):
                await self._snapshot(epoch)
        self.epoch._set(head)

    async def _snapshot(self, epoch: int) -> None:
        body = self._object("db", self._path.read_bytes(), epoch)
        await self.store.put(names.snapshot(epoch), body)
        await self.store.put(names.LAST_SNAPSHOT, names.marker(epoch))
        self._since = SinceSnapshot(epoch, len(body))

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
    """Of CPU."""
    gets: int
    lists: int
    read_bytes: int

    @property
    def far_away_seconds(self) -> float:
        """Computed: on S3, but for the transfer."""
        return self.seconds + self.gets * GET_SECONDS / IN_PARALLEL + self.lists * LIST_SECONDS


async def join(log: GrowingLog, directory: Path, *, merged: bool, snapshots: bool) -> Joined:
    view = View(log.store, merged=merged, snapshots=snapshots)
    counting = Counting(view)
    start = time.process_time()
    restored = await restore(counting, log.identity, directory, clock=CLOCK, afresh=True)
    seconds = time.process_time() - start
    restored.replica.close()
    assert restored.position == log.position
    assert f"{log.checksum.value:016x}" == restored.metadata.state_checksum
    await asyncio.to_thread(shutil.rmtree, restored.replica.path.parent)
    gets = counting.requests["get"] + counting.requests["get_range"]
    return Joined(seconds, gets, view.lists, counting.read_bytes)


async def measure(heads: list[int], rows: int, row_bytes: int, directory: Path) -> None:
    log = GrowingLog(directory, Instant(open_store("memory://", clock=CLOCK)), rows, row_bytes)
    await log.begin()
    compactor = log.compactor()
    size = log.database_bytes
    for _ in range(2):  # once to warm up
        alone = await join(log, directory, merged=False, snapshots=False)
    print(f"a database of {size / 1e6:.1f} MB; to join it without any epochs: {alone.seconds:.3f} s of CPU")
    print("                           objects  LISTs  MB read  x database    CPU s   on S3, computed")
    merging = 0.0
    for head in heads:
        await log.grow(head)
        start = time.process_time()
        await compactor.make_pass()
        merging += time.process_time() - start
        plain = await join(log, directory, merged=False, snapshots=False)
        merged = await join(log, directory, merged=True, snapshots=False)
        default = await join(log, directory, merged=True, snapshots=True)
        print(f"{head:7,} epochs")
        for name, each in (("one by one", plain), ("merged", merged), ("merged, with snapshots", default)):
            read = f"{each.gets:7,} {each.lists:6,} {each.read_bytes / 1e6:8.1f} {each.read_bytes / size:11.1f}"
            print(f"    {name:23}{read} {each.seconds:8.2f} {each.far_away_seconds:15.1f} s")
        ratios = f"{plain.gets / merged.gets:7.1f}        {plain.read_bytes / merged.read_bytes:8.1f}            "
        far = f"{plain.far_away_seconds / merged.far_away_seconds:15.1f}"
        print(f"    one by one / merged    {ratios} {plain.seconds / merged.seconds:8.1f} {far}")
    listed = await log.store.list(names.LOG_PREFIX)
    epochs = sum(info.size_bytes for info in listed if (names.parse(info.key) or ("",))[0] == "wal")
    extra = sum(info.size_bytes for info in listed if names.parse_merged(info.key)) / epochs
    print(
        f"merging took {merging / heads[-1] * 1e6:.0f} us (CPU) an epoch, and {extra:.2f} x the storage of the epochs"
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
