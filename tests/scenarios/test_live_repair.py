"""A node that runs while the log is repaired: it restores itself from what the repair has made, whenever that comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from littlebigcluster import Cluster, CorruptLog
from littlebigcluster.cluster.repair import Repaired
from littlebigcluster.epochs import names
from littlebigcluster.epochs.pins import REPAIR, Pin
from littlebigcluster.roles.afresh import Afresh
from littlebigcluster.store import Store
from littlebigcluster.store.wrappers import Operation, Wrapper
from tests.clocks import HandClock
from tests.scenarios.damage import harm
from tests.scenarios.stage import WAIT, Actor, Stage, eventually, memory, stage
from tests.scenarios.test_repair import QUICK, Died

T = TypeVar("T")

WAITS = "waiting for the snapshot of a repair; reads go on"


class NoSnapshotYet(Wrapper):
    """A repair that has come to its snapshot, and gets no further until it is let, or dies there."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.dies = False

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        if key.endswith(".db") and operation in ("put", "put_stream"):
            self.reached.set()
            await self.go_on.wait()
        if self.dies:
            raise Died
        return await send()


class Reading:
    """What a node answers, again and again."""

    def __init__(self, actor: Actor) -> None:
        self.seen: list[list[Any]] = []
        self._actor = actor
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            self.seen.append(await self._actor.node.read("SELECT name FROM job ORDER BY name"))
            await asyncio.sleep(0.002)

    async def end(self) -> list[list[Any]]:
        """The different answers, in the order in which they came first. Raises what a read raised."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
        return [each for at, each in enumerate(self.seen) if each not in self.seen[:at]]


@pytest.fixture
async def s() -> AsyncIterator[Stage]:
    async with stage(memory()) as made:
        yield made


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def written(s: Stage, *names_of_jobs: str) -> Actor:
    a = s.actors[0] if s.actors else await s.actor()
    await a.node.wait_until_leader(timeout=WAIT)
    await a.node.execute("CREATE TABLE IF NOT EXISTS job(name)")
    for name in names_of_jobs:
        await a.node.execute("INSERT INTO job VALUES (?)", (name,))
    return a


async def dead_of_damage(s: Stage) -> tuple[Actor, int]:
    """A follower that has all there was, and the head. What comes after 'kept' cannot be restored; nobody leads."""
    a = await written(s, "kept")
    damaged = a.node.epoch.value + 1
    b = await s.follower()
    await written(s, "lost", "lost too")
    head = a.node.epoch.value
    await b.node.epoch.until(head.__le__, timeout=WAIT)
    await a.kill()
    await harm(s.store, names.wal(damaged), "flipped")
    return b, head


def repairing(store: Store) -> asyncio.Task[Repaired]:
    return asyncio.create_task(Cluster(store).repair(act=True, settings=QUICK))


async def test_a_follower_that_meets_the_epoch_before_its_snapshot_waits_for_that(
    s: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    b, head = await dead_of_damage(s)
    reading, held = Reading(b), NoSnapshotYet(s.store)
    await eventually(lambda: reading.seen)
    repair = repairing(held)
    await held.reached.wait()
    await eventually(lambda: WAITS in caplog.text)
    assert (b.node.epoch.value, b.ended) == (head, False)
    held.go_on.set()
    assert (await repair).epoch == head + 1
    await b.node.epoch.until((head + 1).__le__, timeout=WAIT)
    await eventually(lambda: f"restored from the store, at epoch {head + 1}" in caplog.text)
    answers = len(reading.seen)
    await eventually(lambda: len(reading.seen) > answers + 1)
    assert await reading.end() == [[("kept",), ("lost",), ("lost too",)], [("kept",)]]
    c = await s.actor()
    await c.node.wait_until_leader(timeout=WAIT)
    done = await c.node.execute("INSERT INTO job VALUES ('afterwards')")
    assert await b.node.read("SELECT name FROM job", at_least=done.epoch) == [("kept",), ("afterwards",)]
    await b.leave()


async def test_a_standby_behind_the_damage_waits_while_a_repair_is_under_way_and_leads(
    s: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await written(s, "kept")
    b = await s.actor(leader_timeout=600)
    b.gate.shut()
    await eventually(lambda: b.gate.held)
    a = await written(s, "lost", "lost too")
    head = a.node.epoch.value
    await a.kill()
    await harm(s.store, names.wal(b.node.epoch.value + 1), "cut")
    held = NoSnapshotYet(s.store)
    repair = repairing(held)
    await held.reached.wait()
    b.gate.open()
    await eventually(lambda: WAITS in caplog.text)
    held.go_on.set()
    await repair
    await b.node.wait_until_leader(timeout=WAIT)
    assert b.node.epoch.value > head + 1
    assert await b.node.read("SELECT name FROM job") == [("kept",)]


async def test_a_repair_that_dies_before_its_snapshot_is_waited_for_until_the_next_has_made_one(
    s: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    b, head = await dead_of_damage(s)
    held = NoSnapshotYet(s.store)
    repair = repairing(held)
    await held.reached.wait()
    held.dies = True
    held.go_on.set()
    with pytest.raises(Died):
        await repair
    await eventually(lambda: WAITS in caplog.text)
    assert (await repairing(s.store)).epoch == head + 2
    await b.node.epoch.until((head + 2).__le__, timeout=WAIT)
    assert await b.node.read("SELECT name FROM job") == [("kept",)]
    assert caplog.text.count(WAITS) == 1, "nothing new, no attempt"


async def test_a_node_ends_when_the_repair_has_ended_without_a_snapshot(
    s: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    b, head = await dead_of_damage(s)
    held = NoSnapshotYet(s.store)
    repair = repairing(held)
    await held.reached.wait()
    await eventually(lambda: WAITS in caplog.text)
    held.dies = True
    held.go_on.set()
    with pytest.raises(Died):
        await repair
    await s.store.delete([info.key for info in await s.store.list(names.PINS)])
    with pytest.raises(CorruptLog):
        await b.wait()
    assert b.node.epoch.value == head


async def test_a_follower_that_cannot_restore_ends_at_once_when_nobody_repairs(s: Stage) -> None:
    b, head = await dead_of_damage(s)
    await s.store.put(names.wal(head + 1), b"rubbish")
    with pytest.raises(CorruptLog):
        await b.wait()


async def test_a_repair_whose_pin_is_not_renewed_is_not_under_way() -> None:
    store, clock = memory(), HandClock()
    afresh = Afresh(store, None, look_interval=1, clock=clock)  # type: ignore[arg-type]
    await store.put(names.pin("other"), Pin(0, 900, "a restore").encode())
    assert not await afresh._repair_is_under_way()
    await store.put(names.pin("x"), Pin(0, 900, REPAIR).encode())
    for _ in range(2):
        assert await afresh._repair_is_under_way()
        clock.pass_time(899)
        assert await afresh._repair_is_under_way()
        await store.put(names.pin("x"), Pin(0, 900, REPAIR).encode())  # renewed
    assert await afresh._repair_is_under_way()
    clock.pass_time(901)
    assert not await afresh._repair_is_under_way()
    await store.delete([names.pin("x")])
    assert not await afresh._repair_is_under_way()
