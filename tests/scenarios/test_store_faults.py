"""Requests that fail, lie or come late, and a store that is away for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from littlebigcluster import DeadlineExceeded, OutcomeUnknown, StoreUnavailable
from littlebigcluster.store import Fault, Faulty
from tests.scenarios.stage import WAIT, eventually, memory, stage


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
async def test_an_ambiguous_put_is_acknowledged_once_its_fate_is_known(fault: Fault) -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        for _ in range(3):
            a.network.next("create", fault)
            assert await s.recorder.write(a.node) == "acknowledged"
        await a.network.settle()
        assert await s.recorder.write(a.node) == "acknowledged"
        assert [found for _, _, found in a.network.faults] == [fault] * 3
        assert a.node.term == 1
        await s.check(a, b)


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
async def test_an_ambiguous_put_of_a_fenced_leader_is_refused(fault: Fault) -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.actor()
        a.gate.shut()
        a.network.next("create", fault)
        late = asyncio.create_task(s.recorder.write(a.node))
        await b.node.wait_until_leader(timeout=WAIT)
        a.gate.open()
        assert await late == "refused"
        await a.network.settle()
        assert await s.recorder.write(b.node) == "acknowledged"
        await s.check()


async def test_a_read_back_that_fails_too_leaves_nothing_in_doubt() -> None:
    """Created, the answer lost; then exists, but whose? The GET that would tell fails as well."""
    async with stage() as s:
        a = await s.leader()
        a.network.next("create", Fault.AFTER)
        a.network.next("get", *[Fault.BEFORE] * 3)
        assert await s.recorder.write(a.node) == "acknowledged"
        await s.check()


async def test_everything_goes_wrong_now_and_then() -> None:
    rates: Any = {"*": dict.fromkeys(Fault, 0.08)}
    network = Faulty(memory(), seed=1, timeout_seconds=0.05, delay_seconds=0.02, zombie_seconds=(0.0, 0.1))
    async with stage(network) as s:
        a, b = await s.leader(), await s.follower()
        network._rates = rates
        for _ in range(20):
            await s.recorder.writes(a.node, 3)
            await s.recorder.read(b.node)
        network._rates = {}
        await network.settle()
        assert {found for _, _, found in network.faults} >= {Fault.BEFORE, Fault.AFTER, Fault.HANG, Fault.DUPLICATE}
        assert s.recorder.history.count("acknowledged") > 0
        await s.check()
        await network.close()


@pytest.mark.parametrize("hang", [False, True], ids=["refused", "hanging"])
async def test_in_an_outage_reads_go_on_and_writes_wait_and_all_resumes_by_itself(hang: bool) -> None:
    """Longer than leader_timeout. All are cut off alike, so nobody takes over from anybody."""
    network = Faulty(memory())
    async with stage(network) as s:
        a, b, c = await s.leader(), await s.actor(), await s.follower()
        await s.recorder.writes(a.node, 3)
        await s.check()
        network.outage(hang=hang)
        waiting = asyncio.create_task(s.recorder.write(a.node))
        end = asyncio.get_running_loop().time() + 2.0
        while asyncio.get_running_loop().time() < end:
            for actor in (a, b, c):
                assert len((await s.recorder.read(actor.node)).rows) == 3
            await asyncio.sleep(0.1)
        assert not waiting.done()
        network.outage(False)
        assert await waiting == "acknowledged"
        assert await s.recorder.write(a.node) == "acknowledged"
        assert [actor.node.term for actor in (a, b, c)] == [1, 1, 1]
        await s.check()


async def test_in_a_long_outage_writes_and_strong_reads_fail_clearly_within_their_time() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        a.network.outage()
        b.network.outage()
        sent = a.node.submit(lambda db: db.execute("INSERT INTO op VALUES (0, 0)") and None, timeout=2)
        with pytest.raises(OutcomeUnknown):
            await sent
        # The first one is on its way to the store, so this one is executed, and waits for it.
        assert await s.recorder.write(a.node, timeout=0.3) in ("unknown", "refused")
        for actor in (a, b):
            with pytest.raises((StoreUnavailable, DeadlineExceeded)):
                await actor.node.read("SELECT 1", consistency="strong", timeout=0.5)
        with pytest.raises(DeadlineExceeded):
            await b.node.read("SELECT 1", at_least=a.node.epoch.value + 1, timeout=0.3)
        assert await b.node.read("SELECT 1") == [(1,)]
        a.network.outage(False)
        b.network.outage(False)
        s.recorder.history.fates[0] = "unknown"
        assert await s.recorder.write(a.node) == "acknowledged"
        assert await s.recorder.read(b.node, consistency="strong")
        rows = await a.node.read("SELECT count(*) FROM op WHERE id = 0")
        assert rows == [(1,)]  # what was unknown became durable: it was sent, and never given up


async def test_a_leader_that_is_cut_off_alone_is_replaced() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.actor()
        a.network.outage()
        late = asyncio.create_task(s.recorder.write(a.node))
        await b.node.wait_until_leader(timeout=WAIT)
        assert await s.recorder.write(b.node) == "acknowledged"
        a.network.outage(False)
        assert await late == "refused"
        await eventually(lambda: not a.node.is_leader)
        await s.check()


async def test_a_standby_that_was_cut_off_alone_does_not_take_over() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.actor()
        b.network.outage()
        await asyncio.sleep(2.0)
        b.network.outage(False)
        for _ in range(10):
            assert await s.recorder.write(a.node) == "acknowledged"
            await asyncio.sleep(0.1)
        assert not b.node.is_leader
        await s.check()


async def test_strong_reads_of_a_follower_come_through_a_flood_of_writes() -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                await s.recorder.write(a.node)

        flooding = [asyncio.create_task(flood()) for _ in range(3)]
        async with asyncio.timeout(WAIT):
            for _ in range(10):
                await s.recorder.read(b.node, consistency="strong")
                await s.recorder.read(a.node, consistency="strong")
        stop.set()
        await asyncio.gather(*flooding)
        await s.check()


async def test_a_strong_read_that_was_given_up_spoils_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with stage() as s:
        a, b = await s.leader(), await s.follower()
        b.gate.shut()
        reads = [asyncio.create_task(s.recorder.read(b.node, consistency="strong")) for _ in range(3)]
        await eventually(lambda: b.gate.held)
        reads[0].cancel()
        await s.recorder.write(a.node)
        later = asyncio.create_task(s.recorder.read(b.node, consistency="strong"))
        await asyncio.sleep(0)
        b.gate.open()
        assert len((await later).rows) == 1
        await asyncio.gather(*reads[1:])
        b.network.outage()
        given_up = asyncio.create_task(b.node.read("SELECT 1", consistency="strong"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        b.network.outage(False)
        await s.check()
    assert not [record for record in caplog.records if "never retrieved" in record.message]
