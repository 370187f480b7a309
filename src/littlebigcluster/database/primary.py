"""The leader's scratch copy of the database: transactions run here before they are durable.

Each transaction of a user is a real BEGIN IMMEDIATE ... COMMIT. (Savepoints in one big transaction would be faster,
but an interrupt, INSERT OR ROLLBACK, a deferred foreign key or a full disk in one of them would undo them all.) What
they have committed to the WAL is taken from time to time, as one transaction: that is an epoch.

Nothing here is ever undone: a leader that is fenced throws its primary away whole.
"""

from __future__ import annotations

import inspect
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Protocol, TypeVar

import numpy as np

from littlebigcluster.clock import Clock
from littlebigcluster.database.connections import TransactionConnection
from littlebigcluster.database.guards import REQUESTS, SYSTEM_PREFIX, check_names, write_guard
from littlebigcluster.database.versions import required_sqlite_version
from littlebigcluster.database.wal import FRAME_HEADER_BYTES, HEADER_BYTES, squash
from littlebigcluster.database.walindex import WalIndex
from littlebigcluster.errors import DeadlineExceeded, EpochTooLarge, NotAllowed

T = TypeVar("T")
Transaction = Callable[[sqlite3.Connection], T]

_CACHE_BYTES = 16 << 20
_PROGRESS_STEPS = 2000  # steps of SQLite's machine, some 30 us, between two looks at the limits


class PrimaryBroken(Exception):
    """The state of the primary cannot be trusted any more; throw it away and make a new one."""


class Pages(Protocol):
    """A consistent image of a database, such as `pages.PageSource`."""

    def chunks(self) -> Iterator[bytes]: ...


class Primary:
    """One database file with one connection, used by one thread, the one that has made it."""

    # Invariant outside of a transaction: _frames, the committed ones that are not taken, is what the wal-index says.

    def __init__(self, path: Path, *, clock: Clock, max_epoch_bytes: int, foreign_keys: bool) -> None:
        self.path = path
        self._clock = clock
        self._max_epoch_bytes = max_epoch_bytes
        self._token = clock.token().hex()
        self._guard = write_guard()
        self._deadline: float | None = None
        self._stopped_by: Exception | None = None
        self._aborted: Exception | None = None
        self._connection = sqlite3.connect(
            path, factory=TransactionConnection, isolation_level=None, cached_statements=256
        )
        self._cursor = sqlite3.Cursor(self._connection)
        self._descriptors = ExitStack()
        self.min_sqlite_version: str
        """The oldest SQLite that can read the schema, as it is or, after a rollback, as it might have been."""
        try:
            self._set_up(foreign_keys)
            self._index = WalIndex(path)
            self._descriptors.callback(self._index.close)
            self._wal = os.open(f"{path}-wal", os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
            self._descriptors.callback(os.close, self._wal)
            self._frames = self._index.frame_count()
            self._guard.install(self._connection)
            self._connection_progress(self._progress)
            row = self._run(f"SELECT value FROM {SYSTEM_PREFIX} WHERE key = 'request_generation'").fetchone()
            self._generation = row[0] if row else 0
            self._read_schema()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path,
        source: Pages,
        *,
        clock: Clock | None = None,
        max_epoch_bytes: int = 64 << 20,
        foreign_keys: bool = False,
    ) -> Primary:
        """Write the image to `path`, which nobody else uses, and open it. Raises OSError, sqlite3.Error."""
        _delete(path)
        try:
            with path.open("xb") as file:
                for chunk in source.chunks():
                    file.write(chunk)
            return cls(path, clock=clock or Clock(), max_epoch_bytes=max_epoch_bytes, foreign_keys=foreign_keys)
        except BaseException:
            _delete(path)  # each attempt on a full disk would leave one
            raise

    @property
    def pending_bytes(self) -> int:
        """Size of what is committed and not taken, before it is squashed."""
        return self._frames * self._frame_bytes

    def squashed_bytes(self) -> int:
        """Size of the epoch that `take` would give, at most."""
        return len(np.unique(self._index.page_numbers(self._frames))) * self._frame_bytes

    def transaction(self, function: Transaction[T], *, deadline: float | None = None, key: str | None = None) -> T:
        """Run `function` with the connection in a transaction of its own; commit and return what it returns.

        With a `key`, `function` returns a string; it is kept with the key, and returned without running `function`
        when the same key comes again.

        Rolls back and raises what the function raises, DeadlineExceeded when it runs past `deadline` (of the
        clock's `monotonic`), EpochTooLarge, NotAllowed, TypeError when it returns something to be awaited or a
        generator, sqlite3.Error when the COMMIT fails. PrimaryBroken: do not use this primary any more.
        """
        self._begin(deadline)
        try:
            value = function(self._connection) if key is None else self._once(key, function)
            self._check(value)
            self._connection.take_back()
            self._run("COMMIT")
        except BaseException as error:
            self._roll_back(error)
            raised = self._translate(error)
            if raised is error:
                raise
            raise raised from error
        finally:
            self._deadline = None
        self._frames = self._index.frame_count()
        return value

    def _once(self, key: str, function: Transaction[Any]) -> Any:
        self._connection.text_factory = str
        found = self._run(f"SELECT answer FROM {REQUESTS} WHERE key = ?", (key,)).fetchone()
        if found is not None:
            return found[0]
        value = function(self._connection)
        if self._connection.in_transaction and isinstance(value, str):
            self._run(f"INSERT INTO {REQUESTS} VALUES (?, ?, ?)", (key, value, self._generation))
        return value

    def forget_requests(self) -> None:
        """Begin a new generation of keys, and forget all but the one before. Raises PrimaryBroken."""
        self._generation += 1
        self.system(request_generation=self._generation)
        self._begin(None)
        try:
            self._run(f"DELETE FROM {REQUESTS} WHERE generation < ?", (self._generation - 1,))
            self._run("COMMIT")
        except sqlite3.Error as error:
            raise PrimaryBroken(f"old requests could not be forgotten: {error}") from error
        self._frames = self._index.frame_count()

    def system(self, **values: Any) -> None:
        """Set rows of the system table, in a transaction; None deletes a row. Raises PrimaryBroken."""
        self._begin(None)
        try:
            for key, value in values.items():
                if value is None:
                    self._run(f"DELETE FROM {SYSTEM_PREFIX} WHERE key = ?", (key,))
                else:
                    self._run(
                        f"INSERT INTO {SYSTEM_PREFIX}(key, value) VALUES (?, ?)"
                        " ON CONFLICT(key) DO UPDATE SET value = excluded.value",
                        (key, value),
                    )
            self._run("COMMIT")
        except sqlite3.Error as error:
            raise PrimaryBroken(f"the system table could not be written: {error}") from error
        self._frames = self._index.frame_count()

    def vacuum(self) -> None:
        """SQLite's VACUUM. Raises EpochTooLarge when the database is too large for an epoch, sqlite3.Error."""
        self._stopped_by = None
        size = self._run("PRAGMA page_count").fetchone()[0] * self._page_size
        if size > self._max_epoch_bytes:
            raise EpochTooLarge(
                f"VACUUM writes the whole database, {size} bytes; an epoch holds {self._max_epoch_bytes}."
                " Raise max_epoch_bytes for it, or free pages in steps with PRAGMA incremental_vacuum"
            )
        try:
            self._run("VACUUM")
        except sqlite3.Error as error:
            self._roll_back(error)
            raise
        self._frames = self._index.frame_count()

    def take(self) -> bytes | bytearray | None:
        """What was committed since the last time, as a WAL file with one transaction; None if there is nothing.

        Raises PrimaryBroken.
        """
        if self._index.frame_count() != self._frames:
            raise PrimaryBroken("something was committed outside of a transaction")
        if not self._frames:
            return None
        try:
            # Not the whole file: behind the committed frames there may be those of a rolled back transaction.
            raw = _read(self._wal, self._end)
            busy, _, _ = self._run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise PrimaryBroken(f"the primary's WAL could not be read or checkpointed: {error}") from error
        if busy:
            raise PrimaryBroken("a read that was left open keeps the primary's WAL from being checkpointed")
        self._frames = self._index.frame_count()
        return squash(raw)

    def abort(self, reason: Exception) -> None:
        """End the running transaction, if its statement runs or it gets to its end, and all later ones, with
        `reason`. May be called by any thread."""
        self._aborted = reason

    def close(self) -> None:
        """Close the connection. The files stay."""
        self._cursor.close()
        self._connection.take_back()
        sqlite3.Connection.close(self._connection)
        self._descriptors.close()

    def discard(self) -> None:
        """Close, and delete the files."""
        self.close()
        _delete(self.path)

    def _set_up(self, foreign_keys: bool) -> None:
        self._page_size: int = self._cursor.execute("PRAGMA page_size").fetchone()[0]
        self._frame_bytes: int = FRAME_HEADER_BYTES + self._page_size
        # What is not in the cache is in the WAL, where its size can be seen while the transaction still runs.
        cache = min(_CACHE_BYTES, max(self._max_epoch_bytes // 4, 64 << 10)) >> 10
        for pragma in (
            "journal_mode = WAL",
            "synchronous = OFF",
            "wal_autocheckpoint = 0",
            f"cache_size = -{cache}",
            f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        ):
            self._cursor.execute(f"PRAGMA {pragma}").fetchall()
        self._cursor.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # opens the WAL and its index

    def _connection_progress(self, handler: Callable[[], int]) -> None:
        sqlite3.Connection.set_progress_handler(self._connection, handler, _PROGRESS_STEPS)

    @property
    def _end(self) -> int:
        """Where the committed part of the WAL file ends."""
        return HEADER_BYTES + self.pending_bytes if self._frames else 0

    def _spilled(self) -> int:
        """So many bytes the open transaction has written to the WAL already, because the cache is full."""
        return os.fstat(self._wal).st_size - self._end

    def _run(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run a statement of our own. The token keeps users from running its cached form."""
        self._guard.system = True
        try:
            return self._cursor.execute(f"{statement} /* {self._token} */", parameters)
        finally:
            self._guard.system = False

    def _begin(self, deadline: float | None) -> None:
        if self._index.frame_count() != self._frames or self._connection.in_transaction:
            raise PrimaryBroken("something was written outside of a transaction")
        self._guard.reason = None
        self._guard.names_changed = False
        self._stopped_by = None
        self._deadline = deadline
        try:
            self._run("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise PrimaryBroken(f"no transaction can be begun: {error}") from error

    def _check(self, value: object) -> None:
        """All that must be true before COMMIT."""
        if self._index.frame_count() != self._frames:
            raise PrimaryBroken("the transaction was committed by its function, past all guards")
        if self._limit_reached():
            assert self._stopped_by is not None
            raise self._stopped_by
        self._connection.check()
        _check_value(value)
        if self._guard.names_changed:
            self._read_schema()

    def _read_schema(self) -> None:
        self._connection.text_factory = str
        rows = self._run("SELECT name, tbl_name, sql FROM sqlite_schema").fetchall()
        check_names([(name, table) for name, table, _ in rows])
        self.min_sqlite_version = required_sqlite_version(sql for _, _, sql in rows)

    def _progress(self) -> int:
        """Called by SQLite within long statements; not 0 interrupts them."""
        if self._guard.system:
            return 0
        return self._limit_reached()

    def _limit_reached(self) -> bool:
        if self._aborted is not None:
            self._stopped_by = self._aborted
        elif self._deadline is not None and self._clock.monotonic() > self._deadline:
            self._stopped_by = DeadlineExceeded("the transaction took too long; it was rolled back and is not written")
        elif self._spilled() > self._max_epoch_bytes:
            self._stopped_by = EpochTooLarge(
                f"the transaction changes more than max_epoch_bytes ({self._max_epoch_bytes}); it was rolled back."
                " Write in several smaller transactions"
            )
        return self._stopped_by is not None

    def _translate(self, error: BaseException) -> BaseException:
        if self._stopped_by is not None and isinstance(error, (sqlite3.OperationalError, NotAllowed)):
            return self._stopped_by
        return self._guard.translate(error)

    def _roll_back(self, error: BaseException) -> None:
        """Also where SQLite has done so already. Raises PrimaryBroken if what was committed is not what it was."""
        self._connection.take_back()
        try:
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            if self._spilled() > 0:
                # Else it would count for the next transaction. SQLite looks at the frames in its index only.
                os.ftruncate(self._wal, self._end)
        except (OSError, sqlite3.Error) as failed:
            raise PrimaryBroken(f"a transaction could not be rolled back: {failed}") from error
        if self._index.frame_count() != self._frames:
            raise PrimaryBroken("a transaction was committed that should be rolled back") from error


def _check_value(value: object) -> None:
    if inspect.isawaitable(value) or isinstance(value, (GeneratorType, AsyncGeneratorType)):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(
            f"the transaction function returned {value!r}, which has not run yet; it must be a plain function (no"
            " `async`, no `yield`) that does its work and returns"
        )


def _read(descriptor: int, size: int) -> bytearray:
    out = bytearray(size)
    view, done = memoryview(out), 0
    while done < size:
        count = os.preadv(descriptor, [view[done:]], done)
        if not count:
            raise OSError(f"the WAL ends at byte {done}, not at {size}")
        done += count
    return out


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
