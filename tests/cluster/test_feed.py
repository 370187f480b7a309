"""The feed: what is durable reaches every follower at once, and whatever goes wrong with it, the store decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

import pytest

from littlebigcluster import Node
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import feed, frames, presence
from littlebigcluster.cluster.fed import Reporter
from littlebigcluster.cluster.feed import Feed, Subscriber
from littlebigcluster.cluster.membership import Members
from littlebigcluster.epochs import codec
from littlebigcluster.epochs.codec import Entry
from littlebigcluster.errors import CorruptLog
from littlebigcluster.store import Faulty, Store, Wrapper
from littlebigcluster.store.wrappers import Operation
from littlebigcluster.watch import Watch
from tests.cluster.group import HUGE, Group, all_fed, at_rest, counted, eventually, group, member_client, report, within
from tests.net.relay import Relay
from tests.ports import free_port
from tests.scenarios.stage import WAIT

T = TypeVar("T")

QUIET = {"leader_timeout": 20.0}
"""Nobody becomes suspicious while the test runs."""
FED_ONLY = {"leader_timeout": 20.0, "poll_interval": HUGE, "suspect_timeout": inf}
"""What this node learns, it learns from the feed: when nothing comes for a moment, it does not look at the store."""


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, left


async def rows(node: Node) -> list[Any]:
    return [name for (name,) in await node.read("SELECT name FROM job ORDER BY rowid")]


async def write(node: Node, name: str) -> int:
    return (await node.execute("INSERT INTO job VALUES (?)", (name,))).epoch


async def fed_pair(g: Group, **settings: Any) -> tuple[Node, Node]:
    a = await g.leader(settings=QUIET)
    b = await g.node(settings={**FED_ONLY, **settings})
    await b.epoch.until(lambda epoch: epoch == a.epoch.value, timeout=WAIT)
    await at_rest(b)
    return a, b


# -- what it is for ------------------------------------------------------------------------------------------------


async def test_an_epoch_reaches_all_followers_without_a_single_request_to_the_store() -> None:
    async with group() as g:
        a = await g.leader(settings=QUIET)
        stores = [counted(g.store) for _ in range(3)]
        followers = [await g.node(store=store, settings=FED_ONLY) for store in stores]
        for node in followers:
            await node.epoch.until(lambda epoch: epoch == a.epoch.value, timeout=WAIT)
        await at_rest(*followers)
        for store in stores:
            store.reset()
        for name in "abcde":
            epoch = await write(a, name)
        for node in followers:
            await node.epoch.until(lambda now: now >= epoch, timeout=WAIT)
            assert await rows(node) == list("abcde")
        assert [dict(store.requests) for store in stores] == [{}, {}, {}]


async def test_an_idle_follower_asks_the_store_rarely_while_it_is_fed_and_often_while_it_is_not() -> None:
    async with group() as g:
        a = await g.leader(settings=QUIET)
        fed, unfed = counted(g.store), counted(g.store)
        b = await g.node(store=fed, settings={**QUIET, "suspect_timeout": inf})
        await all_fed(b)
        c = await g.node(store=unfed, settings=QUIET)
        await all_fed(c)
        await g.unfeed(c, a)
        await all_fed(b)
        for _ in range(2):  # the first time, for the looks when the feed came up
            fed.reset()
            unfed.reset()
            await eventually(lambda: sum(unfed.requests.values()) >= 15)
        assert sum(fed.requests.values()) <= 1
        assert a.is_leader


async def test_a_large_epoch_is_named_and_fetched_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LARGE_BYTES", 20_000)
    async with group() as g:
        a = await g.leader(settings=QUIET)
        store = counted(g.store)
        b = await g.node(store=store, settings=FED_ONLY)
        await all_fed(b)
        offered: list[int] = []
        offer = b._follower.offer
        b._follower.offer = lambda epoch, body: (offered.append(epoch), offer(epoch, body))[1]  # type: ignore[method-assign]
        small = await write(a, "small")
        await b.epoch.until(lambda epoch: epoch >= small, timeout=WAIT)
        store.reset()
        large = (await a.execute("INSERT INTO job VALUES (hex(randomblob(40000)))")).epoch
        await b.epoch.until(lambda epoch: epoch >= large, timeout=WAIT)
        assert store.requests["get"] >= 1
        after = await write(a, "after")
        await b.epoch.until(lambda epoch: epoch >= after, timeout=WAIT)
        assert offered == [small, after]


class Slow(Wrapper):
    """What it has found out it keeps for itself until it is let."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.found, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        result = await send()
        self.found.set()
        await self.go_on.wait()
        return result


async def test_an_epoch_that_is_named_while_the_store_answers_that_there_is_none_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "LARGE_BYTES", 20_000)
    async with group() as g:
        a, store = await g.leader(settings=QUIET), Slow(g.store)
        b = await g.node(store=store, settings=FED_ONLY)
        await at_rest(b)
        store.go_on.clear()
        store.found.clear()
        b._follower.nudge()
        await within(store.found.wait())
        named = asyncio.Event()
        nudge = b._follower.nudge
        b._follower.nudge = lambda: (nudge(), named.set())[0]  # type: ignore[method-assign,func-returns-value]
        epoch = (await a.execute("INSERT INTO job VALUES (hex(randomblob(40000)))")).epoch
        await within(named.wait())
        store.go_on.set()
        await b.epoch.until(lambda now: now >= epoch, timeout=WAIT)


async def test_a_write_is_visible_on_the_follower_before_the_followers_next_poll_could_tell() -> None:
    async with group() as g:
        a, b = await fed_pair(g)
        lags = []
        for _ in range(20):
            epoch = await write(a, "x")
            start = time.perf_counter()
            await b.epoch.until(lambda now, epoch=epoch: now >= epoch, timeout=WAIT)
            lags.append(time.perf_counter() - start)
        assert sorted(lags)[10] < 0.1


# -- what may go wrong on it ---------------------------------------------------------------------------------------


async def test_a_hole_in_the_feed_is_filled_from_the_store() -> None:
    async with group() as g:
        a, b = await fed_pair(g)
        offer, missed = b._follower.offer, []
        b._follower.offer = lambda epoch, body: missed.append(epoch)  # type: ignore[method-assign]
        lost = await write(a, "lost on the way")
        await eventually(lambda: missed == [lost])
        b._follower.offer = offer  # type: ignore[method-assign]
        assert b.epoch.value == lost - 1
        epoch = await write(a, "next")
        await b.epoch.until(lambda now: now >= epoch, timeout=WAIT)
        assert await rows(b) == ["lost on the way", "next"]


def flipped(entry: Entry, body: bytes) -> bytes:
    return body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]


def truncated(entry: Entry, body: bytes) -> bytes:
    return body[: len(body) // 2]


def of_another_chain(entry: Entry, body: bytes) -> bytes:
    return reheaded(body, previous_sha256="0" * 64)


def of_another_cluster(entry: Entry, body: bytes) -> bytes:
    return reheaded(body, cluster_id="other")


def of_another_state(entry: Entry, body: bytes) -> bytes:
    return reheaded(body, state_checksum="0123456789abcdef")


def reheaded(body: bytes, **changes: Any) -> bytes:
    metadata, start = codec.decode_header(body, name="x")
    return codec.encode_header(replace(metadata, **changes)) + body[start:]


@pytest.mark.parametrize("spoil", [flipped, truncated, of_another_chain, of_another_cluster, of_another_state])
async def test_a_wrong_frame_is_not_applied_and_the_store_decides(
    spoil: Callable[[Entry, bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with group() as g:
        a, b = await fed_pair(g)
        offer = b._follower.offer

        def spoilt(epoch: int, body: bytes) -> None:
            offer(epoch, spoil(codec.decode(body, name="x"), body))

        b._follower.offer = spoilt  # type: ignore[method-assign]
        epoch = await write(a, "true")
        await b.epoch.until(lambda now: now >= epoch, timeout=WAIT)
        b._follower.offer = offer  # type: ignore[method-assign]
        epoch = await write(a, "fed again")
        await b.epoch.until(lambda now: now >= epoch, timeout=WAIT)
        assert await rows(b) == ["true", "fed again"]
        assert b._local.log.position == a._local.log.position
        assert b._local.replica.checksum == a._local.replica.checksum
        assert any(record.levelno == logging.WARNING for record in caplog.records)


class Deaf:
    """A follower that hears everything and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.mark.parametrize("kind", [frames.EPOCH, frames.NAMED, frames.KEEP_ALIVE, frames.MEMBERS, frames.GOODBYE, b"?"])
@pytest.mark.parametrize(
    "payload",
    [b"", b"\0" * 20, b"null", b"[]", b"{}", b"5", b'"x"', b'{"term":null}', b'{"term":1,"store_age":[]}',
     b'{"term":1e999,"store_age":1}', b'{"term":1,"number":1,"members":5}', b'{"term":1,"number":1,"members":[null]}',
     b'{"term":"x","number":1,"members":[]}', b"[" * 100_000, b"\xff\xfe"],
    ids=lambda payload: repr(payload[:30]),
)  # fmt: skip
def test_a_frame_that_cannot_be_read_breaks_the_feed_and_not_the_node(kind: bytes, payload: bytes) -> None:
    seen: list[Members] = []
    reporter = Reporter(
        Watch(None), me=lambda: None, session="s", connect=_no_client, follower=Deaf(), report_interval=1,
        on_members=seen.append, clock=Clock(),
    )  # fmt: skip  # type: ignore[arg-type,return-value]
    with contextlib.suppress(ValueError, CorruptLog):
        reporter._take(kind, payload)
    assert seen == []


def _no_client(address: str) -> Any:
    raise ValueError("no clients here")


# -- the stream breaks, and comes back -------------------------------------------------------------------------------


@asynccontextmanager
async def relayed_leader(g: Group, **settings: Any) -> AsyncIterator[tuple[Node, Relay]]:
    """A leader that the others reach over a relay only."""
    port = free_port()
    async with Relay(("127.0.0.1", port)) as relay:
        address = {"address": f"127.0.0.1:{port}", "advertise": f"127.0.0.1:{relay.port}"}
        yield await g.leader(**address, settings={**QUIET, **settings}), relay


async def test_a_node_that_only_follows_holds_one_connection() -> None:
    async with group() as g, relayed_leader(g) as (a, relay):
        b = await g.node(settings=FED_ONLY)
        await all_fed(b)
        for name in "abc":
            epoch = await write(a, name)
            await b.epoch.until(lambda now, epoch=epoch: now >= epoch, timeout=WAIT)
        reported = {"reported": True}
        b.set_metadata(reported)
        await a.members.until(lambda members: any(each.metadata == reported for each in members), timeout=WAIT)
        assert relay.connections == 1
        await write(b, "forwarded")
        await write(b, "forwarded over the same one")
        assert relay.connections == 2
        await g.close()


async def test_a_broken_stream_is_made_again() -> None:
    async with group() as g, relayed_leader(g) as (a, relay):
        b = await g.node(settings=FED_ONLY)
        await all_fed(b)
        relay.cut()
        await eventually(lambda: not b._reporter.connected.value)
        await all_fed(b)
        epoch = await write(a, "x")
        await b.epoch.until(lambda now: now >= epoch, timeout=WAIT)
        await g.close()


async def test_a_silent_stream_is_given_up_for_polling_and_taken_up_again() -> None:
    async with group() as g, relayed_leader(g, member_timeout=1) as (a, relay):
        # While it takes itself for fed, it looks at the store every 45 s.
        b = await g.node(settings={"leader_timeout": 60.0, "suspect_timeout": inf, "member_timeout": 1})
        await all_fed(b)
        await eventually(lambda: len(a.members.value) == 2)
        relay.swallow()
        epoch = await write(a, "by polling")
        await b.epoch.until(lambda now: now >= epoch, timeout=WAIT)
        assert not b._reporter.connected.value
        # TCP says that all is well, but nothing was heard of the member.
        await eventually(lambda: len(a.members.value) == 1, "the silent member is taken off the list")
        relay.flow()
        await all_fed(b)
        await eventually(lambda: len(a.members.value) == 2)
        await g.close()


async def test_a_follower_that_does_not_read_is_dropped_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WAITING_BYTES", 2 << 20)
    async with group() as g:
        a, b = await fed_pair(g)
        assert a._presence is not None
        subscribers = a._presence._feed._subscribers.keys()
        stranger = a._clock.uuid7()
        fine = set(subscribers)
        async with member_client(g, a, str(stranger)) as client:
            body = report(stranger)
            async with client.stream("POST", "/.lbc/feed", body=body, timeout=5) as stream:
                assert stream.status == 200
                await anext(stream)
                [slow] = subscribers - fine
                for _ in range(25):
                    done = await a.execute("INSERT INTO job VALUES (randomblob(900000))")
                    assert slow._waiting_bytes <= feed.MAX_WAITING_BYTES
                    if slow.dropped:
                        break
                    await b.epoch.until(lambda now, epoch=done.epoch: now >= epoch, timeout=WAIT)
                assert slow.dropped
                assert slow._waiting_bytes == 0
                await b.epoch.until(lambda now: now >= done.epoch, timeout=WAIT)
                assert b._reporter.connected.value
        await eventually(lambda: slow not in subscribers, "what was dropped is forgotten")


async def test_clients_that_leave_before_the_first_frame_leave_nothing_behind() -> None:
    async with group() as g:
        a = await g.leader(settings=QUIET)
        assert a._presence is not None
        stranger = a._clock.uuid7()
        async with member_client(g, a, str(stranger)) as client:
            for delay in [0, 0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02] * 3:
                ask = asyncio.create_task(client.request("POST", "/.lbc/feed", body=report(stranger), timeout=5))
                await asyncio.sleep(delay)
                ask.cancel()
                await asyncio.wait([ask])
            await eventually(lambda: len(a._presence._feed) == 0)


# -- leaders come and go -----------------------------------------------------------------------------------------------


async def test_followers_move_to_the_feed_of_the_next_leader() -> None:
    async with group() as g:
        a = await g.leader(settings=QUIET)
        b = await g.node(can_lead=True, settings=QUIET)
        c = await g.node(settings=QUIET)
        await all_fed(b, c)
        await g.leave(a)
        await b.wait_until_leader(timeout=WAIT)
        await c.leader.until(lambda leader: leader and leader.uuid == b.id, timeout=WAIT)
        await all_fed(c)
        assert not b._reporter.connected.value
        epoch = await write(b, "x")
        await c.epoch.until(lambda now: now >= epoch, timeout=WAIT)


async def test_the_chosen_successor_alone_claims_and_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "littlebigcluster")
    async with group() as g:
        a = await g.leader(az="1", settings=QUIET)
        others = [
            await g.node(can_lead=True, az=az, settings={**QUIET, "poll_interval": 30}) for az in ("1", "1", "2", "1")
        ]
        follower = await g.node(settings=QUIET)
        await all_fed(*others, follower)
        await eventually(lambda: [each.epoch for each in a.members.value] == [a.epoch.value] * 6, "all are level")
        caplog.clear()
        start = time.perf_counter()
        await g.leave(a)
        await others[2].wait_until_leader(timeout=WAIT)
        assert time.perf_counter() - start < 15, "neither by a poll nor as nothing is heard of the former leader"
        claims = [record for record in caplog.records if record.getMessage().startswith("claiming")]
        assert len(claims) == 1
        assert not any(node.is_leader for node in (*others[:2], others[3], follower))


async def test_if_the_chosen_successor_has_just_died_another_one_claims() -> None:
    async with group() as g:
        a = await g.leader(az="1", settings=QUIET)
        chosen = await g.node(can_lead=True, az="2", settings=QUIET)
        other = await g.node(can_lead=True, az="1", settings=QUIET)
        await all_fed(chosen, other)
        await eventually(lambda: [each.epoch for each in a.members.value] == [a.epoch.value] * 3)
        await g.crash(chosen)
        await g.leave(a)
        await other.wait_until_leader(timeout=WAIT)


async def test_a_leader_that_answers_but_does_not_reach_the_store_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "KEEP_ALIVE_SECONDS", 0.1)  # in proportion to the time-out
    settings = {"leader_timeout": 2.5, "poll_interval": 0.1}
    async with group() as g:
        network = Faulty(g.store)
        a = await g.leader(store=network, settings=settings)
        b = await g.node(can_lead=True, settings=settings)
        c = await g.node(settings=settings)
        await all_fed(b, c)
        broke = []
        watching = asyncio.create_task(b._reporter.connected.until(lambda up: not up))
        watching.add_done_callback(lambda _: broke.append(time.perf_counter()))
        network.outage()
        start = time.perf_counter()
        await b.wait_until_leader(timeout=WAIT)
        took = time.perf_counter() - start
        watching.cancel()
        # How long at most is shown on virtual time: tests/simulation/test_without_the_store.py.
        assert took > 1.0, "as long as the silence of a leader that is gone, about"
        assert not broke or broke[0] - start > took - 0.5, "the old leader fed it until then"
        await c.leader.until(lambda leader: leader and leader.uuid == b.id, timeout=WAIT)
        network.outage(False)
        await eventually(lambda: not a.is_leader)
        await all_fed(a, c)
        await network.close()


async def test_a_leader_that_crashes_is_replaced_after_its_timeout_and_members_are_heard_anew() -> None:
    settings = {"leader_timeout": 1.2, "member_timeout": 1.5}
    async with group() as g:
        a = await g.leader(settings=settings)
        b = await g.node(can_lead=True, settings=settings)
        c = await g.node(settings=settings, metadata={"x": 1})
        await all_fed(b, c)
        await eventually(lambda: len(b.members.value) == 3)
        term = b.members.value.term
        await g.crash(a)
        await b.wait_until_leader(timeout=10)
        seen = [[member.id for member in b.members.value]]
        assert seen == [[a.id, b.id, c.id]], "the new leader starts from the last view"
        await eventually(lambda: [member.id for member in b.members.value] == [b.id, c.id])
        await eventually(lambda: c.members.value == b.members.value)
        assert c.members.value.term == term + 1
        await asyncio.sleep(0.5)
        assert [member.id for member in b.members.value] == [b.id, c.id], "who is alive stays"


# -- the leader's side, by itself -----------------------------------------------------------------------------------


async def everything(subscriber: Subscriber) -> list[tuple[bytes, bytes]]:
    subscriber.end()
    return await all_of(subscriber)


async def all_of(subscriber: Subscriber) -> list[tuple[bytes, bytes]]:
    unpacker = frames.Unpacker()
    return [frame async for piece in subscriber.frames() for frame in unpacker.feed(piece)]


async def test_a_follower_that_connects_a_little_behind_gets_what_it_missed() -> None:
    f = Feed(10)
    for epoch in range(11, 16):
        f.publish_epoch(epoch, b"%d" % epoch)
    assert await everything(f.subscribe(13)) == [(frames.EPOCH, b"14"), (frames.EPOCH, b"15")]
    assert await everything(f.subscribe(15)) == []
    assert await everything(f.subscribe(99)) == []
    assert len(await everything(f.subscribe(10))) == 5


@pytest.mark.parametrize("epoch", [9, 0, -1])
async def test_one_that_is_further_behind_is_sent_to_the_store(epoch: int) -> None:
    f = Feed(10)
    f.publish_epoch(11, b"x")
    assert await everything(f.subscribe(epoch)) == [(frames.NAMED, b"11")]


async def test_what_is_kept_for_those_who_connect_is_bounded_and_never_more_than_may_wait() -> None:
    f = Feed(0)
    size = feed.LARGE_BYTES - 1
    for epoch in range(1, 60):
        f.publish_epoch(epoch, bytes(size))
    assert f._recent_bytes <= feed.RECENT_BYTES
    kept = len(f._recent)
    assert kept > 1
    subscriber = f.subscribe(59 - kept)
    assert not subscriber.dropped
    assert len(await everything(subscriber)) == kept
    [(kind, _)] = await everything(f.subscribe(59 - kept - 1))
    assert kind == frames.NAMED


async def test_what_waits_for_one_that_does_not_read_is_bounded() -> None:
    f = Feed(0)
    slow, quick = f.subscribe(0), f.subscribe(0)
    reading = quick.frames()
    received = 0
    for epoch in range(1, 40):
        f.publish_epoch(epoch, bytes(1 << 19))
        received += len(await anext(reading))
        assert slow._waiting_bytes <= feed.MAX_WAITING_BYTES
    assert slow.dropped
    assert not quick.dropped
    assert received > 39 << 19
    assert await everything(slow) == []
    await reading.aclose()


async def test_what_waits_for_many_is_held_once() -> None:
    f = Feed(0)
    slow = [f.subscribe(0).frames() for _ in range(3)]
    published = [frames.pack_json(frames.KEEP_ALIVE, {"term": number}) for number in range(4)]
    for frame in published:
        f.publish(frame)
    for reading in slow:
        assert all([await within(anext(reading)) is frame for frame in published])
        await reading.aclose()


async def test_the_end_of_a_feed_lets_out_what_waits() -> None:
    f = Feed(0)
    subscriber = f.subscribe(0)
    f.publish_epoch(1, b"last")
    f.publish(frames.pack_json(frames.GOODBYE, {"successor": None}))
    f.end()
    assert [kind for kind, _ in await everything(subscriber)] == [frames.EPOCH, frames.GOODBYE]


async def test_who_subscribes_when_all_has_ended_is_ended_too() -> None:
    """Its request came before, and its stream begins after."""
    f = Feed(0)
    f.publish_epoch(1, b"x")
    f.end()
    assert await within(all_of(f.subscribe(0))) == [(frames.EPOCH, b"x")]
