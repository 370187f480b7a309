"""The probes refuse stores that break the promise, in each way it can be broken, and no others."""

from __future__ import annotations

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable, UnsafeStore
from littlebigcluster.store import (
    CreateOutcome,
    Exists,
    Fault,
    Faulty,
    Store,
    Wrapper,
    open_store,
    probe_exists,
    probe_race,
)
from tests.store.broken import Ignoring, Overwriting, Racy


class NeverCreating(Wrapper):
    """Says that everything exists."""

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        return Exists()


@pytest.fixture
def memory(clock: Clock) -> Store:
    return open_store("memory://", clock=clock)


class Stale(Wrapper):
    """Creates rightly, and may read something else afterwards."""

    async def get(self, key: str) -> bytes | None:
        return b"from a cache"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Ignoring, "16 of 16 concurrent creates of .lbc/probe-"),
        (Racy, "of 16 concurrent creates"),
        (Overwriting, "of 16 concurrent creates"),
        (Stale, "did not read as what its only creator wrote"),
    ],
)
async def test_unsafe_store_is_refused_by_name(memory: Store, clock: Clock, kind: type[Wrapper], said: str) -> None:
    with pytest.raises(UnsafeStore, match="memory:// does not honour conditional creates") as caught:
        await probe_race(kind(memory), clock=clock)
    assert said in str(caught.value)
    assert "Use a store that" in str(caught.value)
    assert await memory.list("") == []


async def test_race_sees_through_faults(memory: Store, clock: Clock) -> None:
    rates = {"create": dict.fromkeys(Fault, 0.12)}
    store = Faulty(memory, seed=3, rates=rates, timeout_seconds=0.01, zombie_seconds=(0.0, 0.05))  # type: ignore[arg-type]
    await probe_race(store, clock=clock)
    assert len(store.faults) > 20
    unsafe = Faulty(Ignoring(memory), seed=3, rates=rates, timeout_seconds=0.01, zombie_seconds=(0.0, 0.05))  # type: ignore[arg-type]
    with pytest.raises(UnsafeStore):
        await probe_race(unsafe, clock=clock)
    await unsafe.settle()


async def test_silent_store_is_unavailable_not_unsafe(
    memory: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("littlebigcluster.store.probe.DEADLINE_SECONDS", 0.2)
    store = Faulty(memory)
    store.outage()
    with pytest.raises(StoreUnavailable, match="cannot tell whether memory:// is safe"):
        await probe_race(store, clock=clock)
    with pytest.raises(StoreUnavailable):
        await probe_race(NeverCreating(memory), clock=clock)


async def test_second_create_must_be_told_that_it_exists(memory: Store) -> None:
    await memory.create("id", b"me")
    await probe_exists(memory, "id", b"me")
    with pytest.raises(UnsafeStore, match="id exists, and could be created again"):
        await probe_exists(Ignoring(memory), "id", b"me")
    unsure = Faulty(memory)
    unsure.next("create", Fault.AFTER)
    await probe_exists(unsure, "id", b"me")
