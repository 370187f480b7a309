"""How long a join and a restore take, against copying and decompressing the snapshot in the same run.

    python benchmarks/restore.py [--mib 100 1024] [--rounds 3]

The store is a directory. The database is of rows that compress about as well as JSON does. "read and decompress" is
what the others are compared with: one thread that reads the snapshot object in pieces of 4 MiB and decompresses it into
nothing, as `zstd -dc OBJECT > /dev/null` does. So it writes nothing, and checks no hash but that of the zstd frame.
"and write" writes the result to a file, too, as `zstd -d` does; "SHA-256" only hashes as many bytes, which a join and a
restore cannot do without. "join" is a node's, until the body of its `async with` begins; "restore to a file" is on the
disk (fsync) when it ends. The snapshot is that of an import, epoch 0: the dearest one, as the log goes on from the hash
of the whole object. Processor time is that of all threads: on two cores nothing takes less than half of it.

Needs three times the largest database on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
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


def decompress(path: Path, target: Path | None) -> None:
    """Read and decompress the object, and write the result to `target`."""
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


def hash_content(size_bytes: int) -> None:
    """Hash so much as it is hashed."""
    piece, digest = bytes(codec.PIECE_BYTES), hashlib.sha256()
    for _ in range(size_bytes // len(piece)):
        digest.update(piece)


class Times:
    """Seconds, and seconds of all processors, of each round."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.cpu_seconds = name, list[float](), list[float]()

    def start(self) -> None:
        self._start, self._cpu_start = time.monotonic(), time.process_time()

    def stop(self) -> None:
        self.seconds.append(time.monotonic() - self._start)
        self.cpu_seconds.append(time.process_time() - self._cpu_start)

    async def of(self, work: Callable[..., object], *arguments: object) -> None:
        self.start()
        await asyncio.to_thread(work, *arguments)
        self.stop()


async def measure(directory: Path, mib: int, rounds: int) -> None:
    source, place = directory / "app.db", directory / "cluster"
    await asyncio.to_thread(make_database, source, mib)
    size = source.stat().st_size
    cluster = Cluster(open_store(str(place), clock=Clock()))
    await cluster.import_file(source, "bench")
    source.unlink()
    snapshot = place / names.snapshot(0)
    stored = snapshot.stat().st_size

    read, write, digest = Times("read and decompress"), Times("and write"), Times("SHA-256")
    join, restore = Times("join"), Times("restore to a file")
    for _ in range(rounds):
        await read.of(decompress, snapshot, None)
        await write.of(decompress, snapshot, directory / "copy.db")
        (directory / "copy.db").unlink()
        await digest.of(hash_content, size)
        join.start()
        async with cluster.join(address="127.0.0.1:0"):
            join.stop()
        restore.start()
        await cluster.restore(directory / "restored.db")
        restore.stop()
        (directory / "restored.db").unlink()
    print(f"{size / 2**20:.0f} MiB, {stored / 2**20:.0f} MiB compressed; best of {rounds}")
    for times in (read, write, digest, join, restore):
        best, cpu = min(times.seconds), min(times.cpu_seconds)
        print(
            f"  {times.name:20} {best:7.2f} s {size / best / 2**20:7.0f} MiB/s {best / min(read.seconds):6.2f} x;"
            f" processors {cpu:7.2f} s {cpu / min(read.cpu_seconds):6.2f} x",
            flush=True,
        )
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
