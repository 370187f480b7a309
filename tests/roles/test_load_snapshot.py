"""A snapshot that becomes a replica: whole and sound, or nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.scenarios.damage import body_of, wrong_bit
from tests.scenarios.stage import eventually, memory

from littlebigcluster import Cluster, ClusterSettings, CorruptLog
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import Identity, codec, names, read_identity, snapshots, survey_all
from littlebigcluster.roles import load_snapshot
from littlebigcluster.roles.restore import Loaded, restore
from littlebigcluster.store import Counting, ObjectInfo, Store

RANGE = snapshots.CHUNK_BYTES


class Stored:
    """A snapshot of epoch 0 of about 9 MiB: three ranges, some batches."""

    def __init__(self, store: Store, identity: Identity, info: ObjectInfo, body: bytes, directory: Path) -> None:
        self.store, self.identity, self.info, self.body, self.directory = store, identity, info, body, directory

    async def load(self) -> Loaded:
        return await load_snapshot(self.store, self.identity, self.info, self.directory, clock=Clock())


@pytest.fixture(params=["zstd", "none"])
async def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    with closing(sqlite3.connect(tmp_path / "app.db")) as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("INSERT INTO t VALUES (randomblob(9000000))")
        db.commit()
    store = memory()
    await Cluster(store).import_file(tmp_path / "app.db", settings=ClusterSettings(compression=request.param))
    identity, _ = await read_identity(store, expected_id=None)
    (tmp_path / "node").mkdir()
    info = (await survey_all(store)).snapshots[0]
    return Stored(store, identity, info, await body_of(store, info.key), tmp_path / "node")


async def test_the_log_goes_on_from_the_hash_of_the_first_snapshot(stored: Stored) -> None:
    loaded = await stored.load()
    loaded.replica.close()
    sha256 = hashlib.sha256(stored.body).hexdigest()
    assert (loaded.position.epoch, loaded.position.sha256) == (0, sha256)
    assert await snapshots.position_of(stored.store, loaded.metadata) == loaded.position


async def test_a_node_reads_the_first_snapshot_once(stored: Stored) -> None:
    store = Counting(stored.store)
    (await restore(store, stored.identity, stored.directory, clock=Clock())).replica.close()
    assert len(stored.body) <= store.read_bytes < 1.1 * len(stored.body)


async def test_a_wrong_bit_anywhere_is_found_and_nothing_is_left(stored: Stored) -> None:
    _, start = codec.decode_header(stored.body, name=stored.info.key)
    for at in (4, 30, start - 3, start + 20, RANGE - 1, RANGE, RANGE + (1 << 20), 2 * RANGE, len(stored.body) - 1):
        await stored.store.put(stored.info.key, wrong_bit(stored.body, at))
        with pytest.raises(CorruptLog) as caught:
            await stored.load()
        assert caught.value.object == names.snapshot(0)
        assert list(stored.directory.iterdir()) == []


async def test_each_hash_of_the_metadata_is_compared(stored: Stored) -> None:
    metadata, start = codec.decode_header(stored.body, name=stored.info.key)
    for field, expected in (
        ("raw_sha256", "SHA-256"), ("stored_xxh3", "XXH3"), ("state_checksum", "state checksum"),
    ):  # fmt: skip
        right = getattr(metadata, field)
        wrong = stored.body[:start].replace(right.encode(), right[::-1].encode())
        text = wrong[codec.HEADER.size : -len(b',"check":"0123456789abcdef"}')]
        check = b',"check":"%s"}' % codec.xxhash.xxh3_64_hexdigest(text).encode()
        await stored.store.put(stored.info.key, wrong[: codec.HEADER.size] + text + check + stored.body[start:])
        with pytest.raises(CorruptLog, match=expected):
            await stored.load()
        assert list(stored.directory.iterdir()) == []


@contextlib.contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_gets_full_on_the_way_is_said_and_nothing_is_left(stored: Stored) -> None:
    with files_up_to(5 << 20), pytest.raises(OSError, match="File too large"):
        await stored.load()
    assert list(stored.directory.iterdir()) == []
    (await stored.load()).replica.close()


class Stopping(Counting):
    """Never gives the second range of a snapshot."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.stopped = asyncio.Event()

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        if start == RANGE:
            self.stopped.set()
            await asyncio.get_running_loop().create_future()
        return await super().get_range(key, start, length)


async def test_who_is_cancelled_on_the_way_leaves_no_file_and_no_thread(stored: Stored) -> None:
    stored.store = store = Stopping(stored.store)
    loading = asyncio.create_task(stored.load())
    await store.stopped.wait()
    await eventually(lambda: any(path.stat().st_size for path in stored.directory.rglob("*.db")))
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert list(stored.directory.iterdir()) == []
    await eventually(lambda: not any(each.name.startswith("lbc-restoring") for each in threading.enumerate()))
