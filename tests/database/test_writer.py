"""The leader's writer: order, batches, and what each waiter learns and when."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster.database.pending import Batch, Pending
from littlebigcluster.database.primary import Primary
from littlebigcluster.database.wal import parse
from littlebigcluster.database.writer import Writer
from littlebigcluster.errors import (
    Aborted,
    DeadlineExceeded,
    Fenced,
    NotAllowed,
    OutcomeUnknown,
    Overloaded,
)
from littlebigcluster.threads import Threads

MIB = 1 << 20
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE _lbc(key TEXT PRIMARY KEY, value ANY);
CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE);
"""
Make = Callable[..., Any]


class Image:
    def __init__(self, path: Path) -> None:
        db = sqlite3.connect(path)
        db.executescript(SCHEMA)
        db.close()
        self.data = path.read_bytes()

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    image = Image(tmp_path / "image.db")
    writers: list[Writer] = []

    async def make(name: str = "primary.db", **settings: Any) -> Writer:
        writer = Writer(lambda: Primary.create(tmp_path / name, image, max_epoch_bytes=2 * MIB), **settings)
        writers.append(writer)
        await writer.start()
        return writer

    yield make
    for writer in writers:
        await writer.close(timeout=60)


@pytest.fixture
async def writer(make: Make) -> Writer:
    writer: Writer = await make()
    return writer


def insert(value: object) -> Callable[[sqlite3.Connection], Any]:
    return lambda db: db.execute("INSERT INTO t(v) VALUES (?)", (value,)).lastrowid


def count(db: sqlite3.Connection) -> int:
    (found,) = db.execute("SELECT count(*) FROM t").fetchone()
    return int(found)


def stamp(epoch: int) -> Callable[[int], dict[str, Any]]:
    return lambda transactions: {"epoch": epoch}


async def started(*pendings: Pending[Any]) -> list[asyncio.Task[Any]]:
    """Somebody waits for each of them."""
    tasks = [asyncio.ensure_future(_wait_for(pending)) for pending in pendings]
    await asyncio.sleep(0)
    return tasks


async def taken(writer: Writer) -> None:
    """What was executed is taken as a batch, as if to send it."""
    await writer.close_batch(stamp(1))


async def _wait_for(pending: Pending[Any]) -> Any:
    return await pending


async def test_a_value_comes_out_when_its_batch_is_durable(writer: Writer) -> None:
    pending = writer.submit(insert("a"), timeout=60)
    (waiting,) = await started(pending)
    batch = await writer.close_batch(stamp(7))
    assert batch.raw is not None
    assert parse(batch.raw).raw == batch.raw
    assert (batch.transactions, batch.epoch) == (1, 7)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    batch.acknowledge(7)
    assert ((await waiting).value, (await waiting).epoch) == (1, 7)
    assert (await pending).value == 1  # as often as one likes


async def test_peek_does_not_wait_for_durability(writer: Writer) -> None:
    pending = writer.submit(insert("a"), timeout=60)
    assert await pending.peek() == 1
    assert await pending.peek() == 1
    assert not pending.settled
    failing = writer.submit(insert("a"), timeout=60)
    with pytest.raises(sqlite3.IntegrityError):
        await failing.peek()


async def test_errors_and_reads_are_held_back_like_values(writer: Writer) -> None:
    first = writer.submit(insert("a"), timeout=60)
    waiting = await started(first, writer.submit(insert("a"), timeout=60), writer.submit(count, timeout=60))
    batch = await writer.close_batch(stamp(1))
    await asyncio.sleep(0.02)
    assert not any(task.done() for task in waiting)
    assert batch.transactions == 1
    batch.acknowledge(1)
    with pytest.raises(sqlite3.IntegrityError):
        await waiting[1]
    assert (await waiting[2]).value == 1


async def test_a_batch_that_fails_fails_all_that_is_in_it(writer: Writer) -> None:
    waiting = await started(writer.submit(insert("a"), timeout=60), writer.submit(count, timeout=60))
    batch = await writer.close_batch(stamp(1))
    batch.fail(lambda: Fenced("another node leads"))
    for task in waiting:
        with pytest.raises(Fenced):
            await task


async def test_reads_alone_make_no_epoch(writer: Writer) -> None:
    pending = writer.submit(count, timeout=60)
    batch = await writer.close_batch(lambda transactions: pytest.fail("nothing to stamp"))
    assert batch.raw is None
    batch.acknowledge(3)
    assert (await pending).epoch == 3


async def test_the_next_batch_runs_while_one_is_on_its_way(writer: Writer) -> None:
    first = writer.submit(insert("a"), timeout=60)
    one = await writer.close_batch(stamp(1))
    second = writer.submit(count, timeout=60)
    assert await second.peek() == 1
    two = await writer.close_batch(stamp(2))
    one.acknowledge(1)
    two.acknowledge(1)
    assert ((await first).epoch, (await second).epoch) == (1, 1)


async def test_transactions_run_in_the_order_of_submission(writer: Writer) -> None:
    seen: list[int] = []
    for i in range(500):
        writer.submit(lambda db, i=i: seen.append(i), timeout=60)
    await writer.close_batch(stamp(1))
    assert seen == list(range(500))


async def test_work_wakes_the_one_who_waits_for_it(writer: Writer) -> None:
    waiting = asyncio.ensure_future(writer.work.wait())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    writer.submit(count, timeout=60)
    await waiting
    await writer.work.wait()  # still: executed, perhaps, but not taken
    await writer.close_batch(stamp(1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.work.wait(), 0.01)


async def test_a_batch_closes_early_when_it_grows_large(make: Make) -> None:
    writer = await make(batch_bytes=MIB, batch_seconds=60)
    pendings = [writer.submit(insert(bytes([i]) * 50_000), timeout=60) for i in range(200)]
    sizes = []
    for epoch in range(1, 100):
        batch: Batch = await writer.close_batch(stamp(epoch))
        assert batch.raw is not None
        sizes.append(len(batch.raw))
        batch.acknowledge(epoch)
        if pendings[-1].settled:
            break
    assert len(sizes) > 10
    assert max(sizes) < 2 * MIB
    assert [(await pending).value for pending in pendings] == list(range(1, 201))


async def test_a_writer_with_a_full_batch_waits_until_it_is_taken(make: Make) -> None:
    writer = await make(batch_bytes=MIB)
    pendings = [writer.submit(insert(bytes([i]) * 50_000), timeout=60) for i in range(200)]
    await pendings[5].peek()
    await asyncio.sleep(0.1)
    assert not pendings[-1]._executed


async def test_rewriting_the_same_pages_does_not_fill_a_batch(make: Make) -> None:
    writer = await make(batch_bytes=MIB)
    pendings = [writer.submit(insert(i), timeout=60) for i in range(1000)]  # 8 MB of frames, some pages
    assert await pendings[-1].peek() == 1000


async def test_a_batch_closes_early_after_a_time(make: Make) -> None:
    writer = await make(batch_seconds=0.05)
    begun = threading.Event()
    writer.submit(lambda db: begun.set(), timeout=60)
    for _ in range(500):
        writer.submit(lambda db: time.sleep(0.02), timeout=60)
    last = writer.submit(count, timeout=60)
    await asyncio.to_thread(begun.wait)
    batch = await writer.close_batch(stamp(1))
    assert 1 <= len(batch.pendings) < 500
    assert not last.settled


async def test_a_cancelled_close_loses_no_batch(writer: Writer) -> None:
    release = threading.Event()
    pending = writer.submit(lambda db: (release.wait(60), insert("a")(db)), timeout=60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.close_batch(stamp(1)), 0.01)
    release.set()
    batch = await writer.close_batch(stamp(1))
    assert batch.pendings == [pending]


async def test_cancelling_the_waiter_removes_what_has_not_begun(writer: Writer) -> None:
    begun, release = threading.Event(), threading.Event()
    blocking = writer.submit(lambda db: (begun.set(), release.wait(60)), timeout=60)
    waiting, kept = await started(blocking, queued := writer.submit(insert("x"), timeout=60))
    await asyncio.to_thread(begun.wait)
    kept.cancel()
    await asyncio.sleep(0)
    waiting.cancel()  # it runs already: it goes on
    release.set()
    with pytest.raises(Aborted, match="cancelled before it began"):
        await queued
    batch = await writer.close_batch(stamp(1))
    assert batch.pendings == [blocking]
    assert batch.raw is None
    batch.acknowledge(4)
    assert (await blocking).epoch == 4


async def test_cancelling_one_of_two_waiters_removes_nothing(writer: Writer) -> None:
    release = threading.Event()
    writer.submit(lambda db: release.wait(60), timeout=60)
    pending = writer.submit(count, timeout=60)
    one, _two = await started(pending, pending)
    one.cancel()
    await asyncio.sleep(0)
    assert not pending.settled
    release.set()
    assert await pending.peek() == 0


async def test_too_many_waiting_writes_are_refused(make: Make) -> None:
    writer = await make(max_queued_writes=3)
    begun, release = threading.Event(), threading.Event()
    writer.submit(lambda db: (begun.set(), release.wait(60)), timeout=60)
    await asyncio.to_thread(begun.wait)
    waiting = [writer.submit(count, timeout=60) for _ in range(2)]
    with pytest.raises(Overloaded, match="max_queued_writes"):
        writer.submit(count, timeout=60)
    assert waiting.pop().cancel()
    writer.submit(count, timeout=60)
    release.set()


async def test_too_many_bytes_of_waiting_writes_are_refused(make: Make) -> None:
    writer = await make(max_queued_bytes=1000)
    release = threading.Event()
    writer.submit(lambda db: release.wait(60), timeout=60, size_bytes=600)
    with pytest.raises(Overloaded, match="max_queued_bytes"):
        writer.submit(count, timeout=60, size_bytes=401)
    writer.submit(count, timeout=60, size_bytes=400)
    release.set()
    await taken(writer)
    alone = writer.submit(count, timeout=60, size_bytes=5000)  # or nothing of that size could ever be written
    with pytest.raises(Overloaded):
        writer.submit(count, timeout=60, size_bytes=1)
    await taken(writer)
    assert await alone.peek() == 0


async def test_executed_writes_count_until_they_are_taken_also_when_nobody_waits_for_them(make: Make) -> None:
    """While the store hangs, the thread goes on with transactions that change nothing; it holds them all."""
    writer = await make(max_queued_writes=3)
    for pending in [writer.submit(count, timeout=1) for _ in range(3)]:
        with pytest.raises(OutcomeUnknown):
            await pending
    with pytest.raises(Overloaded):
        writer.submit(count, timeout=60)
    await taken(writer)
    assert (await writer.submit(count, timeout=60).peek()) == 0


async def test_time_out_before_it_began(writer: Writer) -> None:
    release = threading.Event()
    writer.submit(lambda db: release.wait(60), timeout=60)
    queued = writer.submit(insert("late"), timeout=0.05)
    with pytest.raises(DeadlineExceeded, match="not written"):
        await queued
    release.set()
    counted = writer.submit(count, timeout=60)
    assert await counted.peek() == 0


async def test_time_out_before_it_was_durable(writer: Writer) -> None:
    pending = writer.submit(insert("a"), timeout=1)
    batch = await writer.close_batch(stamp(9))
    with pytest.raises(OutcomeUnknown) as caught:
        await pending
    assert caught.value.epoch == 9
    batch.acknowledge(9)
    with pytest.raises(OutcomeUnknown):  # what was said is said
        await pending


async def test_a_stuck_function_breaks_the_writer_and_only_it(make: Make, tmp_path: Path) -> None:
    writer = await make("stuck.db", transaction_timeout=1, grace=0.1)
    sent = writer.submit(insert("sent"), timeout=60)
    batch = await writer.close_batch(stamp(1))
    executed = writer.submit(insert("executed"), timeout=60)
    release = threading.Event()
    stuck = writer.submit(lambda db: (release.wait(60), insert("stuck")(db)), timeout=60)
    queued = writer.submit(insert("queued"), timeout=60)
    assert "did not return" in await asyncio.wait_for(asyncio.shield(writer.broken), 60)
    for pending in (executed, stuck, queued):
        with pytest.raises(Aborted, match="not written"):
            await pending
    with pytest.raises(Aborted):
        await writer.close_batch(stamp(2))
    with pytest.raises(Aborted):
        writer.submit(count, timeout=1)
    batch.acknowledge(1)  # what was handed over before is in other hands
    assert (await sent).epoch == 1

    replacement = await make("new.db")
    assert await replacement.submit(insert("fresh"), timeout=60).peek() == 1
    assert not await writer.close(timeout=0.05)
    release.set()
    assert await writer.close(timeout=60)
    assert not list(tmp_path.glob("stuck.db*"))
    assert await replacement.submit(count, timeout=60).peek() == 1


async def test_a_broken_primary_breaks_the_writer(writer: Writer) -> None:
    def hostile(db: sqlite3.Connection) -> None:
        insert("b")(db)
        assert writer._primary is not None
        writer._primary._run("COMMIT")

    executed = writer.submit(insert("a"), timeout=60)
    breaking = writer.submit(hostile, timeout=60)
    await asyncio.wait_for(asyncio.shield(writer.broken), 60)
    for pending in (executed, breaking):
        with pytest.raises(Aborted):
            await pending


async def test_a_stamp_that_fails_breaks_the_writer(writer: Writer) -> None:
    pending = writer.submit(insert("a"), timeout=60)
    with pytest.raises(Aborted):
        await writer.close_batch(lambda transactions: {"epoch": object()})
    assert writer.broken.done()
    with pytest.raises(Aborted):
        await pending


async def test_stop_fails_what_was_not_handed_over(writer: Writer, tmp_path: Path) -> None:
    sent = writer.submit(insert("sent"), timeout=60)
    batch = await writer.close_batch(stamp(1))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    begun = threading.Event()
    running = writer.submit(lambda db: (begun.set(), db.execute(endless).close()), timeout=60)
    queued = writer.submit(insert("queued"), timeout=60)
    await asyncio.to_thread(begun.wait)
    writer.stop(lambda: Fenced("another node leads"))
    for pending in (running, queued):
        with pytest.raises(Fenced):
            await pending
    with pytest.raises(Fenced):
        writer.submit(count, timeout=1)
    batch.fail(lambda: OutcomeUnknown("?"))
    with pytest.raises(OutcomeUnknown):
        await sent
    assert await writer.close(timeout=60)  # the endless statement was ended
    assert not list(tmp_path.glob("primary.db*"))
    assert not writer.broken.done()


async def test_a_batch_that_arrives_after_the_stop_is_nobodys(writer: Writer) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    pending = writer.submit(insert("a"), timeout=60)
    closing = asyncio.ensure_future(writer.close_batch(stamp(1)))
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - the thread hands it over, but the event loop has no time to see it
    writer.stop(lambda: Fenced("another node leads"))
    for waiting in (closing, pending):
        with pytest.raises(Fenced):
            await waiting
    await writer.close(timeout=60)
    assert not unhandled


async def test_bad_arguments_are_refused_at_the_call(writer: Writer) -> None:
    async def coroutine(db: sqlite3.Connection) -> None: ...

    def generator(db: sqlite3.Connection) -> Iterator[int]:
        yield 1

    for wrong in (coroutine, generator, "SELECT 1", None):
        with pytest.raises(TypeError, match="plain function"):
            writer.submit(wrong, timeout=1)  # type: ignore[arg-type, type-var]


async def test_system_exit_ends_the_transaction_only(writer: Writer) -> None:
    def leaving(db: sqlite3.Connection) -> None:
        raise SystemExit

    with pytest.raises(RuntimeError, match="SystemExit"):
        await writer.submit(leaving, timeout=60).peek()
    with pytest.raises(NotAllowed):
        await writer.submit(lambda db: db.commit(), timeout=60).peek()
    assert await writer.submit(count, timeout=60).peek() == 0


async def test_vacuum_takes_its_place_in_the_queue(writer: Writer) -> None:
    writer.submit(insert(bytes(100_000)), timeout=60)
    writer.submit(lambda db: db.execute("DELETE FROM t").close(), timeout=60)
    vacuum = writer.vacuum(timeout=60)
    free = writer.submit(lambda db: db.execute("PRAGMA freelist_count").fetchone(), timeout=60)
    batch = await writer.close_batch(stamp(1))
    batch.acknowledge(1)
    assert (await vacuum).value is None
    assert (await free).value == (0,)


async def test_a_writer_without_a_primary_does_not_start(tmp_path: Path) -> None:
    def failing() -> Primary:
        raise OSError("no space")

    writer = Writer(failing)
    with pytest.raises(OSError, match="no space"):
        await writer.start()
    assert await writer.close(timeout=60)


async def test_a_thousand_tasks_each_get_their_own_result(writer: Writer) -> None:
    async def lead() -> None:
        for epoch in range(1, 1_000_000):
            await writer.work.wait()
            (await writer.close_batch(stamp(epoch))).acknowledge(epoch)

    async def work(number: int) -> None:
        for i in range(3):
            value = number * 10 + i
            done = await writer.submit(lambda db, value=value: (insert(value)(db), value)[1], timeout=60)
            assert done.value == value

    leading = asyncio.ensure_future(lead())
    await asyncio.gather(*(work(number) for number in range(1000)))
    leading.cancel()
    assert await writer.submit(count, timeout=60).peek() == 3000


async def test_what_was_removed_before_it_began_is_not_held_any_more(writer: Writer) -> None:
    release = threading.Event()
    first = writer.submit(lambda db: release.wait(60), timeout=60)

    class Large:
        def __call__(self, db: sqlite3.Connection) -> None:
            pytest.fail("it was cancelled")

    function = Large()
    held = weakref.ref(function)
    assert writer.submit(function, timeout=60).cancel()
    late = writer.submit(function, timeout=0.01)
    del function
    with pytest.raises(DeadlineExceeded):
        await late
    gc.collect()
    assert held() is None
    release.set()
    await writer.close_batch(stamp(1))
    assert first._executed


async def test_a_writer_whose_thread_cannot_be_had_is_no_one_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Threads, run: Callable[[], None], *, name: str) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Threads, "start", refuse)
    writer = Writer(lambda: Primary.create(tmp_path / "primary.db", Image(tmp_path / "image.db")))
    with pytest.raises(RuntimeError, match="new thread"):
        await writer.start()
    assert await writer.close(timeout=None)
