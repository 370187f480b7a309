"""From the present database to a former one: what to change, page by page."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from littlebigcluster.database.guards import REQUESTS, SYSTEM_PREFIX
from littlebigcluster.database.pages import PageSource
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.versions import required_sqlite_version
from littlebigcluster.database.wal import to_wal
from littlebigcluster.errors import EpochTooLarge

_CHUNK_BYTES = 1 << 20


def way_back(
    replica: Replica, former: Path, *, system: Mapping[str, Any], max_bytes: int, salt: bytes, cookie_step: int = 1
) -> tuple[bytes, str]:
    """A WAL file with one transaction that makes the database of `replica` that of the file `former`, but for the
    library's own tables, which stay as they are with the rows of `system` changed (None removes one); and the oldest
    SQLite that can read the schema then. The schema's cookie grows by `cookie_step`. The file, which nobody else uses,
    is changed.

    Raises EpochTooLarge, OSError, sqlite3.Error.
    """
    with closing(replica.connect()) as present, closing(sqlite3.connect(former, isolation_level=None)) as db:
        version = _keep_system(present, db, system, cookie_step)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with replica.pages() as image:
        pages: list[tuple[int, bytes]] = []
        for page in _changed(image, former):
            pages.append(page)
            if len(pages) * image.page_size > max_bytes:
                raise EpochTooLarge(
                    f"the way back changes more than an epoch holds (max_epoch_bytes, {max_bytes}); raise it on the"
                    " node that leads, or restore to a file and write what is needed in several transactions"
                )
        count = former.stat().st_size // image.page_size
        return to_wal(pages, page_size=image.page_size, database_pages=count, salt=salt), version


def _keep_system(
    present: sqlite3.Connection, db: sqlite3.Connection, system: Mapping[str, Any], cookie_step: int
) -> str:
    rows = {**dict(present.execute(f"SELECT key, value FROM {SYSTEM_PREFIX}")), **system}
    requests = present.execute(f"SELECT * FROM {REQUESTS}").fetchall()
    (cookie,) = present.execute("PRAGMA schema_version").fetchone()
    db.execute("BEGIN IMMEDIATE")
    db.execute(f"DELETE FROM {SYSTEM_PREFIX}")
    db.executemany(f"INSERT INTO {SYSTEM_PREFIX} VALUES (?, ?)", [row for row in rows.items() if row[1] is not None])
    db.execute(f"DELETE FROM {REQUESTS}")
    db.executemany(f"INSERT INTO {REQUESTS} VALUES (?, ?, ?)", requests)
    # Never one that was there before: connections know the schema by it.
    db.execute(f"PRAGMA schema_version = {(cookie + cookie_step) % (1 << 31)}")
    db.execute("COMMIT")
    return required_sqlite_version(sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema"))


def _changed(image: PageSource, former: Path) -> Iterator[tuple[int, bytes]]:
    """The pages of the file that the image does not have, or has otherwise."""
    size = image.page_size
    step = _CHUNK_BYTES // size
    with former.open("rb") as file:
        first = 1
        while new := file.read(step * size):
            count = min(len(new) // size, max(0, image.page_count + 1 - first))
            old = image.read(first, count) if count else b""
            if old != new:
                for at in range(0, len(new), size):
                    if (page := new[at : at + size]) != old[at : at + size]:
                        yield first + at // size, page
            first += len(new) // size
