"""Making a cluster: once, on a safe store, and to the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from littlebigcluster import (
    AlreadyInitialized,
    Cluster,
    ClusterSettings,
    NotInitialized,
    StoreUnavailable,
    UnsafeStore,
)
from littlebigcluster.epochs import names
from littlebigcluster.store import Created, CreateOutcome, Fault, Faulty, Store, Wrapper
from tests.scenarios.stage import Gate, eventually, memory


class Careless(Wrapper):
    """Ignores the condition, as some stores do."""

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        await self.inner.put(key, body)
        return Created()


class Dying(Wrapper):
    """The process dies after so many writes: nothing gets through any more."""

    def __init__(self, store: Store, writes: int) -> None:
        super().__init__(store)
        self.left = writes

    async def _request(self, operation: Any, key: str, send: Any) -> Any:
        if operation == "create" and "probe" not in key:
            if not self.left:
                raise asyncio.CancelledError
            self.left -= 1
        return await send()


async def test_an_id_is_given_or_made_up() -> None:
    assert await Cluster(memory()).init("lol") == "lol"
    assert await Cluster(memory(), id="lol").init() == "lol"
    assert len({await Cluster(memory()).init() for _ in range(3)}) == 3


async def test_a_place_holds_one_cluster(cluster: Cluster) -> None:
    await cluster.init("lol")
    for again in ("lol", "other", None):
        with pytest.raises(AlreadyInitialized, match="lol"):
            await cluster.init(again)


async def test_of_many_who_initialize_at_once_one_succeeds(store: Store) -> None:
    results = await asyncio.gather(*(Cluster(store).init(f"c{n}") for n in range(6)), return_exceptions=True)
    (winner,) = [result for result in results if isinstance(result, str)]
    assert all(isinstance(result, str | AlreadyInitialized) for result in results)
    assert (await Cluster(store).status()).identity.cluster_id == winner
    async with Cluster(store, id=winner).join(address="127.0.0.1:0"):
        pass


async def test_of_many_who_initialize_at_once_with_the_same_id_a_cluster_comes_out(store: Store) -> None:
    results = await asyncio.gather(*(Cluster(store).init("lol") for n in range(6)), return_exceptions=True)
    assert all(result == "lol" or isinstance(result, AlreadyInitialized) for result in results)
    async with Cluster(store, id="lol").join(address="127.0.0.1:0") as node:
        assert node.epoch.value == 0


async def test_whoever_is_told_that_there_is_a_cluster_can_join_it(store: Store) -> None:
    """Several nodes start at once, each with an `init`; the one that was fastest at first stands still half way."""
    stuck, slow = Gate(store), asyncio.Event()

    class Late(Wrapper):
        """Has found no cluster, and waits with its first step until there is half of one."""

        async def create(self, key: str, body: bytes) -> CreateOutcome:
            if key == names.CLUSTER:
                await slow.wait()
            return await self.inner.create(key, body)

    class Half(Wrapper):
        """Stands still when the identity is there."""

        async def create(self, key: str, body: bytes) -> CreateOutcome:
            outcome = await self.inner.create(key, body)
            if key == names.CLUSTER:
                stuck.shut()
            return outcome

    late = asyncio.create_task(Cluster(Late(store)).init())
    fast = asyncio.create_task(Cluster(Half(stuck)).init())
    await eventually(lambda: stuck.held)
    slow.set()
    outcome = (await asyncio.gather(late, return_exceptions=True))[0]
    assert isinstance(outcome, str | AlreadyInitialized)
    async with Cluster(store).join(address="127.0.0.1:0") as node:
        stuck.open()
        with pytest.raises(AlreadyInitialized, match="join"):
            await fast
        assert node.epoch.value == 0


@pytest.mark.parametrize("again", ["lol", None], ids=["same id", "no id"])
@pytest.mark.parametrize("writes", range(3))
async def test_one_that_crashed_half_way_is_completed(store: Store, writes: int, again: str | None) -> None:
    with pytest.raises(asyncio.CancelledError):
        await Cluster(Dying(store, writes)).init("lol")
    if writes > 0:
        with pytest.raises(NotInitialized, match="init"):
            await Cluster(store).join().__aenter__()
        with pytest.raises(AlreadyInitialized, match="lol"):
            await Cluster(store).init("other")
    made = await Cluster(store).init(again)
    assert made == "lol" or (writes == 0 and again is None)
    async with Cluster(store, id=made).join(address="127.0.0.1:0") as node:
        assert node.epoch.value == 0


async def test_every_ambiguity_is_resolved(store: Store) -> None:
    for fault in Fault:
        network = Faulty(memory(), timeout_seconds=0.05, zombie_seconds=(0.0, 0.05))
        for key in (names.CLUSTER, names.snapshot(0)):
            network.next("create", fault, key=key)
        await Cluster(network).init("lol")
        async with Cluster(network).join(address="127.0.0.1:0"):
            pass
        await network.close()


async def test_a_store_that_does_not_answer_is_no_cluster_and_no_success(store: Store) -> None:
    network = Faulty(store)
    network.outage()
    with pytest.raises(StoreUnavailable):
        await Cluster(network).init("lol")
    with pytest.raises(StoreUnavailable):
        async with Cluster(network).join():
            pass
    network.outage(False)
    await Cluster(network).init("lol")


async def test_an_unsafe_store_is_refused_at_init(store: Store) -> None:
    with pytest.raises(UnsafeStore, match="conditional"):
        await Cluster(Careless(store)).init("lol")
    assert await store.list("") == []


async def test_an_unsafe_store_is_refused_at_join(store: Store) -> None:
    await Cluster(store).init("lol")
    with pytest.raises(UnsafeStore, match="conditional"):
        async with Cluster(Careless(store)).join():
            pass


async def test_a_place_without_a_cluster_says_what_to_do(store: Store) -> None:
    with pytest.raises(NotInitialized, match=r"lbc -p .* init"):
        async with Cluster(store).join():
            pass
    with pytest.raises(NotInitialized):
        await Cluster(store).status()


@pytest.mark.parametrize("page_size", [512, 65536])
@pytest.mark.parametrize("compression", ["zstd", "none"])
async def test_settings_are_those_of_all_nodes_for_ever(store: Store, page_size: int, compression: Any) -> None:
    settings = ClusterSettings(page_size=page_size, compression=compression, foreign_keys=True)
    await Cluster(store).init("lol", settings=settings)
    async with Cluster(store).join(can_lead=True, address="127.0.0.1:0") as node:
        await node.wait_until_leader(timeout=20)
        assert await node.read("PRAGMA page_size") == [(page_size,)]
        done = await node.transaction(lambda db: db.execute("PRAGMA foreign_keys").fetchall())
        assert done.value == [(1,)]
    assert (await Cluster(store).status()).identity.settings == settings


@pytest.mark.parametrize("bad", ["", " ", "a/b", "-x", "x" * 101, "ä"])
def test_a_bad_id_is_refused_at_the_call(bad: str) -> None:
    with pytest.raises(ValueError, match="cluster id"):
        Cluster(memory(), id=bad)
