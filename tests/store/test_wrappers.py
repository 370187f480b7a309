"""The stores around a store do what they say, or the tests that use them prove nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import (
    Counting,
    Created,
    Exists,
    Fault,
    Faulty,
    LogNormal,
    Slow,
    Store,
    Unknown,
    Wrapper,
    open_store,
)
from littlebigcluster.store.wrappers import Operation
from littlebigcluster.testing.loop import VirtualLoop

T = TypeVar("T")


@pytest.fixture
def memory(clock: Clock) -> Store:
    return open_store("memory://", clock=clock)


async def parts(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


@pytest.mark.parametrize("kind", [Wrapper, Counting, Slow, Faulty])
async def test_wrapper_changes_nothing_by_itself(memory: Store, kind: type[Wrapper]) -> None:
    store = kind(memory)
    assert isinstance(store, Store)
    assert store.url == memory.url
    assert await store.create("a", b"12345") == Created()
    assert await store.create("a", b"") == Exists()
    await store.put("b", b"2")
    await store.put_stream("c", parts(b"3", b"4"))
    assert (await store.get("a"), await store.get_range("a", 1, 2)) == (b"12345", b"23")
    assert [info.key for info in await store.list("", "a")] == ["b", "c"]
    await store.delete(iter(["a", "b"]))
    assert [(info.key, info.size_bytes) for info in await store.list("")] == [("c", 2)]
    await store.close()


async def test_requests_and_bytes_are_counted(memory: Store) -> None:
    store = Counting(memory)
    await store.create("a", b"12345")
    await store.put("b", b"67")
    await store.put_stream("c", parts(b"8", b"9"))
    await store.get("a")
    await store.get_range("a", 0, 2)
    await store.get("absent")
    assert store.requests == {"create": 1, "put": 1, "put_stream": 1, "get": 2, "get_range": 1}
    assert (store.written_bytes, store.read_bytes) == (9, 7)
    store.reset()
    assert (store.requests, store.written_bytes) == (Counter(), 0)


@pytest.mark.parametrize(
    ("fault", "outcome", "applied"),
    [
        (None, Created, True),
        (Fault.BEFORE, Unknown, False),
        (Fault.AFTER, Unknown, True),
        (Fault.DELAY, Created, True),
        (Fault.HANG, Unknown, False),
        (Fault.DUPLICATE, Exists, True),
        (Fault.CONFLICT, Exists, False),
    ],
)
async def test_scripted_fault_does_to_a_create_what_it_says(
    memory: Store, fault: Fault | None, outcome: type, applied: bool
) -> None:
    store = Faulty(memory, timeout_seconds=0.01, zombie_seconds=None)
    store.next("create", fault, key="k")
    assert await store.create("other", b"x") == Created(), "meant for another key"
    assert isinstance(await store.create("k", b"x"), outcome)
    assert (await memory.get("k") is not None) == applied
    assert store.zombies == (fault is Fault.HANG)
    await store.settle()
    assert (await memory.get("k") is not None) == (applied or fault is Fault.HANG)
    assert isinstance(await store.create("k2", b"x"), Created), "once only"


async def test_settling_ends_whenever_the_zombies_end(clock: Clock) -> None:
    """Also those that end in the very turn of the event loop in which it is asked for."""
    for turns in range(40):
        store = Faulty(open_store("memory://", clock=clock), timeout_seconds=0.0, zombie_seconds=(0.0, 0.0))
        store.next("create", Fault.HANG)
        await store.create("k", b"x")
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.settle()
        assert store.zombies == 0


class Dated(Wrapper):
    """Notes when it is asked."""

    asked_at = 0.0

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        self.asked_at = asyncio.get_running_loop().time()
        return await send()


async def test_zombie_takes_effect_by_itself(memory: Store) -> None:
    inner = Dated(memory)
    store = Faulty(inner, timeout_seconds=0.01, zombie_seconds=(0.5, 0.6))
    store.next("put", Fault.HANG)
    start = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await store.put("k", b"x")
    async with asyncio.timeout(60):
        while store.zombies:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await memory.get("k") == b"x"
    assert inner.asked_at - start >= 0.499


async def test_duplicated_put_repeats_itself_over_a_later_one(memory: Store) -> None:
    store = Faulty(memory, zombie_seconds=None)
    store.next("put", Fault.DUPLICATE)
    await store.put("k", b"old")
    await store.put("k", b"new")
    await store.settle()
    assert await memory.get("k") == b"old"


async def test_closing_drops_the_zombies(memory: Store) -> None:
    store = Faulty(memory, timeout_seconds=0.01, zombie_seconds=None)
    store.next("put_stream", Fault.HANG)
    with pytest.raises(StoreUnavailable):
        await store.put_stream("k", parts(b"x"))
    await store.close()
    assert store.zombies == 0
    assert await memory.get("k") is None


async def test_outage_fails_everything_until_it_ends(memory: Store) -> None:
    store = Faulty(memory, timeout_seconds=0.01, zombie_seconds=None)
    for hang in (False, True):
        store.outage(hang=hang)
        with pytest.raises(StoreUnavailable):
            await store.get("k")
        with pytest.raises(StoreUnavailable):
            await store.list("")
        assert isinstance(await store.create("k", b"x"), Unknown)
        assert store.zombies == 0, "nothing passes an outage, not even late"
        store.outage(False)
        assert await store.get("k") is None


async def test_same_seed_draws_the_same_faults(memory: Store) -> None:
    async def history(seed: int) -> list[Fault]:
        rates = {"create": {Fault.AFTER: 0.3, Fault.BEFORE: 0.3}, "*": {Fault.BEFORE: 0.2}}
        store = Faulty(memory, seed=seed, rates=rates)
        for number in range(100):
            await store.create(f"{seed} {number}", b"")
        return [fault for _, _, fault in store.faults]

    first = await history(1)
    assert first == await history(1)
    assert first != await history(2)
    assert 20 < first.count(Fault.AFTER) < 40
    assert 20 < first.count(Fault.BEFORE) < 40


async def test_rates_are_by_operation(memory: Store) -> None:
    store = Faulty(memory, rates={"get": {}, "*": {Fault.BEFORE: 1.0}})
    assert await store.get("k") is None
    with pytest.raises(StoreUnavailable):
        await store.put("k", b"")


def test_only_a_create_can_conflict(memory: Store) -> None:
    with pytest.raises(ValueError, match="only a create"):
        Faulty(memory).next("get", Fault.CONFLICT)


class Instant(Wrapper):
    """Notes when it is asked, and answers at once: by no thread, for which virtual time would not wait."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked_at: list[float] = []

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        self.asked_at.append(asyncio.get_running_loop().time())
        return None  # type: ignore[return-value]


def test_latency_is_precise_and_requests_do_not_wait_for_each_other(memory: Store) -> None:
    async def timed() -> None:
        inner = Instant(memory)
        store = Slow(inner, put=0.03)
        now = asyncio.get_running_loop().time
        for number in range(10):
            start = now()
            await store.put(f"{number}", b"x")
            assert now() - start == pytest.approx(0.03, abs=0.0001)
            assert inner.asked_at[-1] - start == pytest.approx(0.015, abs=0.0001)
        start = now()
        await asyncio.gather(*(store.create(f"c{number}", b"x") for number in range(200)))
        assert now() - start == pytest.approx(0.03, abs=0.0001)
        start = now()
        await store.get("1")
        assert now() - start < 0.0001

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(timed())


async def test_request_that_fails_is_slow_too(memory: Store) -> None:
    inner = Faulty(memory)
    inner.outage()
    store = Slow(inner, get=0.03)
    start = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await store.get("k")
    assert asyncio.get_running_loop().time() - start >= 0.0299


def test_log_normal_latency_has_the_quantiles_it_was_given(memory: Store) -> None:
    latency = LogNormal(0.1, 0.195)
    store = Slow(memory, put=latency, seed=7)
    drawn = sorted(store._seconds(latency) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(0.1, rel=0.02)
    assert drawn[19_800] == pytest.approx(0.195, rel=0.05)
