"""Put-if-absent tells the truth whatever the store does, or says that it does not know."""

from __future__ import annotations

import asyncio
import random

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import (
    CreateOutcome,
    Fault,
    Faulty,
    Mine,
    NoLongerValid,
    Resolution,
    Store,
    Theirs,
    Unknown,
    Unresolved,
    Wrapper,
    open_store,
    put_if_absent,
)

WRITE_FAULTS = {
    Fault.BEFORE: 0.15,
    Fault.AFTER: 0.2,
    Fault.DELAY: 0.1,
    Fault.HANG: 0.15,
    Fault.DUPLICATE: 0.15,
    Fault.CONFLICT: 0.05,
}
READ_FAULTS = {Fault.BEFORE: 0.3, Fault.DELAY: 0.2}


@pytest.fixture
def memory(clock: Clock) -> Store:
    return open_store("memory://", clock=clock)


def unreliable(store: Store, seed: int) -> Faulty:
    rates = {"create": WRITE_FAULTS, "*": READ_FAULTS}
    return Faulty(store, seed=seed, rates=rates, delay_seconds=0.005, timeout_seconds=0.005, zombie_seconds=(0.0, 0.1))


def judge(results: list[Resolution], bodies: list[bytes], found: bytes | None) -> None:
    """No result may say what is not so, seen from the end, when everything has taken effect."""
    assert sum(isinstance(result, Mine) for result in results) <= 1
    for result, body in zip(results, bodies, strict=True):
        match result:
            case Mine():
                assert found == body
            case Theirs(other):
                assert found == other != body
            case Unresolved():
                pass
    if found is not None and Unresolved not in map(type, results):
        assert [type(result) for result in results].count(Mine) == 1


class Hurried(Clock):
    """Tries again after a tenth of the usual waits."""

    def random(self) -> float:
        return super().random() / 10


@pytest.mark.parametrize("block", range(2))
async def test_two_writers_never_both_win_and_never_hear_a_lie(memory: Store, block: int) -> None:
    """400 rounds in all, each with two writers whose requests meet every fault by seed."""
    resolved, clock = 0, Hurried()

    async def play(number: int) -> None:
        nonlocal resolved
        key, bodies = f"epoch/{number}", [b"%d a" % number, b"%d b" % number]
        stores = [unreliable(memory, 2 * number), unreliable(memory, 2 * number + 1)]
        deadline_seconds = random.Random(number).choice([0.0, 60.0, 60.0])
        results = await asyncio.gather(
            *(
                put_if_absent(store, key, body, clock=clock, deadline_seconds=deadline_seconds)
                for store, body in zip(stores, bodies, strict=True)
            )
        )
        for store in stores:
            await store.settle()
        judge(list(results), bodies, await memory.get(key))
        resolved += sum(not isinstance(result, Unresolved) for result in results)

    await asyncio.gather(*(play(block * 200 + number) for number in range(200)))
    assert resolved > 160, "the rounds prove something"


async def test_lost_answer_is_resolved_as_ours(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    store.next("create", Fault.AFTER)
    assert await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60) == Mine()


async def test_conflict_with_our_own_delivery_is_resolved_as_ours(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    store.next("create", Fault.DUPLICATE)
    assert await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60) == Mine()


async def test_bare_conflict_sends_the_same_bytes_again(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    store.next("create", Fault.CONFLICT, Fault.CONFLICT)
    assert await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60) == Mine()
    assert await memory.get("k") == b"x"


async def test_lost_answer_to_a_lost_race_is_resolved_as_theirs(memory: Store, clock: Clock) -> None:
    await memory.create("k", b"other")
    store = Faulty(memory)
    store.next("create", Fault.AFTER)
    assert await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60) == Theirs(b"other")


async def test_unreadable_winner_is_read_again(memory: Store, clock: Clock) -> None:
    await memory.create("k", b"other")
    store = Faulty(memory)
    store.next("get", Fault.BEFORE, Fault.BEFORE)
    assert await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60) == Theirs(b"other")


async def test_zombie_that_lands_after_the_deadline_was_not_denied(memory: Store, clock: Clock) -> None:
    store = Faulty(memory, timeout_seconds=0.01, zombie_seconds=None)
    store.next("create", Fault.HANG)
    result = await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=0)
    assert isinstance(result, Unresolved)
    assert await memory.get("k") is None, "absent, and yet it proves nothing"
    await store.settle()
    assert await memory.get("k") == b"x"


class Ticking(Clock):
    """A second goes by with each look."""

    seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 1
        return self.seconds


async def test_outage_ends_unresolved_at_the_deadline(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    store.outage()
    ticking = Ticking()
    result = await put_if_absent(store, "k", b"x", clock=ticking, deadline_seconds=3)
    assert isinstance(result, Unresolved)
    assert 3 <= ticking.seconds < 5
    assert len(store.faults) > 1, "it tried again"


async def test_writer_goes_on_when_the_outage_ends(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    store.outage()
    writing = asyncio.create_task(put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60))
    await asyncio.sleep(0.1)
    store.outage(False)
    assert await writing == Mine()


class Refusing(Wrapper):
    """Refuses creates after the first `allowed` of them."""

    allowed = 0

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        if self.allowed == 0:
            raise StoreUnavailable("no permission", transient=False)
        self.allowed -= 1
        return Unknown(TimeoutError())


async def test_refusal_at_first_is_an_error(memory: Store, clock: Clock) -> None:
    with pytest.raises(StoreUnavailable, match="no permission"):
        await put_if_absent(Refusing(memory), "k", b"x", clock=clock, deadline_seconds=60)


async def test_refusal_after_an_unknown_outcome_leaves_it_unknown(memory: Store, clock: Clock) -> None:
    store = Refusing(memory)
    store.allowed = 1
    result = await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60)
    assert isinstance(result, Unresolved)
    assert "no permission" in str(result.cause)


async def test_nothing_is_sent_once_the_position_is_too_old(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    result = await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60, still_valid=lambda: False)
    assert isinstance(result, Unresolved)
    assert isinstance(result.cause, NoLongerValid)
    assert await memory.get("k") is None


async def test_position_that_grows_old_between_attempts_stops_them(memory: Store, clock: Clock) -> None:
    store = Faulty(memory)
    store.next("create", Fault.BEFORE)
    answers = iter([True, False])
    result = await put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60, still_valid=lambda: next(answers))
    assert isinstance(result, Unresolved)
    assert isinstance(result.cause, StoreUnavailable)
    assert await memory.get("k") is None


async def test_cancellation_comes_out(memory: Store, clock: Clock) -> None:
    store = Faulty(memory, timeout_seconds=30, zombie_seconds=None)
    store.next("create", Fault.HANG)
    writing = asyncio.create_task(put_if_absent(store, "k", b"x", clock=clock, deadline_seconds=60))
    await asyncio.sleep(0.01)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await store.settle()
    assert await memory.get("k") == b"x", "a cancelled write may still take effect"
