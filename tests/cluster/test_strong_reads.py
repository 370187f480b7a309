"""Strong reads of followers: by the leader while it writes, else by the store; and what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf

import pytest

from littlebigcluster import Node
from littlebigcluster.cluster import reading
from tests.cluster.group import HUGE, Group, all_fed, at_rest, counted, eventually, group
from tests.scenarios.stage import NOWHERE, WAIT, Gate


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


QUIET = {"leader_timeout": 20.0}
FED_ONLY = {**QUIET, "poll_interval": HUGE, "suspect_timeout": inf}
"""It does not look at the store by itself, not even when nothing comes for a moment."""


async def strong_count(node: Node) -> int:
    ((count,),) = await node.read("SELECT count(*) FROM job", consistency="strong")
    return int(count)


async def quiet() -> None:
    """Until the log does not count as moving any more."""
    await asyncio.sleep(reading._MOVING_SECONDS + 0.1)


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log moves, however slow the machine is."""
    monkeypatch.setattr(reading, "_MOVING_SECONDS", HUGE)


async def test_while_the_log_moves_the_leader_is_asked_and_the_store_is_not(g: Group, moving: None) -> None:
    store = counted(g.store)
    a = await g.leader()
    b = await g.node(store=store, settings=FED_ONLY, can_lead=False)
    await at_rest(b)
    await b.leader_client.get("/.lbc/ping")
    for number in range(1, 11):
        await a.execute("INSERT INTO job VALUES ('x')")
        if number == 1:
            await b.epoch.until(a.epoch.value.__le__)
            store.reset()
        assert await strong_count(b) == number
    assert not store.requests


async def test_while_all_is_quiet_one_request_to_the_store_will_do(g: Group) -> None:
    store = counted(g.store)
    a = await g.leader()
    b = await g.node(store=store, settings=FED_ONLY, can_lead=False)
    await at_rest(b)
    await a.execute("INSERT INTO job VALUES ('x')")
    await b.epoch.until(a.epoch.value.__le__)
    await quiet()
    store.reset()
    assert await strong_count(b) == 1
    assert store.requests == {"get_range": 1}


async def test_many_followers_share_the_proof_of_the_leader(g: Group, moving: None) -> None:
    store = counted(g.store)
    a = await g.leader(store=store, settings=QUIET)
    followers = [await g.node(can_lead=False) for _ in range(3)]
    await all_fed(*followers)
    await asyncio.gather(*(b.leader_client.get("/.lbc/ping") for b in followers))
    await a.execute("INSERT INTO job VALUES ('x')")
    for b in followers:
        await b.epoch.until(a.epoch.value.__le__)
    store.reset()
    assert await asyncio.gather(*(strong_count(b) for b in followers * 5)) == [1] * 15
    assert store.requests["get_range"] + store.requests["get"] <= 6  # two proofs at most for each that asks at once


@pytest.mark.parametrize("how", ["frozen", "gone"])
async def test_a_leader_that_does_not_answer_is_not_waited_for(g: Group, how: str) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    b = await g.node(can_lead=False)
    await all_fed(b)
    await a.execute("INSERT INTO job VALUES ('x')")
    await b.epoch.until(a.epoch.value.__le__)
    if how == "frozen":
        gate.shut()  # its proof never ends
    else:
        await g.crash(a)
    assert await strong_count(b) == 1  # else it would be out of time
    gate.open()


async def test_a_leader_that_was_replaced_and_does_not_know_shows_nothing_old(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    b = await g.node(can_lead=False)
    await all_fed(b)
    await a.execute("INSERT INTO job VALUES ('old')")
    await b.epoch.until(a.epoch.value.__le__)
    gate.shut()
    c = await g.node(can_lead=True)
    await c.wait_until_leader(timeout=WAIT)
    await c.execute("INSERT INTO job VALUES ('new')")
    assert a.is_leader  # it has not noticed
    answer = asyncio.create_task(a._proven_head())
    await eventually(lambda: gate.held)
    gate.open()
    assert await answer >= c.epoch.value
    assert await strong_count(b) == 2
    assert await strong_count(a) == 2


async def test_without_a_leader_to_ask_a_strong_read_ends_however_fast_the_log_grows(g: Group) -> None:
    store = counted(g.store)
    a = await g.leader(advertise=NOWHERE)
    b = await g.node(store=store, settings={"poll_interval": 0.05}, can_lead=False)
    store.reset()
    stop = asyncio.Event()
    written = 0

    async def flood() -> None:
        nonlocal written
        while not stop.is_set():
            await a.execute("INSERT INTO job VALUES ('x')")
            written += 1

    flooding = asyncio.create_task(flood())
    try:
        for _ in range(5):
            await asyncio.sleep(0.1)
            before = written
            async with asyncio.timeout(WAIT):
                assert await strong_count(b) >= before
    finally:
        stop.set()
        await flooding
    assert store.requests["list"] <= 5
