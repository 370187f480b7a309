"""Makes databases with SQLite itself, and takes epochs from them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from littlebigcluster.database.wal import FRAME_HEADER_BYTES, HEADER_BYTES, Wal, parse, squash
from littlebigcluster.database.walindex import WalIndex


class Leader:
    """A database that is written to, and whose transactions are taken as epochs."""

    def __init__(self, path: Path, *, page_size: int = 4096, schema: str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)"):
        self.path, self.page_size = path, page_size
        self.db = sqlite3.connect(path, isolation_level=None)
        for statement in (
            f"PRAGMA page_size = {page_size}",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = OFF",
            "PRAGMA wal_autocheckpoint = 0",
            "CREATE TABLE _lbc(key TEXT PRIMARY KEY, value)",
            schema,
        ):
            self.db.execute(statement)
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.index = WalIndex(path)

    def execute(self, sql: str, *parameters: object) -> None:
        self.db.execute(sql, parameters).fetchall()

    def raw(self) -> bytes:
        """What the WAL holds, committed."""
        with Path(f"{self.path}-wal").open("rb") as file:
            return file.read(HEADER_BYTES + self.index.frame_count() * (FRAME_HEADER_BYTES + self.page_size))

    def take(self) -> Wal:
        """An epoch, as the primary takes it."""
        wal = parse(squash(self.raw()))
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return wal

    def epoch(self, sql: str, *parameters: object) -> Wal:
        self.execute(sql, *parameters)
        return self.take()

    def close(self) -> None:
        self.db.close()
        self.index.close()
