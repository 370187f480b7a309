"""How long a join and a restore take, against copying and decompressing the snapshot in the same run.

    python benchmarks/restore.py [--mib 100 1024] [--rounds 3]

The store is a directory. The database is of rows that compress about as well as JSON does. "read and decompress" is
one thread that reads the snapshot object in pieces of 4 MiB and decompresses it into nothing; "and write" writes the
result to a file, too: what whoever restores cannot do without. Needs three times the largest database on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from littlebigcluster import Cluster
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import codec, names
from littlebigcluster.store import open_store

PIECE_BYTES = 4 << 20
_ROW_BYTES = 1000


def make_database(path: Path, mib: int) -> None:
    """Rows of about 1 kB: words, numbers, and a third of noise."""
    chance = random.Random(1)
    words = [chance.randbytes(4).hex() for _ in range(2000)]
    rows = mib * (1 << 20) // (_ROW_BYTES + 60)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, text TEXT, noise BLOB)")
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO item(name, text, noise) VALUES (?, ?, ?)",
            (
                (words[n % 2000], " ".join(chance.choices(words, k=70)), chance.randbytes(_ROW_BYTES // 3))
                for n in range(rows)
            ),
        )
        db.execute("COMMIT")


def decompress(path: Path, target: Path | None) -> float:
    """Seconds to read and decompress the object, and write the result to `target`."""
    start = time.monotonic()
    decompressor = codec.zstd.ZstdDecompressor()
    out = target.open("wb") if target else None
    with path.open("rb") as file:
        first = file.read(PIECE_BYTES)
        piece = first[codec.header_size(first, name=path.name) :]
        while piece:
            while piece or not decompressor.needs_input:
                raw = decompressor.decompress(piece, 1 << 20)
                piece = b""
                if out:
                    out.write(raw)
                if decompressor.eof:
                    break
            piece = file.read(PIECE_BYTES)
    if out:
        out.close()
    seconds = time.monotonic() - start
    if target:
        target.unlink()
    return seconds


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    start = time.monotonic()
    await work()
    return time.monotonic() - start


async def measure(directory: Path, mib: int, rounds: int) -> None:
    source, place = directory / "app.db", directory / "cluster"
    await asyncio.to_thread(make_database, source, mib)
    size = source.stat().st_size
    cluster = Cluster(open_store(str(place), clock=Clock()))
    await cluster.import_file(source, "bench")
    source.unlink()
    snapshot = place / names.snapshot(0)
    stored = snapshot.stat().st_size

    async def join() -> None:
        async with cluster.join(address="127.0.0.1:0"):
            joined.append(time.monotonic())

    joined: list[float] = []
    reads, writes, joins, restores = list[float](), list[float](), list[float](), list[float]()
    for _ in range(rounds):
        reads.append(await asyncio.to_thread(decompress, snapshot, None))
        writes.append(await asyncio.to_thread(decompress, snapshot, directory / "copy.db"))
        start = time.monotonic()
        await join()
        joins.append(joined[-1] - start)
        restores.append(await timed(lambda: cluster.restore(directory / "restored.db", overwrite=True)))
        (directory / "restored.db").unlink()
    read = min(reads)
    print(f"{size / 2**20:.0f} MiB, {stored / 2**20:.0f} MiB compressed; best of {rounds}")
    for name, times in (
        ("read and decompress", reads),
        ("and write", writes),
        ("join", joins),
        ("restore to a file", restores),
    ):
        best = min(times)
        print(f"  {name:20} {best:7.2f} s  {size / best / 2**20:7.0f} MiB/s  {best / read:5.2f} x", flush=True)
    await cluster.store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[100, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for mib in options.mib:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(measure(Path(directory), mib, options.rounds))


if __name__ == "__main__":
    main()
