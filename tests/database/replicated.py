"""A replica that is read and changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.database.initial import write_initial_database
from littlebigcluster.database.primary import Primary
from littlebigcluster.database.readers import _IDLE, Readers, _Reader
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.wal import Wal, parse

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


class Database:
    """A replica, and the primary that its epochs come from. To be made and closed in one thread."""

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
        self.primary.transaction(lambda db: db.execute(sql).close())
        raw = self.primary.take()
        assert raw is not None
        return parse(raw)

    def is_pinned(self) -> bool:
        """Does a reader keep the WAL from being emptied?"""
        applier = self.replica._applier
        applier.execute("PRAGMA busy_timeout = 0")
        busy, _, _ = applier.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(busy)

    def close(self) -> None:
        self.primary.discard()
        self.replica.close()


def is_busy(reader: _Reader) -> bool:
    return reader.use is not _IDLE


def all_busy(readers: Readers) -> bool:
    """Does each thread run a read?"""
    return all(is_busy(reader) for reader in readers._serving)


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
