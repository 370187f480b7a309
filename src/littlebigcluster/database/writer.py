"""The leader's writer: one thread that runs transactions in order, while earlier epochs are on their way.

The event loop submits, and asks for a batch when it can send one; the thread runs what was submitted and hands over
what has changed. All outcomes are given out on the event loop, a whole batch at a time: a value or an exception
may depend on any transaction before it, so it comes out only when all of them are durable.

Nothing is locked. Who takes a transaction out of `_queued`, which is atomic, may begin it, or fail it as not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.database.pending import Batch, Done, ErrorFactory, Pending
from littlebigcluster.database.primary import Primary, PrimaryBroken, Transaction
from littlebigcluster.errors import Aborted, DeadlineExceeded, OutcomeUnknown, Overloaded
from littlebigcluster.threads import THREADS

__all__ = ["Batch", "Done", "Pending", "Writer"]

T = TypeVar("T")
Stamp = Callable[[int], dict[str, Any]]

REMEMBER_SECONDS = 600.0
"""The answer of a write with a key is kept at least so long, by the clock of one leadership."""

_TICK_SECONDS = 0.1
_GENERATORS = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
_UNSQUASHED_FACTOR = 8

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Closing:
    """A request for a batch, in order with the transactions."""

    after: int  # so many submitted transactions were before it
    deadline: float
    stamp: Stamp
    always: bool


class Writer:
    """Owner of the thread. All methods are for one event loop, and none blocks it."""

    # Invariant: _untaken = submitted - removed - handed over in batches; those that have timed out meanwhile count on,
    # because the thread holds them on. It is at most `max_queued_writes`, and `_untaken_bytes` is what they hold.

    def __init__(
        self,
        make_primary: Callable[[], Primary],
        *,
        clock: Clock | None = None,
        transaction_timeout: float = 10.0,
        grace: float = 5.0,
        max_queued_writes: int = 20_000,
        max_queued_bytes: int = 256 << 20,
        batch_bytes: int = 32 << 20,
        batch_seconds: float = 0.05,
    ) -> None:
        """`make_primary` is called in the thread. A batch is closed early at about `batch_bytes`, or when it takes
        longer than `batch_seconds` to run what was submitted before it. A function that does not come back within
        `transaction_timeout` and `grace` breaks the writer."""
        self._make_primary = make_primary
        self._clock = clock or Clock()
        self._transaction_timeout = transaction_timeout
        self._grace = grace
        self._max_queued, self._max_queued_bytes = max_queued_writes, max_queued_bytes
        self._batch_bytes = batch_bytes
        self._batch_seconds = batch_seconds
        self._threads = THREADS.get()
        self._queue: SimpleQueue[Pending[Any] | None] = self._threads.queue()
        self._closings: SimpleQueue[_Closing | None] = self._threads.queue()
        self._queued: dict[Pending[Any], bool] = {}
        self._open: dict[Pending[Any], None] = {}  # not settled
        self._submitted = self._untaken = self._untaken_bytes = 0
        self._next_deadline = float("inf")
        self.work = asyncio.Event()
        """Set while something is queued, or executed and not handed over in a batch."""
        self._closing: asyncio.Future[Batch] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped_by: ErrorFactory | None = None
        self._primary: Primary | None = None
        self._busy_until: float | None = None
        self._check_size_at = batch_bytes
        self._forget_at = self._clock.monotonic() + REMEMBER_SECONDS

    @property
    def stopped(self) -> bool:
        """Whether it takes nothing any more."""
        return self._stopped_by is not None

    async def start(self) -> None:
        """Make the primary. Raises what that raises."""
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.broken: asyncio.Future[str] = self._loop.create_future()
        """Done, with the reason, when this writer is of no use any more. What was not handed over in a batch is
        lost then, and has failed with `Aborted`; make another writer, with a new primary."""
        # A daemon: a function that never returns must not keep the process from ending.
        try:
            self._threads.start(self._run, name="lbc-writer")
        except BaseException:
            self._ended.set_result(None)
            raise
        await self._started

    def submit(
        self, function: Transaction[T], *, timeout: float, key: str | None = None, size_bytes: int = 0
    ) -> Pending[T]:
        """Queue a transaction, to be durable within `timeout` seconds; with a `key` it is done once. `size_bytes` is
        what it holds in memory, as far as that is known.

        Raises TypeError, Overloaded when too much is waiting, and what the writer was stopped with.
        """
        given: object = function
        code = getattr(given, "__code__", None)
        if not callable(given) or (code is not None and code.co_flags & _GENERATORS):
            raise TypeError(f"a transaction is a plain function (no `async`, no `yield`), not {function!r}")
        return self._submit(function, timeout, key, size_bytes)

    def vacuum(self, *, timeout: float) -> Pending[None]:
        """Queue SQLite's VACUUM, which no transaction can do. Raises like `submit`."""
        return self._submit(None, timeout)

    async def close_batch(self, stamp: Stamp, *, always: bool = False) -> Batch:
        """All that was submitted before this call, executed; or less, if that is too much.

        If something has changed, or `always`, the rows that `stamp`, called in the thread with the number of
        transactions, gives are written to the system table with it. When cancelled, the next call returns the
        same batch.
        Raises what the writer was stopped with.
        """
        if self._stopped_by is not None:
            raise self._stopped_by()
        if self._closing is None:
            self._closing = self._loop.create_future()
            deadline = self._clock.monotonic() + self._batch_seconds
            self._closings.put(_Closing(self._submitted, deadline, stamp, always))
            self._queue.put(None)
        batch = await asyncio.shield(self._closing)
        self._closing = None
        return batch

    def stop(self, error_factory: ErrorFactory) -> None:
        """Fail all that was not handed over in a batch, each with an error of its own, and end the thread."""
        if self._stopped_by is not None:
            return
        self._stopped_by = error_factory
        if self._primary is not None:
            self._primary.abort(error_factory())
        self._queue.put(None)
        self._closings.put(None)
        self._queued.clear()
        untaken = [pending for pending in self._open if pending._batch is None]
        for pending in untaken:
            pending._settle(failure=error_factory())
        self._settled(untaken)
        if self._closing is not None and not self._closing.done():
            self._closing.set_exception(error_factory())
            self._closing.exception()  # whoever waited may be gone

    async def close(self, *, timeout: float | None) -> bool:
        """Stop, if that was not done, and wait for the thread; False if it is stuck, and left to itself."""
        self.stop(lambda: Aborted("the writer was closed before this was sent; it is not written"))
        assert self._stopped_by is not None
        if self._closing is not None and self._closing.exception() is None:
            self._closing.result().fail(self._stopped_by)  # whoever asked for this batch did not stay to get it
        done, _ = await asyncio.wait((self._ended,), timeout=timeout)
        return bool(done)

    # What follows runs on the event loop.

    def _submit(
        self, function: Transaction[T] | None, timeout: float, key: str | None = None, size_bytes: int = 0
    ) -> Pending[T]:
        if self._stopped_by is not None:
            raise self._stopped_by()
        self._check_room(size_bytes)
        pending = Pending(self, function, self._clock.monotonic() + timeout, key, size_bytes)
        self._open[pending] = None
        self._queued[pending] = True
        self._queue.put(pending)
        self._submitted += 1
        self._untaken += 1
        self._untaken_bytes += size_bytes
        self._next_deadline = min(self._next_deadline, pending._deadline)
        self.work.set()
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        return pending

    def _check_room(self, size_bytes: int) -> None:
        if self._untaken >= self._max_queued:
            full = f"{self._untaken} writes are waiting on the leader already (max_queued_writes)"
        elif self._untaken and self._untaken_bytes + size_bytes > self._max_queued_bytes:
            full = f"{self._untaken_bytes} bytes of writes are waiting on the leader already (max_queued_bytes)"
        else:
            return
        raise Overloaded(f"{full}; this one was not taken, and is not written. Try again a little later, or write less")

    def _remove(self, pending: Pending[Any], failure: Exception | None = None) -> bool:
        if self._queued.pop(pending, None) is None:
            return False
        pending._settle(failure=failure or Aborted("the transaction was cancelled before it began; it is not written"))
        self._open.pop(pending, None)
        self._taken([pending])
        pending._function = None  # the queue holds the rest of it until the thread comes by
        return True

    def _settled(self, pendings: list[Pending[Any]]) -> None:
        for pending in pendings:
            self._open.pop(pending, None)

    def _taken(self, pendings: list[Pending[Any]]) -> None:
        self._untaken -= len(pendings)
        self._untaken_bytes -= sum(pending._size_bytes for pending in pendings)
        if not self._untaken:
            self.work.clear()

    def _tick(self) -> None:
        """One coarse timer for all time-outs, while somebody waits."""
        now = self._clock.monotonic()
        busy_until = self._busy_until
        if busy_until is not None and now > busy_until + self._grace:
            self._break(
                "a transaction function did not return in time (transaction_timeout), and holds up all others;"
                " it must not sleep, wait or do long work of its own"
            )
        if now >= self._next_deadline:
            self._expire(now)
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick) if self._open else None

    def _expire(self, now: float) -> None:
        for pending in [pending for pending in self._open if pending._deadline <= now]:
            late = DeadlineExceeded("the transaction did not begin in time (write_timeout); it is not written")
            if not self._remove(pending, late):
                epoch = pending._batch.epoch if pending._batch is not None else None
                unknown = "the transaction was not durable in time (write_timeout); it may become so later"
                pending._settle(failure=OutcomeUnknown(unknown, epoch=epoch))
                del self._open[pending]
        self._next_deadline = min((pending._deadline for pending in self._open), default=float("inf"))

    def _break(self, reason: str) -> None:
        if self._stopped_by is None:
            _log.warning("the writer is broken and will be replaced: %s", reason)
            self.stop(lambda: Aborted(f"the transaction was lost before it was sent, and is not written: {reason}"))
            self.broken.set_result(reason)

    def _deliver(self, batch: Batch) -> None:
        if self._stopped_by is not None:
            return  # all that is in it has failed already
        assert self._closing is not None
        for pending in batch.pendings:
            pending._batch = batch
        self._taken(batch.pendings)
        self._closing.set_result(batch)

    # What follows runs in the thread.

    def _post(self, callback: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop may be closed, with nobody left to tell
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _run(self) -> None:
        try:
            primary = self._make_primary()
        except BaseException as error:
            self._post(_set_exception, self._started, error)
            self._post(_set_result, self._ended)
            return
        try:
            self._primary = primary
            self._post(_set_result, self._started)
            self._serve(primary)
        except PrimaryBroken as error:
            self._post(self._break, str(error))
        except BaseException as error:
            _log.exception("the writer's thread failed")
            self._post(self._break, repr(error))
        finally:
            # Also when it comes back late, long abandoned: the files are its own.
            with contextlib.suppress(Exception):
                primary.discard()
            self._post(_set_result, self._ended)

    def _serve(self, primary: Primary) -> None:
        begun = changed = 0
        executed: list[Pending[Any]] = []
        closing: _Closing | None = None
        while self._stopped_by is None:
            full = primary.pending_bytes >= self._check_size_at and self._is_full(primary)
            if closing is None and (full or not self._closings.empty()):
                closing = self._closings.get()  # when full, nothing is begun until somebody asks for a batch
                continue
            if closing is not None and (full or begun >= closing.after or self._clock.monotonic() >= closing.deadline):
                self._post(self._deliver, self._take(primary, closing, changed, executed))
                closing, changed, executed = None, 0, []
                continue
            pending = self._queue.get()
            if pending is None:
                continue
            begun += 1
            before = primary.pending_bytes
            if self._execute(primary, pending):
                executed.append(pending)
                changed += primary.pending_bytes != before
        closing = None

    def _is_full(self, primary: Primary) -> bool:
        # Many small transactions write the same pages over and over, and squash to little.
        size = primary.pending_bytes
        if size < _UNSQUASHED_FACTOR * self._batch_bytes and primary.squashed_bytes() < self._batch_bytes:
            self._check_size_at = size + self._batch_bytes // 2
            return False
        return True

    def _execute(self, primary: Primary, pending: Pending[Any]) -> bool:
        now = self._clock.monotonic()
        if pending._deadline <= now or self._queued.pop(pending, None) is None:
            return False  # the event loop fails it, or has done so
        try:
            if pending._function is None:
                primary.vacuum()
                pending._value = None
            else:
                self._busy_until = deadline = now + self._transaction_timeout
                pending._value = primary.transaction(pending._function, deadline=deadline, key=pending._key)
        except PrimaryBroken:
            raise
        except BaseException as error:
            pending._error = _deliverable(error)
        finally:
            self._busy_until = None
        pending._function = None
        pending._executed = True
        if pending._peeking:
            self._post(pending._wake_peeking)
        return True

    def _take(self, primary: Primary, closing: _Closing, changed: int, executed: list[Pending[Any]]) -> Batch:
        if not primary.pending_bytes and not closing.always:
            return Batch(None, 0, None, primary.min_sqlite_version, executed, self)
        if self._clock.monotonic() >= self._forget_at and any(pending._key for pending in executed):
            primary.forget_requests()
            self._forget_at = self._clock.monotonic() + REMEMBER_SECONDS
        rows = closing.stamp(changed)
        primary.system(**rows)
        self._check_size_at = self._batch_bytes
        return Batch(primary.take(), changed, rows.get("epoch"), primary.min_sqlite_version, executed, self)


def _deliverable(error: BaseException) -> BaseException:
    """SystemExit and the like must end nobody but the transaction."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):  # which no coroutine can raise
        return error
    replaced = RuntimeError(f"the transaction function raised {error!r}; it was rolled back")
    replaced.__cause__ = error
    return replaced


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _set_exception(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
