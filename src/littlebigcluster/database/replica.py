"""The node's copy of the database: durable epochs only, and all that this node reads.

An epoch is applied by acting as SQLite's own WAL writer, under SQLite's own write lock. So readers have all
of SQLite's isolation: they never wait for an epoch, and never see half of one.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from littlebigcluster.clock import Clock
from littlebigcluster.database.checksum import StateChecksum
from littlebigcluster.database.files import Files, ReplicaConnection, write_at
from littlebigcluster.database.pages import PageSource
from littlebigcluster.database.selfcheck import check_sqlite
from littlebigcluster.database.wal import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    Wal,
    parse,
    rechain,
    to_wal,
)
from littlebigcluster.database.walindex import WalIndexHeader
from littlebigcluster.errors import LbcError

C = TypeVar("C", bound=sqlite3.Connection)

CHECKPOINT_FRAMES = 1000
"""From so many frames in the WAL on, try to move them to the file."""

WAIT_FRAMES = 2000
"""From so many on, wait for readers of older states, a little."""

_WAIT_MILLISECONDS = 400
_RETRY_SECONDS = 0.1
_WAIT_AGAIN_SECONDS = 4.0
_BUSY_SECONDS = 5.0

_log = logging.getLogger(__name__)


class StateMismatch(LbcError):
    """This copy is not, or would not be, what the leader has. It must be dropped and restored afresh."""


class Replica:
    """An open replica. All methods block; one thread at a time may `apply`, any thread may do the rest."""

    # Invariant: _checksum is that of the committed state, and _header its wal-index header, but that somebody may
    # have moved the WAL to the file since.

    def __init__(self, path: Path, clock: Clock, checksum: StateChecksum | None) -> None:
        """Use `open`."""
        self._path, self._clock = path, clock
        self._lock = threading.Lock()  # held while the WAL changes
        self._system_lock = threading.Lock()
        self._checkpoint_at = self._wait_at = clock.monotonic()
        self._closed = False
        self._applier = self._open_applier()
        try:
            self._files = Files(path)
            self.page_size: int = self._applier.execute("PRAGMA page_size").fetchone()[0]
            self._header = self._read_header()
            self._checksum = checksum or self._compute_checksum()
            self._system = self.connect()
        except BaseException:
            self._applier.close()
            raise

    @classmethod
    def open(cls, path: Path, *, clock: Clock, checksum: StateChecksum | None = None) -> Self:
        """Open the database file at `path`, which is in WAL mode. Nobody else in this process has it open.

        Reads all of it, unless its state checksum is known from `write_database`. Raises UnsuitableSqlite,
        OSError, sqlite3.Error (damaged, or not in WAL mode: drop it).
        """
        check_sqlite()
        return cls(path.absolute(), clock, checksum)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @property
    def database_pages(self) -> int:
        """The number of pages."""
        return self._checksum.database_pages

    @property
    def size_bytes(self) -> int:
        """The size of the database, without the WAL."""
        return self.database_pages * self.page_size

    @property
    def checksum(self) -> int:
        """The state checksum."""
        return self._checksum.value

    def checksum_after(self, wal: Wal) -> int:
        """What the state checksum will be after `wal`. Changes nothing."""
        return self._checksum.after(wal)

    def apply(self, wal: Wal, *, expected_checksum: int | None) -> None:
        """Make `wal` the newest state; all transactions that begin afterwards see it.

        Raises StateMismatch, before anything is touched, when the state would not be the expected one, or when
        somebody else has written here. When OSError or sqlite3.Error comes out, nobody sees anything of `wal`,
        readers go on, and the same call may be tried again.
        """
        with self._lock:
            found = self._checksum.after(wal)
            if expected_checksum is not None and found != expected_checksum:
                raise StateMismatch(
                    f"after this epoch {self._path.name} would have the state checksum {found:016x}, the leader "
                    f"has {expected_checksum:016x}"
                )
            self._transact(self._with_unwritten_pages(wal))
            self._checksum.advance(wal)
            self._checkpoint()

    def pages(self) -> PageSource:
        """The bytes of the database as of now; see there. To be closed soon."""
        connection = self.connect()
        files = self._files
        try:
            with self._lock:
                return PageSource(
                    connection, files.index, database=files.database, wal=files.wal, page_size=self.page_size
                )
        except BaseException:
            connection.close()
            raise

    def system(self) -> dict[str, Any]:
        """The system table `_lbc`. Raises sqlite3.Error if there is none."""
        with self._system_lock:
            return dict(self._system.execute("SELECT key, value FROM _lbc"))

    def connect(self) -> sqlite3.Connection:
        """A new connection that can only read. The caller closes it, on any thread."""
        return self.connect_as(ReplicaConnection)

    def connect_as(self, factory: type[C]) -> C:
        """The same, of a class that can hold attributes."""
        files = self._files
        # A URI, for mode=ro; every byte of the path that means something in one is escaped.
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self._path))}?mode=ro",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=factory,
        )
        try:
            connection.files = files  # type: ignore[attr-defined]
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            sqlite3.Connection.close(connection)
            raise
        return connection

    def close(self) -> None:
        """Close; connections handed out go on working until they are closed themselves."""
        with self._lock, self._system_lock:
            if not self._closed:
                self._closed = True
                self._system.close()
                self._applier.close()
                del self._files

    def _open_applier(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self._path))}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            if mode != "wal":
                raise sqlite3.DatabaseError(f"{self._path} is in journal mode {mode}, not wal")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            # It is a cache: after a crash of the machine, the state checksum tells whether it is still good.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes -wal and -shm
        except BaseException:
            connection.close()
            raise
        return connection

    def _read_header(self) -> WalIndexHeader:
        self._applier.execute("BEGIN IMMEDIATE")  # SQLite sees to it that the header is valid
        try:
            return self._files.index.header()
        finally:
            self._applier.execute("COMMIT")

    def _compute_checksum(self) -> StateChecksum:
        checksum = StateChecksum(self.page_size)
        with self.pages() as pages:
            for chunk in pages.chunks():
                checksum.feed(chunk)
        return checksum

    def _with_unwritten_pages(self, wal: Wal) -> Wal:
        """New pages without a frame are zeros; but the file may still hold something older at their place, from
        before it shrank. So they get their frames."""
        missing = self._checksum.unwritten(wal)
        if not missing:
            return wal
        pages = [(number, bytes(wal.page(index))) for index, number in enumerate(wal.page_numbers)]
        pages += ((number, bytes(wal.page_size)) for number in missing)
        raw = to_wal(pages, page_size=wal.page_size, database_pages=wal.database_pages, salt=wal.salt)
        return parse(raw)

    def _transact(self, wal: Wal) -> None:
        self._applier.execute("BEGIN IMMEDIATE")  # the WAL's write lock
        try:
            header = self._files.index.header()
            self._refuse_foreign_writes(header)
            self._header = self._append(wal, header)
        finally:
            # Never ROLLBACK: SQLite would take the new header for what its page cache is based on. To SQLite
            # nothing is changed by this connection, so COMMIT only unlocks, also after a failure.
            self._applier.execute("COMMIT")

    def _refuse_foreign_writes(self, header: WalIndexHeader) -> None:
        """Any checkpoint is fine; a commit that is not ours is not, nor one of ours that was broken off midway."""
        known = self._header
        if header != known and (header.frame_count or header.change != known.change):
            raise StateMismatch(f"somebody else has written to {self._path.name}")

    def _append(self, wal: Wal, header: WalIndexHeader) -> WalIndexHeader:
        """Write the frames, enter them into the wal-index, publish. What happened before `publish` is invisible,
        and overwritten by the next attempt."""
        count = header.frame_count
        if not count:  # an empty WAL: from its beginning, as it is
            content: bytes | bytearray = wal.raw
            offset = 0
            salt, big_endian, checksum = wal.salt, wal.big_endian, wal.checksum
        else:
            salt, big_endian = header.salt, header.big_endian
            content, checksum = rechain(wal, salt=salt, start=header.checksum, big_endian=big_endian)
            offset = HEADER_BYTES + count * (FRAME_HEADER_BYTES + wal.page_size)
        write_at(self._files.wal, content, offset)
        index = self._files.index
        index.add(count, wal.page_numbers)
        published = WalIndexHeader(
            change=header.change + 1 & 0xFFFFFFFF,
            big_endian=big_endian,
            page_size=wal.page_size,
            frame_count=count + wal.frames,
            database_pages=wal.database_pages,
            checksum=checksum,
            salt=salt,
        )
        index.publish(published)
        return published

    def _checkpoint(self) -> None:
        """Move the WAL to the file and empty it, when it is large and readers let us; they are never blocked."""
        frames, now = self._files.index.frame_count(), self._clock.monotonic()
        if frames < CHECKPOINT_FRAMES or now < self._checkpoint_at:
            return
        wait = frames >= WAIT_FRAMES and now >= self._wait_at
        try:
            self._applier.execute(f"PRAGMA busy_timeout = {_WAIT_MILLISECONDS if wait else 0}")
            busy, _, moved = self._applier.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:  # a full disk; the epoch itself is applied
            busy, moved = 1, 0
            _log.warning("cannot checkpoint %s at %d frames: %s", self._path.name, frames, error)
        finally:
            self._applier.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
        if busy:
            # Each try looks at all frames, and each wait delays the next epoch: neither for every small epoch.
            now = self._clock.monotonic()
            self._checkpoint_at = now + _RETRY_SECONDS
            if wait:
                self._wait_at = now + _WAIT_AGAIN_SECONDS
                _log.debug("a reader of %s keeps %d frames, %d are in the file", self._path.name, frames, moved)


def write_database(path: Path, chunks: Iterable[bytes], *, page_size: int) -> StateChecksum:
    """Write a new database file from chunks of whole pages, and compute its state checksum on the way.

    Nobody in this process has the file open. Raises OSError, FileExistsError too, and ValueError.
    """
    checksum = StateChecksum(page_size)
    with path.open("xb") as file:
        for chunk in chunks:
            checksum.feed(chunk)
            file.write(chunk)
    return checksum
