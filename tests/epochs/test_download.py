"""Snapshots on their way down: whole, in order, and nothing goes on when it has ended."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from tests.scenarios.stage import memory

from littlebigcluster import Cluster, ClusterSettings
from littlebigcluster.epochs import names, snapshots, survey_all
from littlebigcluster.store import ObjectInfo, Store


@pytest.fixture(params=["zstd", "none"])
async def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, ObjectInfo]:
    """A snapshot of about 12 MiB: several ranges, several batches."""
    with closing(sqlite3.connect(tmp_path / "app.db")) as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("INSERT INTO t VALUES (randomblob(12000000))")
        db.commit()
    store = memory()
    await Cluster(store).import_file(tmp_path / "app.db", settings=ClusterSettings(compression=request.param))
    return store, (await survey_all(store)).snapshots[0]


async def test_the_sink_gets_all_of_it_in_order(stored: tuple[Store, ObjectInfo]) -> None:
    store, info = stored
    got, read = list[bytes](), list[int]()
    metadata, _ = await snapshots.download(store, info, got.extend, on_bytes=read.append)
    assert b"".join(got)[:16] == b"SQLite format 3\0"
    assert sum(map(len, got)) == metadata.raw_size_bytes
    assert sum(read) == info.size_bytes


async def test_what_the_sink_raises_comes_out(stored: tuple[Store, ObjectInfo]) -> None:
    def full(pieces: Iterable[bytes]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await snapshots.download(*stored, full)


async def test_the_sink_is_at_rest_when_a_cancelled_download_has_ended(stored: tuple[Store, ObjectInfo]) -> None:
    entered, go, left = threading.Event(), threading.Event(), threading.Event()

    def slow(pieces: Iterable[bytes]) -> None:
        entered.set()
        go.wait(20)
        left.set()

    task = asyncio.create_task(snapshots.download(*stored, slow))
    await asyncio.to_thread(entered.wait, 20)
    task.cancel()
    await asyncio.sleep(0.1)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.is_set()
    assert names.parse(stored[1].key) == ("db", 0)
