"""What a thread does behind the event loop: in order, a bounded distance behind, and at rest when that has ended."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest
from tests.scenarios.stage import eventually

from littlebigcluster.epochs.lane import Lane


async def test_calls_are_carried_out_in_order_in_one_thread() -> None:
    done, threads = list[int](), set[str]()

    def call(number: int) -> None:
        done.append(number)
        threads.add(threading.current_thread().name)

    async with Lane(name="lane", ahead=2) as lane:
        for number in range(20):
            await lane.put(partial(call, number))
        await lane.drain()
    assert done == list(range(20))
    assert threads == {"lane_0"}


async def test_nobody_is_further_ahead_than_allowed() -> None:
    go = threading.Event()
    try:
        async with Lane(name="lane", ahead=2) as lane:
            for _ in range(2):
                await lane.put(lambda: go.wait(20))
            third = asyncio.create_task(lane.put(lambda: None))
            await asyncio.sleep(0.01)
            assert not third.done()
            go.set()
            await third
            await lane.drain()
    finally:
        go.set()


async def test_what_a_call_raises_comes_out_and_nothing_runs_after_it() -> None:
    go, ran = threading.Event(), list[int]()

    def fail() -> None:
        go.wait(20)
        raise OSError(28, "No space left on device")

    async with Lane(name="lane", ahead=3) as lane:
        await lane.put(fail)
        await lane.put(partial(ran.append, 1))
        go.set()
        with pytest.raises(OSError, match="No space left"):
            await lane.drain()
    assert ran == []


@pytest.mark.parametrize("how", ["cancelled", "broken"])
async def test_the_end_waits_for_what_runs_and_leaves_out_what_has_not_begun(how: str) -> None:
    entered, go, ran = threading.Event(), threading.Event(), list[int]()

    def slow() -> None:
        entered.set()
        go.wait(20)
        ran.append(0)

    async def work() -> None:
        async with Lane(name="lane-to-end", ahead=3) as lane:
            await lane.put(slow)
            await lane.put(partial(ran.append, 1))
            await asyncio.to_thread(entered.wait, 20)
            if how == "broken":
                raise ValueError
            await lane.drain()

    task = asyncio.create_task(work())
    await asyncio.to_thread(entered.wait, 20)
    task.cancel() if how == "cancelled" else None
    await asyncio.sleep(0.05)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else ValueError):
        await task
    assert ran == [0]
    await eventually(lambda: not any(each.name.startswith("lane-to-end") for each in threading.enumerate()))


async def test_who_is_cancelled_while_an_error_is_on_its_way_out_is_cancelled() -> None:
    """Else the error is handled, tried again perhaps, and whoever has cancelled waits for ever."""
    entered, go = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        go.wait(20)

    async def work() -> None:
        async with Lane(name="lane", ahead=2) as lane:
            await lane.put(slow)
            await asyncio.to_thread(entered.wait, 20)
            ending.set()
            raise OSError(28, "No space left on device")

    ending = asyncio.Event()
    task = asyncio.create_task(work())
    await ending.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
