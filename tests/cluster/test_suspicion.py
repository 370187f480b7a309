"""A leader that is lost is replaced long before `leader_timeout`; one that others reach, or that writes, is not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from littlebigcluster import Node, NodeSettings
from littlebigcluster.cluster.membership import Member
from littlebigcluster.epochs import Beacon, names
from littlebigcluster.errors import RequestTimeout
from littlebigcluster.net import Client, Response
from littlebigcluster.roles import Question
from tests.cluster.group import all_fed, group, member_client
from tests.scenarios.stage import WAIT

PATIENT: dict[str, Any] = {"leader_timeout": 3600, "poll_interval": 5, "member_timeout": 3600, "suspect_timeout": 2.0}
"""Silence alone, or a usual poll, can be the reason for nothing. Who was heard within 1.3 s is reached, and a leader is
heard every half second, if the machine does not stand still."""
LONG_SECONDS = 5.0
"""Far longer than suspicion takes, far less than silence."""


async def together(*nodes: Node) -> None:
    """All know each other, and are fed by the first."""
    await all_fed(*nodes[1:])
    for node in nodes:
        await node.members.until(lambda members: len(members) == len(nodes), timeout=WAIT)


@contextlib.contextmanager
def cut_off(leader: Node, node: Node, *others: Node) -> Iterator[None]:
    """While the block runs the node reaches neither this leader nor the others; nobody is told."""
    gone, reach = {other.address for other in (leader, *others)}, node._listener.connect
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"

        def connect(to: str) -> Client:
            return reach(address if to in gone else to)

        node._reporter._connect = node._suspicion._connect = connect
        assert leader._presence is not None
        for subscriber in leader._presence._feed._subscribers:
            subscriber.end()
        try:
            yield
        finally:
            node._reporter._connect = node._suspicion._connect = reach


async def lost(node: Node) -> None:
    await node._reporter.connected.until(lambda connected: not connected, timeout=WAIT)


# -- the leader is dead ------------------------------------------------------------------------------------------------


async def test_a_dead_leader_is_replaced_though_the_time_out_is_an_hour() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b, c = await g.node(can_lead=True, settings=PATIENT), await g.node(settings=PATIENT)
        await together(a, b, c)
        await g.crash(a)
        await b.wait_until_leader(timeout=WAIT)
        await c.execute("INSERT INTO job VALUES ('through c')", timeout=WAIT)
        assert b.term == 2


async def test_a_member_that_is_too_slow_for_the_first_round_is_heard_in_the_next_one() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b, c = await g.node(can_lead=True, settings=PATIENT), await g.node(settings=PATIENT)
        await together(a, b, c)
        waits: list[float] = []

        class Slow:
            def __init__(self, client: Client) -> None:
                self._client, self.close = client, client.close

            async def request(self, *of: Any, timeout: float, **how: Any) -> Response:
                waits.append(timeout)
                if timeout < 1.0:  # whatever the machine's speed
                    raise RequestTimeout("no answer in time")
                return await self._client.request(*of, timeout=WAIT, **how)

        with cut_off(a, b), cut_off(a, c):
            reach = b._suspicion._connect
            b._suspicion._connect = lambda to: Slow(reach(to)) if to == c.address else reach(to)  # type: ignore[assignment,return-value]
            await b.wait_until_leader(timeout=WAIT)
        assert waits[0] < 1.0 <= waits[-1]


async def test_members_that_are_gone_do_not_speak_for_the_leader() -> None:
    """Their machine answers, so this node is not what is cut off."""
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b, c = await g.node(can_lead=True, settings=PATIENT), await g.node(settings=PATIENT)
        await together(a, b, c)
        await g.crash(c)
        with cut_off(a, b):
            await b.wait_until_leader(timeout=WAIT)


async def test_without_suspicion_only_silence_counts() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b = await g.node(can_lead=True, settings={**PATIENT, "suspect_timeout": float("inf")})
        await together(a, b)
        await g.crash(a)
        await asyncio.sleep(LONG_SECONDS)
        assert not b.is_leader


async def test_of_several_standbys_the_one_with_the_highest_priority_leads() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        standbys = [await g.node(can_lead=True, leader_priority=p, settings=PATIENT) for p in (0, -1, 2, 1)]
        await together(a, *standbys)
        assert [member.leader_priority for member in a.members.value] == [0, 0, -1, 2, 1]
        for term, best in ((2, standbys[2]), (3, standbys[3])):
            await g.crash(a)
            await best.wait_until_leader(timeout=WAIT)
            await best.execute("INSERT INTO job VALUES ('next')")
            rest = [node for node in standbys if node not in (best, a)]
            for node in rest:
                await node.leader.until(lambda leader, best=best: leader and leader.uuid == best.id, timeout=WAIT)
            await all_fed(*(node for node in rest if node in g._joins))
            await best.members.until(lambda members, rest=rest: len(members) > len(rest), timeout=WAIT)
            assert best.term == term, "each claimed once, and alone"
            a = best


async def test_a_leader_that_comes_back_is_a_standby_whatever_its_priority() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT, leader_priority=9)
        b = await g.node(can_lead=True, settings=PATIENT)
        await together(a, b)
        await g.crash(a)
        await b.wait_until_leader(timeout=WAIT)
        again = await g.node(can_lead=True, settings=PATIENT, leader_priority=9)
        await all_fed(again)
        await asyncio.sleep(LONG_SECONDS)
        assert b.is_leader
        assert (b.term, again.term) == (2, 2)


async def test_a_leader_that_steps_down_leaves_it_to_the_highest_priority() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b = await g.node(can_lead=True, settings=PATIENT, leader_priority=-5)
        c = await g.node(can_lead=True, settings=PATIENT)
        await together(a, b, c)
        await a.step_down()
        await c.wait_until_leader(timeout=WAIT)
        assert not b.is_leader


# -- the leader lives --------------------------------------------------------------------------------------------------


async def test_a_leader_that_another_member_reaches_stays_until_it_dies() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b, c = await g.node(can_lead=True, settings=PATIENT), await g.node(settings=PATIENT)
        await together(a, b, c)
        with cut_off(a, b):
            await lost(b)
            await all_fed(c)
            await asyncio.sleep(LONG_SECONDS)
            assert a.is_leader
            assert a.term == 1
            await g.crash(a)
            await b.wait_until_leader(timeout=WAIT)


async def test_a_standby_that_reaches_nobody_leaves_the_leader_alone() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b, c = await g.node(can_lead=True, settings=PATIENT), await g.node(settings=PATIENT)
        await together(a, b, c)
        with cut_off(a, b, c):
            await lost(b)
            await asyncio.sleep(LONG_SECONDS)
        await all_fed(b)
        assert a.is_leader
        assert b.term == 1


async def test_a_leader_that_nobody_reaches_but_that_writes_stays() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b = await g.node(can_lead=True, settings=PATIENT)
        await together(a, b)
        with cut_off(a, b):
            await lost(b)
            until = time.monotonic() + LONG_SECONDS
            while time.monotonic() < until:
                await a.execute("INSERT INTO job VALUES ('unheard')")
                await asyncio.sleep(0.3)
            assert a.is_leader
            assert b.term == 1


async def test_a_leader_that_nobody_reaches_but_that_shows_beacons_stays() -> None:
    async with group() as g:
        a = await g.leader(settings={**PATIENT, "leader_timeout": 1.5})
        b = await g.node(can_lead=True, settings=PATIENT)
        await together(a, b)
        before = Beacon.decode(await g.store.get(names.BEACON))
        with cut_off(a, b):
            await lost(b)
            await asyncio.sleep(LONG_SECONDS)
            assert a.is_leader
            assert b.term == 1
        after = Beacon.decode(await g.store.get(names.BEACON))
        assert after is not None
        assert after.count > (before.count if before else 0)


async def test_two_nodes_that_do_not_reach_each_other_change_the_leader_once() -> None:
    """The one that lost it does not hear the new one either, and so has nothing to lose."""
    async with group() as g:
        a = await g.leader(settings={**PATIENT, "leader_timeout": 30})
        b = await g.node(can_lead=True, settings=PATIENT)
        await together(a, b)
        with cut_off(a, b):
            await b.wait_until_leader(timeout=WAIT)
            assert a._leadership is not None
            a._leadership.doubt()  # it would look by itself, in its time
            reach = a._listener.connect
            with socket.create_server(("127.0.0.1", 0)) as mute:
                address = f"127.0.0.1:{mute.getsockname()[1]}"
                a._reporter._connect = a._suspicion._connect = lambda to: reach(address)
                await a._leads.until(lambda leads: not leads, timeout=WAIT)
                await asyncio.sleep(LONG_SECONDS)
            assert b.is_leader
            assert (a.term, b.term) == (2, 2)
            a._reporter._connect = a._suspicion._connect = reach
        await all_fed(a)


# -- what members say --------------------------------------------------------------------------------------------------


async def test_a_member_tells_whether_it_hears_the_leader() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b = await g.node(settings=PATIENT)
        await together(a, b)
        async with member_client(g, b, "asking") as client:
            path = f"/.lbc/reaches?leader={a.id}"
            await answers(client, path, {"reaches": True})
            assert await client.get_json(f"/.lbc/reaches?leader={b.id}") == {"reaches": False}
            assert await client.get_json("/.lbc/reaches") == {"reaches": False}
            with cut_off(a, b):
                await answers(client, path, {"reaches": False})


async def answers(client: Client, path: str, expected: Any) -> None:
    """In the end."""
    async with asyncio.timeout(WAIT):
        while await client.get_json(path) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_members_of_older_versions_have_no_priority() -> None:
    value = Member(UUID(int=1), "127.0.0.1:1").to_json()
    del value["leader_priority"]
    assert Member.from_json(value).leader_priority == 0
    assert Member.from_json({**value, "leader_priority": 7, "yet unknown": 1}).leader_priority == 7
    for bad in (True, "7", 1.5):
        with pytest.raises(TypeError):
            Member.from_json({**value, "leader_priority": bad})
    with pytest.raises(ValueError, match="at most"):
        Member.from_json({**value, "leader_priority": 1001})


def test_a_time_out_shorter_than_a_few_heartbeats_is_refused() -> None:
    with pytest.raises(ValueError, match="suspect_timeout"):
        NodeSettings(suspect_timeout=0.9)
    assert NodeSettings(suspect_timeout=float("inf")).suspect_timeout == float("inf")


async def test_an_answer_that_cannot_be_read_is_none() -> None:
    async with group() as g:
        a = await g.leader(settings=PATIENT)
        b = await g.node(can_lead=True, settings=PATIENT)
        await together(a, b)
        deep = Response(200, {}, b"[" * 200_000)

        class Deep:
            async def request(self, *_: Any, **__: Any) -> Response:
                return deep

            async def close(self) -> None:
                pass

        b._suspicion._connect = lambda _: Deep()  # type: ignore[assignment,return-value]
        leader = b.leader.value
        assert leader is not None
        findings = await b._suspicion._ask_around(Question(leader, 1, 0.5))
        assert findings.leader == "silent"
