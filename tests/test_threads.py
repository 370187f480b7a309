"""What a cancelled caller has begun in a thread is carried through; threads Python does not know are waited for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from littlebigcluster.threads import in_thread


async def cancelled(work: Callable[[], str], go_on: threading.Event, *, undo: Callable[[str], None]) -> None:
    """Have it done while its caller is cancelled, twice; and let it go on after that."""
    task = asyncio.create_task(in_thread(work, undo=undo))
    try:
        for _ in range(2):
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
    finally:
        go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_waits_for_the_thread_and_what_it_made_is_undone() -> None:
    go_on, undone = threading.Event(), list[str]()

    def work() -> str:
        go_on.wait()
        return "made"

    await cancelled(work, go_on, undo=undone.append)
    assert undone == ["made"]


async def test_work_that_no_thread_has_begun_is_done_all_the_same() -> None:
    """Else what it was to close stays open: `asyncio.to_thread` takes it off the queue."""
    go_on, done = threading.Event(), list[str]()
    with ThreadPoolExecutor(1) as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        pool.submit(go_on.wait)
        await cancelled(lambda: done.append("closed") or "", go_on, undo=lambda _: None)
    assert done == ["closed"]


async def test_who_is_cancelled_stops_the_thread_again_and_again() -> None:
    """It may have been between two statements, which nothing ends."""
    begun, stopped = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        begun.set()
        assert all(stopped.acquire(timeout=30) for _ in range(3))

    task = asyncio.create_task(in_thread(work, stop=stopped.release))
    assert await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_interpreter_stays_while_a_thread_of_another_library_hands_over_a_result() -> None:
    """Such a thread is aborted with the whole process when it finds that the interpreter goes."""
    program = """
import _thread, time, littlebigcluster
begun = _thread.allocate_lock()
begun.acquire()
def hand_over():
    begun.release()
    time.sleep(0.3)
    print("handed over", flush=True)
_thread.start_new_thread(hand_over, ())
begun.acquire()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "handed over\n"
