"""Reads: threads that serve awaited ones, and connections lent on one snapshot.

A lent connection is in autocommit mode. What holds its snapshot is a statement of ours, the pin, that has returned
its first row and is not read on: in SQLite all statements of a connection that run while another one is active see
the same snapshot. So a snapshot that has been held for too long can be let go by any thread: resetting a statement
waits for SQLite's mutex without the GIL, and calls back nothing. (A ROLLBACK would ask the authorizer, under the mutex
and in need of the GIL: with another thread in a statement of the same connection that is a deadlock.)
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.database.connections import SnapshotConnection
from littlebigcluster.database.guards import read_guard
from littlebigcluster.errors import DeadlineExceeded, LbcError, NotAllowed, Overloaded, SnapshotExpired
from littlebigcluster.threads import THREADS, in_thread

T = TypeVar("T")

_PIN = "SELECT 0 UNION ALL SELECT rowid FROM sqlite_schema"
_PROGRESS_STEPS = 1000  # steps of SQLite's machine, some 20 us, between two looks whether to stop
_END_SECONDS = 0.1  # so long a statement that is to end may take to do so
MAX_WAITING = 10_000
"""So many awaited reads may wait for a thread."""

_CLOSED = "the readers are closed: the node has stopped"


class Connect(Protocol):
    """Opens a connection that can only read, in autocommit mode, for all threads; such as `Replica.connect_as`."""

    def __call__(self, factory: type[SnapshotConnection]) -> SnapshotConnection: ...


class _Use:
    """What a connection is used for at the moment. Any thread may set `stop`: it ends running statements."""

    __slots__ = ("ends_at", "expired_at", "stop")

    def __init__(self, ends_at: float = float("inf")) -> None:
        self.stop: Exception | None = None
        self.ends_at = ends_at
        self.expired_at: float | None = None
        """When it was told to end for its age."""


_IDLE = _Use()


class _Job(_Use):
    """An awaited read, for one of the threads."""

    __slots__ = ("_future", "_loop", "work")

    def __init__(self, work: Callable[[_Reader], Any], future: asyncio.Future[Any]) -> None:
        super().__init__()
        self.work = work
        self._future = future
        self._loop = future.get_loop()

    def expire(self, timeout: float) -> None:
        """On the event loop: do not wait for the thread, which may be busy with others."""
        error = DeadlineExceeded(f"the read took longer than its time-out of {timeout:g} s and was ended")
        self.stop = error
        self._set(None, error)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """In the thread."""
        with contextlib.suppress(RuntimeError):  # the event loop may be closed, with nobody left to tell
            self._loop.call_soon_threadsafe(self._set, value, error)

    def _set(self, value: Any, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(value)


_Inbox = SimpleQueue[_Job | None]


class _Reader:
    """One connection. One thread uses it, another one may `expire` what it does."""

    def __init__(self, connect: Connect) -> None:
        self.connection = connect(SnapshotConnection)
        self._guard = read_guard()
        self._guard.install(self.connection)
        self._lock = threading.Lock()
        self._pin: sqlite3.Cursor | None = None
        self.use = _IDLE
        sqlite3.Connection.set_progress_handler(self.connection, self._progress, _PROGRESS_STEPS)

    def query(self, sql: str, parameters: Any, row_factory: Any) -> list[Any]:
        """A single statement, which needs no pin."""
        cursor = sqlite3.Cursor(self.connection)
        cursor.row_factory = row_factory
        try:
            return cursor.execute(sql, parameters).fetchall()
        finally:
            cursor.close()

    def pin(self) -> SnapshotConnection:
        """Hold the newest snapshot from here on, for all statements."""
        self._guard.reason = None
        self.connection.over = None
        self._pin = sqlite3.Cursor(self.connection).execute(_PIN)
        if self.use.stop is not None:  # `expire` may have come before there was a pin
            self.connection.over = self.use.stop
        return self.connection

    def release(self) -> None:
        """Let the snapshot go."""
        if self._pin is None:
            self.use = _IDLE
            return
        with self._lock:
            self.use = _IDLE
            self.connection.over = NotAllowed("the connection was given back at the end of its `with` block")
            self.connection.take_back()
            self._pin.close()
            self._pin = None

    def expire(self, use: _Use, error: Exception) -> None:
        """In any thread: end the statements of `use`, if it is not over, and let no new ones begin."""
        with self._lock:
            if use is _IDLE or use is not self.use:
                return
            use.stop = use.stop or error
            if self._pin is not None:
                self.connection.over = use.stop
                # For statements that have returned a row: the next step of them ends, and lets go of the snapshot.
                self.connection.interrupt()

    def let_go(self, use: _Use) -> None:
        """In any thread, some time after `expire`: let the snapshot go, if that was not done yet.

        Not at once: `sqlite3` asks for the error of a statement that has ended as the last one of the connection,
        and takes it for a success when another thread has reset the pin in between.
        """
        with self._lock:
            if use is self.use and self._pin is not None:
                self._pin.close()

    def translate(self, error: BaseException) -> BaseException:
        """What to raise for what has been raised."""
        if self.use.stop is not None:
            return self.use.stop
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY:
            return NotAllowed("a read cannot write; use a transaction, on the leader")
        return self._guard.translate(error)

    def close(self) -> None:
        sqlite3.Connection.close(self.connection)

    def _progress(self) -> bool:
        return self.use.stop is not None


class Lease:
    """`with` gives a connection on one snapshot. Raises SnapshotExpired at its end when it was held for too long."""

    __slots__ = ("_reader", "_readers")

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    def __enter__(self) -> sqlite3.Connection:
        self._reader = self._readers._borrow()
        try:
            return self._reader.pin()
        except BaseException:
            self._readers._give_back(self._reader)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        reader = self._reader
        stop = reader.use.stop
        raised = reader.translate(error) if isinstance(error, (sqlite3.Error, LbcError)) else stop or error
        self._readers._give_back(reader)
        if raised is not None and raised is not error:
            raised.__suppress_context__ = False
            raise raised from error


class Readers:
    """All reads of a node. Each sees the newest state that was applied when it began, or a newer one."""

    def __init__(
        self, connect: Connect, *, threads: int = 4, max_read_age: float = 60.0, clock: Clock | None = None
    ) -> None:
        """Raises sqlite3.Error when no connection can be opened."""
        self._connect = connect
        self._max_age = max_read_age
        self._clock = clock or Clock()
        self._threads = THREADS.get()
        self._closed = self._threads.event()
        self._hand_over = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._resting: list[_Inbox] = []
        """Of the threads that have nothing to do: the last one to rest is the first to work, its caches are warm."""
        # Invariant, under `_hand_over`: while a thread rests, nothing waits.
        self._idle: list[_Reader] = []
        self._lent: dict[_Reader, None] = {}
        self._serving = [_Reader(connect) for _ in range(threads)]
        for number, reader in enumerate(self._serving):
            self._threads.start(partial(self._serve, reader), name=f"lbc-reader-{number}")
        self._threads.start(self._reap, name="lbc-reader-ages")

    async def read(
        self,
        sql: str,
        parameters: Any = (),
        *,
        timeout: float,
        row_factory: Callable[[sqlite3.Cursor, tuple[Any, ...]], Any] | None = None,
    ) -> list[Any]:
        """The rows of one statement, tuples if there is no `row_factory`.

        Cancelling ends the statement. Raises DeadlineExceeded, SnapshotExpired, NotAllowed, Overloaded, sqlite3.Error.
        """
        rows: list[Any] = await self._submit(lambda reader: reader.query(sql, parameters, row_factory), timeout)
        return rows

    async def run(self, function: Callable[[sqlite3.Connection], T], *, timeout: float) -> T:
        """What `function` returns, called in a thread with a connection on one snapshot.

        When cancelled or late, its statements end. Raises what it raises, and as `read` does.
        """
        result: T = await self._submit(lambda reader: function(reader.pin()), timeout)
        return result

    def lease(self) -> Lease:
        """A connection on one snapshot for `with`, in any thread; to be used by one thread at a time.

        The block raises SnapshotExpired when it holds the connection longer than `max_read_age`, and LbcError
        after `close`."""
        return Lease(self)

    async def close(self, *, timeout: float) -> bool:
        """End all reads, and close the connections; False if one is still held after `timeout` seconds."""
        with self._hand_over:
            self._closed.set()
            while self._resting:
                self._resting.pop().put(None)
        held = [(reader, reader.use) for reader in [*self._serving, *self._lent]]
        for reader, use in held:
            reader.expire(use, SnapshotExpired(_CLOSED))
        self._close_idle()
        deadline = self._clock.monotonic() + timeout
        while self._serving or self._lent:
            if self._clock.monotonic() > deadline:
                for reader, use in held:
                    await in_thread(reader.let_go, use)
                return False
            await asyncio.sleep(0.005)
        return True

    async def _submit(self, work: Callable[[_Reader], Any], timeout: float) -> Any:
        if self._closed.is_set():
            raise LbcError(_CLOSED)
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future())
        timer = loop.call_later(timeout, job.expire, timeout)
        with self._hand_over:
            if self._resting:
                self._resting.pop().put(job)
            elif len(self._waiting) < MAX_WAITING:
                self._waiting.append(job)
            else:
                timer.cancel()
                raise Overloaded(f"{MAX_WAITING} reads are waiting for a thread already; try again a little later")
        try:
            return await job._future
        except asyncio.CancelledError as error:
            job.stop = DeadlineExceeded(f"cancelled {error}")
            raise
        finally:
            timer.cancel()

    def _next(self, inbox: _Inbox) -> _Job | None:
        """What a thread does next; None at the end."""
        with self._hand_over:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed.is_set():
                return None
            self._resting.append(inbox)
        return inbox.get()

    def _serve(self, reader: _Reader) -> None:
        inbox: _Inbox = self._threads.queue()
        while (job := self._next(inbox)) is not None:
            if job.stop is not None:
                continue
            job.ends_at = self._clock.monotonic() + self._max_age
            reader.use = job
            value: Any = None
            error: BaseException | None = None
            if self._closed.is_set():
                error = SnapshotExpired(_CLOSED)
            else:
                try:
                    if reader.connection.altered:
                        reader = self._replace(reader)
                    value = job.work(reader)
                    error = job.stop
                except BaseException as raised:
                    error = reader.translate(raised)
            reader.release()
            job.finish(value, error)
        reader.close()
        self._serving.remove(reader)

    def _replace(self, reader: _Reader) -> _Reader:
        """The same with a connection on which nobody has defined functions or the like."""
        fresh = _Reader(self._connect)
        fresh.use = reader.use
        self._serving.append(fresh)  # before the other one goes: `close` waits for those it finds here
        self._serving.remove(reader)
        reader.close()
        return fresh

    def _borrow(self) -> _Reader:
        try:
            reader = self._idle.pop()  # the last one used: its statements are still prepared
        except IndexError:
            reader = self._connected()
        reader.use = _Use(self._clock.monotonic() + self._max_age)
        self._lent[reader] = None
        if self._closed.is_set():  # since: `close` may not have found it
            self._give_back(reader)
            raise LbcError(_CLOSED)
        return reader

    def _connected(self) -> _Reader:
        try:
            if not self._closed.is_set():
                return _Reader(self._connect)
        except Exception:
            if not self._closed.is_set():
                raise
        raise LbcError(_CLOSED) from None  # maybe since it has begun, and the replica is closed by now

    def _give_back(self, reader: _Reader) -> None:
        reader.release()
        if reader.connection.altered:
            reader.close()
        else:
            self._idle.append(reader)
            if self._closed.is_set():  # looked at last: `close` may have emptied the list before
                self._close_idle()
        self._lent.pop(reader, None)

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):  # any thread may do this at the same time
            while True:
                self._idle.pop().close()

    def _reap(self) -> None:
        """End reads that are too old: they keep the WAL growing."""
        while not self._closed.wait(min(1.0, self._max_age / 10)):
            now = self._clock.monotonic()
            for reader in [*self._serving, *self._lent]:
                use = reader.use
                if use.ends_at >= now:
                    continue
                # Not by its age: this thread may look late, and a snapshot that is let go unannounced is a lie.
                if use.expired_at is None:
                    use.expired_at = now
                    age = f"the read held its snapshot for more than {self._max_age:g} s (max_read_age) and was ended"
                    reader.expire(use, SnapshotExpired(age))
                elif use.expired_at + _END_SECONDS < now:
                    reader.let_go(use)
