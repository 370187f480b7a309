"""The doctor finds each way in which a store can break a promise, spares what is in the bucket, and cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from littlebigcluster.clock import Clock
from littlebigcluster.store import CreateOutcome, Faulty, ObjectInfo, Store, Wrapper, open_store
from littlebigcluster.store.doctor import Examination, examine, examine_store
from tests.store.broken import Ignoring, Overwriting, Racy


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.store.doctor.listing.LONG_LISTING", 100)
    monkeypatch.setattr("littlebigcluster.store.doctor.surroundings.SAMPLES", 3)
    monkeypatch.setattr("littlebigcluster.store.doctor.surroundings.SLOW_SECONDS", 60.0)


@pytest.fixture
def memory(clock: Clock) -> Store:
    return open_store("memory://", clock=clock)


class RememberingAbsence(Wrapper):
    """A cache that keeps in mind for ever what it once found absent."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.absent: set[str] = set()

    async def get(self, key: str) -> bytes | None:
        if key in self.absent or (found := await self.inner.get(key)) is None:
            self.absent.add(key)
            return None
        return found


class RememberingObjects(Wrapper):
    """A cache that keeps what it once read."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.known: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        if key not in self.known and (found := await self.inner.get(key)) is not None:
            self.known[key] = found
        return self.known.get(key)


class ListingLess(Wrapper):
    """Forgets the newest object of a listing."""

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        return (await self.inner.list(prefix, start_after))[:-1]


class ListingAPage(Wrapper):
    """Knows no second page."""

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        return (await self.inner.list(prefix, start_after))[:50]


class WithoutRanges(Wrapper):
    """Answers a range with the whole object."""

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        return await self.inner.get(key)


class Shortening(Wrapper):
    """Keeps at most 8 MiB."""

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        return await self.inner.create(key, body[: 8 << 20])


class ShowingParts(Wrapper):
    """Shows uploads before they are whole."""

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        body = b""
        async for chunk in chunks:
            body += chunk
            await self.inner.put(key, body)


class Undeletable(Wrapper):
    """Goes on serving what was deleted; the listing knows."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.last: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        found = await self.inner.get(key)
        if found is not None:
            self.last[key] = found
        return self.last.get(key)


async def examined(store: Store, clock: Clock) -> Examination:
    return await examine([store, store], clock=clock)


def outcomes(found: Examination, outcome: str) -> list[str]:
    return [check.name for check in found.checks if check.outcome == outcome]


async def test_a_good_store_passes(memory: Store, clock: Clock) -> None:
    found = await examined(memory, clock)
    assert found.sound
    assert outcomes(found, "not tried") == ["absent bucket", "refused credentials"]
    assert len(outcomes(found, "pass")) == len(found.checks) - 2
    assert {"put_p50_seconds", "list_p99_seconds", "clock_difference_seconds"} < set(found.figures)
    assert 0 < found.cost_dollars < 0.02
    assert await memory.list("") == []


@pytest.mark.parametrize(
    ("kind", "failed"),
    [
        (Ignoring, "refused create"),
        (Ignoring, "concurrent creates"),
        (Racy, "concurrent creates"),
        (Overwriting, "refused create"),
        (RememberingAbsence, "create"),
        (RememberingObjects, "overwrites are read"),
        (ListingLess, "lists"),
        (ListingAPage, "long lists"),
        (WithoutRanges, "ranges"),
        (Shortening, "large objects"),
        (ShowingParts, "uploads in parts"),
    ],
)
async def test_each_broken_promise_is_found(memory: Store, clock: Clock, kind: type[Wrapper], failed: str) -> None:
    found = await examined(kind(memory), clock)
    assert failed in outcomes(found, "fail")
    assert not found.sound


async def test_what_does_no_harm_is_a_warning(memory: Store, clock: Clock) -> None:
    found = await examined(Undeletable(memory), clock)
    assert outcomes(found, "warning") == ["delete"]
    assert found.sound


async def test_a_slow_store_is_a_warning(memory: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.store.doctor.surroundings.SLOW_SECONDS", 0.0)
    found = await examined(memory, clock)
    assert outcomes(found, "warning") == ["latency"]
    assert found.sound


async def test_a_silent_store_is_neither_good_nor_bad(
    memory: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("littlebigcluster.store.doctor.bench.DEADLINE_SECONDS", 0.1)
    store = Faulty(memory)
    store.outage()
    found = await examined(store, clock)
    assert found.checks[0].outcome == "unknown"
    assert outcomes(found, "fail") == []
    assert not found.sound


async def test_an_interrupted_run_leaves_nothing(memory: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.store.doctor.examination.LATE_SECONDS", 0.05)
    await memory.put(".lbc/cluster.json", b"somebody's")
    for interrupted_at in ("concurrent creates", "long lists", "uploads in parts", "latency"):
        reached = asyncio.Event()

        def on_check(name: str, wanted: str = interrupted_at, reached: asyncio.Event = reached) -> None:
            if name == wanted:
                reached.set()

        task = asyncio.create_task(examine([memory], clock=clock, on_check=on_check))
        await reached.wait()
        await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [info.key for info in await memory.list("")] == [".lbc/cluster.json"]


async def test_an_interrupted_clean_up_is_done_all_the_same(
    memory: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("littlebigcluster.store.doctor.examination.LATE_SECONDS", 0.05)
    last, cleaning = asyncio.Event(), asyncio.Event()

    class Slow(Wrapper):
        """Stands still at the first deletion after the last check."""

        async def delete(self, keys: Iterable[str]) -> None:
            keys = list(keys)
            if last.is_set() and len(keys) > 10 and not cleaning.is_set():
                cleaning.set()
                await asyncio.sleep(60)
            await super().delete(keys)

    def on_check(name: str) -> None:
        if name == "latency":
            last.set()

    task = asyncio.create_task(examine([Slow(memory)], clock=clock, on_check=on_check))
    await cleaning.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await memory.list("") == []


async def test_a_directory_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".lbc" / "empty").mkdir(parents=True)
    assert (await examine_store(tmp_path)).sound
    assert sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / ".lbc").rglob("*")) == [".lbc/empty"]


async def test_an_obstore_store_can_be_examined() -> None:
    assert (await examine_store(MemoryStore())).sound
