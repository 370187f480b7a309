"""Who leads: take-over, fencing, release, and the way back."""

from __future__ import annotations

import asyncio

import pytest

from littlebigcluster import NotLeader, OutcomeUnknown, StoreUnavailable
from littlebigcluster.epochs import names
from littlebigcluster.store import Fault
from tests.scenarios.stage import WAIT, Actor, eventually, stage


def leaders(*actors: Actor) -> list[Actor]:
    return [actor for actor in actors if actor.node.is_leader]


class Refusing:
    """From now on the store refuses to create objects, for good."""

    def __init__(self, actor: Actor) -> None:
        self._network = actor.network
        self._network.create = self._refuse  # type: ignore[method-assign, assignment]

    async def _refuse(self, key: str, body: bytes) -> None:
        raise StoreUnavailable(f"403 Forbidden: {key}", transient=False)

    def end(self) -> None:
        del self._network.create  # type: ignore[method-assign]


async def test_a_standby_takes_over_from_a_leader_that_died() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        follower = await s.follower()
        await s.recorder.writes(a.node, 5)
        await a.kill()
        await b.node.wait_until_leader(timeout=WAIT)
        assert b.node.term == 2
        await s.recorder.writes(b.node, 5)
        await follower.node.leader.until(lambda leader: leader and leader.uuid == b.node.id, timeout=WAIT)
        assert s.recorder.history.count("acknowledged") == 10
        await s.check()


async def test_a_standby_takes_over_at_once_from_a_leader_that_leaves() -> None:
    async with stage() as s:
        # With these time-outs only the release can be the reason.
        a = await s.leader(leader_timeout=3600)
        b = await s.actor(leader_timeout=3600)
        await s.recorder.write(a.node)
        await a.leave()
        await b.node.wait_until_leader(timeout=WAIT)
        await s.recorder.write(b.node)
        await s.check()


async def test_of_two_standbys_one_claims_and_the_other_follows() -> None:
    async with stage() as s:
        a = await s.leader()
        b, c = await s.actor(), await s.actor()
        await s.recorder.write(a.node)
        await a.kill()
        await eventually(lambda: leaders(b, c))
        (winner,) = leaders(b, c)
        other = c if winner is b else b
        assert await s.recorder.write(winner.node) == "acknowledged"
        await other.node.leader.until(lambda leader: leader and leader.uuid == winner.node.id, timeout=WAIT)
        assert not other.node.is_leader
        assert await s.recorder.write(other.node) == "refused"
        await s.check()


async def test_of_many_that_join_at_once_one_leads() -> None:
    async with stage() as s:
        nodes = await asyncio.gather(*(s.actor() for _ in range(5)))
        await eventually(lambda: leaders(*nodes))
        (leader,) = leaders(*nodes)
        await s.recorder.prepare(leader.node)
        fates = [await s.recorder.write(actor.node) for actor in nodes]
        assert fates.count("acknowledged") == 1
        await s.check()
        assert {actor.node.term for actor in nodes} == {1}


async def test_a_frozen_leader_is_replaced_and_fenced_and_rejoins_as_standby() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        a.gate.shut()
        late = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: a.gate.held)
        await b.node.wait_until_leader(timeout=WAIT)
        await s.recorder.write(b.node)
        assert a.node.is_leader  # it cannot know
        a.gate.open()
        assert await late == "refused"
        await a.node.leader.until(lambda leader: leader and leader.uuid == b.node.id, timeout=WAIT)
        assert not a.node.is_leader
        assert await s.recorder.write(a.node) == "refused"
        await s.check()


async def test_a_statement_that_a_fenced_leader_had_taken_is_done_by_the_next_one() -> None:
    async with stage() as s:
        a = await s.leader(feed=True)
        b = await s.actor(feed=True)
        a.gate.shut()
        late = [asyncio.create_task(s.recorder.forward(a.node)) for _ in range(3)]
        await eventually(lambda: a.gate.held)
        await b.node.wait_until_leader(timeout=WAIT)
        a.gate.open()
        assert await asyncio.gather(*late) == ["acknowledged"] * 3
        assert not a.node.is_leader
        await s.check()


async def test_an_idle_frozen_leader_finds_out_by_itself() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        a.gate.shut()
        await b.node.wait_until_leader(timeout=WAIT)
        a.gate.open()
        await eventually(lambda: not a.node.is_leader)
        await s.check()


async def test_a_fenced_leader_can_lead_again() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        for round_number in range(2):
            first, second = (a, b) if round_number == 0 else (b, a)
            first.gate.shut()
            await second.node.wait_until_leader(timeout=WAIT)
            await s.recorder.writes(second.node, 3)
            first.gate.open()
            await eventually(lambda first=first: not first.node.is_leader)
        assert a.node.is_leader
        assert a.node.term == 3
        await s.recorder.writes(a.node, 3)
        await s.check()


async def test_a_zombie_of_the_old_leader_comes_too_late() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        a.network._zombie_seconds = None  # only in settle
        a.network.next("create", Fault.HANG)
        late = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: a.network.zombies)
        a.gate.shut()
        await b.node.wait_until_leader(timeout=WAIT)
        await s.recorder.write(b.node)
        a.gate.open()
        await a.network.settle()
        assert await late == "refused"
        await s.check()


async def test_a_zombie_of_a_dead_leader_that_arrives_in_time_is_followed() -> None:
    """The write is unknown to who wrote it, and durable. The standby sees it, and goes on from it."""
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        a.network._zombie_seconds = None
        a.network.next("create", Fault.HANG)
        late = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: a.network.zombies)
        zombie = asyncio.create_task(a.network.settle())
        await a.kill()
        await zombie
        assert await late == "unknown"
        await b.node.wait_until_leader(timeout=WAIT)
        await s.recorder.write(b.node)
        state = await s.recorder.check(b.node)
        assert [write for write, _ in state.rows] == [1, 2]


async def test_a_release_is_followed_by_a_claim_of_the_same_node_at_the_next_join() -> None:
    async with stage() as s:
        for term in range(1, 4):
            a = await s.leader()
            assert a.node.term == term
            await s.recorder.write(a.node)
            await a.leave()
        await s.check()


async def test_writes_in_flight_at_a_shutdown_are_finished_or_refused() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        a.gate.shut("create")
        running = [asyncio.create_task(s.recorder.write(a.node)) for _ in range(50)]
        await eventually(lambda: a.gate.held)
        running += [asyncio.create_task(s.recorder.write(a.node)) for _ in range(50)]
        leaving = asyncio.create_task(a.leave())
        await asyncio.sleep(0)
        a.gate.open()
        fates = await asyncio.gather(*running)
        await leaving
        assert "unknown" not in fates
        assert fates[:50] == ["acknowledged"] * 50
        await b.node.wait_until_leader(timeout=WAIT)
        await s.check()


async def test_a_shutdown_without_the_store_ends_in_time_and_tells_what_it_does_not_know() -> None:
    async with stage() as s:
        a = await s.leader(shutdown_timeout=0.3)
        a.network.outage()
        running = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: "create" in [operation for operation, *_ in a.network.faults])
        async with asyncio.timeout(WAIT):
            await a.leave()
            assert await running == "unknown"
        await s.check()


async def test_a_second_cancel_ends_a_shutdown_at_once() -> None:
    async with stage() as s:
        a = await s.leader(shutdown_timeout=3600, write_timeout=3600)
        a.gate.shut()
        running = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: a.gate.held)
        async with asyncio.timeout(WAIT):
            await a.kill()
            assert await running == "unknown"
        left = [task.get_name() for task in asyncio.all_tasks() if str(a.node.id) in task.get_name()]
        assert left == []


async def test_a_follower_does_not_take_writes_and_names_the_leader() -> None:
    async with stage() as s:
        a = await s.leader(az="north")
        b = await s.follower()
        with pytest.raises(NotLeader) as caught:
            b.node.submit(lambda db: None)
        assert caught.value.leader.uuid == a.node.id
        assert caught.value.leader.az == "north"
        await s.check()


async def test_a_store_that_takes_no_more_writes_ends_a_leadership_with_clear_errors() -> None:
    """No permission, for example. Nobody can lead then; when somebody has repaired it all goes on."""
    async with stage() as s:
        a = await s.leader()
        refuse = Refusing(a)
        assert await s.recorder.writes(a.node, 3) == ["refused"] * 3
        await eventually(lambda: not a.node.is_leader)
        assert (await s.recorder.read(a.node)).rows == []
        refuse.end()
        await a.node.wait_until_leader(timeout=WAIT)
        assert await s.recorder.write(a.node) == "acknowledged"
        await s.check()


async def test_a_slow_transaction_does_not_cost_the_leadership() -> None:
    """It takes longer than the standby waits for a sign of life."""
    async with stage() as s:
        a = await s.leader(transaction_timeout=2.5)
        b = await s.actor()
        slow = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
        fate = await s.recorder.write(a.node, lambda db: db.execute(slow).fetchall(), timeout=60)
        assert fate == "refused"  # transaction_timeout
        assert a.node.is_leader
        assert not b.node.is_leader
        assert a.node.term == 1
        await s.check()


async def test_pacing_does_not_cost_the_leadership() -> None:
    async with stage() as s:
        a = await s.leader(epoch_interval=2.5, epoch_burst=1)
        b = await s.actor()
        assert await s.recorder.write(a.node) == "acknowledged"
        assert not b.node.is_leader
        assert a.node.term == 1
        await s.check()


async def test_a_foreign_beacon_is_no_sign_of_life() -> None:
    async with stage() as s:
        a = await s.leader()
        b = await s.actor()
        beacon = await s.store.get(names.BEACON)
        await a.kill()
        stop = asyncio.Event()

        async def repeat() -> None:
            while not stop.is_set():
                if beacon is not None:
                    await s.store.put(names.BEACON, beacon)
                await s.store.put(names.BEACON, b'{"cluster_id":"lol","term":0,"epoch":9,"count":99}')
                await asyncio.sleep(0.02)

        repeating = asyncio.create_task(repeat())
        await b.node.wait_until_leader(timeout=WAIT)
        stop.set()
        await repeating
        await s.check(b)


@pytest.mark.parametrize("feed", [False, True])
async def test_a_leader_whose_epochs_do_not_get_through_is_replaced_though_its_beacons_do(feed: bool) -> None:
    async with stage() as s:
        a = await s.leader(feed=feed)
        b = await s.actor(feed=feed)
        a.gate.shut("create")
        late = asyncio.create_task(s.recorder.write(a.node))
        await eventually(lambda: a.gate.held)
        await b.node.wait_until_leader(timeout=WAIT)
        assert await s.recorder.write(b.node) == "acknowledged"
        a.gate.open()
        assert await late == "refused"
        await s.check()


async def test_an_outcome_that_stays_unknown_names_the_epoch() -> None:
    async with stage() as s:
        a = await s.leader(shutdown_timeout=0.2)
        epoch = a.node.epoch.value
        a.gate.shut("create")
        pending = a.node.submit(lambda db: db.execute("INSERT INTO op VALUES (0, 0)") and None)
        await eventually(lambda: a.gate.held)
        await a.leave()
        with pytest.raises(OutcomeUnknown) as caught:
            await pending
        assert caught.value.epoch == epoch + 1


async def test_a_batch_that_nobody_fetches_any_more_is_refused_at_once() -> None:
    """The node ends between the moment when a batch is ready and the one when it would be sent."""
    async with stage() as s:
        a = await s.leader(shutdown_timeout=0, write_timeout=3600)
        writer = a.node._leadership.writer  # type: ignore[union-attr]
        deliver = writer._deliver  # type: ignore[union-attr]

        def deliver_and_end(batch: object) -> None:
            deliver(batch)  # type: ignore[arg-type]
            a._task.cancel()  # type: ignore[union-attr]
            for task in asyncio.all_tasks():
                if str(a.node.id) in task.get_name():
                    task.cancel()

        writer._deliver = deliver_and_end  # type: ignore[union-attr, method-assign]
        async with asyncio.timeout(WAIT):
            assert await s.recorder.write(a.node) == "refused"
        await a.wait()
        await s.check()
