"""Keys of writes: the same write with the same key is done once, on whichever node it is repeated."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from littlebigcluster import Leader, Node, OutcomeUnknown, PeerUnavailable
from littlebigcluster.cluster import forward, statements
from littlebigcluster.cluster.forward import Forwarder
from littlebigcluster.net import Client
from littlebigcluster.watch import Watch
from tests.clocks import HandClock
from tests.cluster.group import Group, group

INSERT = "INSERT INTO job VALUES (?) RETURNING rowid"


@dataclass
class Pair:
    group: Group
    leader: Node
    follower: Node

    async def rows(self) -> list[Any]:
        return await self.follower.read("SELECT name FROM job", consistency="strong")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with group() as g:

        @g.cluster.procedure
        def add(db: sqlite3.Connection, key: str) -> str:
            db.execute("INSERT INTO job VALUES (?)", (key,))
            return key

        yield Pair(g, await g.leader(), await g.node())


async def test_a_repetition_gets_the_first_answer_on_every_node(pair: Pair) -> None:
    first = await pair.follower.execute(INSERT, (b"\x00",), key="order-17")
    for node in (pair.follower, pair.leader):
        again = await node.execute(INSERT, (b"\x00",), key="order-17")
        assert again.value == first.value
        assert again.epoch >= first.epoch
    assert await pair.rows() == [(b"\x00",)]
    await pair.leader.execute(INSERT, ("other",), key="order-18")
    await pair.follower.execute(INSERT, ("other",), key="order-18")
    assert len(await pair.rows()) == 2


async def test_every_kind_of_write_takes_a_key(pair: Pair) -> None:
    for _ in range(2):
        for node in (pair.follower, pair.leader):
            await node.executemany("INSERT INTO job VALUES (?)", [("many",)], key="1")
            await node.executescript("INSERT INTO job VALUES ('script')", key="2")
            await node.batch([("INSERT INTO job VALUES (?)", ("batch",))], key="3")
            assert (await node.call("add", "4", key="an argument of that name")).value == "an argument of that name"
    assert sorted(await pair.rows()) == [("an argument of that name",), ("batch",), ("many",), ("script",)]


async def test_a_key_of_another_write_is_refused_and_nothing_is_lost_silently(pair: Pair) -> None:
    await pair.follower.execute(INSERT, ("a",), key="k")
    for node in (pair.follower, pair.leader):
        with pytest.raises(ValueError, match="another write"):
            await node.execute(INSERT, ("b",), key="k")
    assert await pair.rows() == [("a",)]


@pytest.mark.parametrize("key", ["", "k" * 65, "a\n", "\ud800", 5, b"k"])
async def test_what_is_no_key_is_refused_at_the_call(pair: Pair, key: Any) -> None:
    for node in (pair.follower, pair.leader):
        with pytest.raises(ValueError, match="key of a write"):
            await node.execute(INSERT, ("a",), key=key)
    assert await pair.rows() == []


async def test_a_write_that_failed_is_run_again_with_its_key(pair: Pair) -> None:
    await pair.leader.execute("CREATE UNIQUE INDEX one ON job(name)")
    await pair.leader.execute(INSERT, ("a",))
    with pytest.raises(sqlite3.IntegrityError):
        await pair.follower.execute(INSERT, ("a",), key="k")
    await pair.leader.execute("DELETE FROM job")
    await pair.follower.execute(INSERT, ("a",), key="k")
    assert await pair.rows() == [("a",)]


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_write_whose_outcome_is_unknown_is_resolved_with_the_key_of_the_error(
    pair: Pair, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Client.request

    async def lose(self: Client, method: str, path: str, **options: Any) -> Any:
        if path != "/.lbc/write":
            return await original(self, method, path, **options)
        if arrives:
            await original(self, method, path, **options)
        raise PeerUnavailable("the answer is lost", sent=True)

    monkeypatch.setattr(Client, "request", lose)
    with pytest.raises(OutcomeUnknown) as caught:
        await pair.follower.execute(INSERT, ("a",), timeout=3)
    monkeypatch.undo()
    assert caught.value.key
    assert (await pair.follower.execute(INSERT, ("a",), key=caught.value.key)).value.rows == [(1,)]
    assert await pair.rows() == [("a",)]


async def test_a_write_is_not_sent_again_when_its_key_may_be_forgotten() -> None:
    """The machine slept, or the time-out is of hours: the first attempt may be in the log, its key no more."""
    clock = HandClock()
    sent = []

    class Losing:
        async def request(self, *_: Any, **__: Any) -> Any:
            sent.append(clock.boottime())
            clock.sleep_machine(forward._SAFE_SECONDS * 0.6)
            raise PeerUnavailable("the connection broke", sent=True)

    forwarder = Forwarder(
        Watch(Leader(clock.uuid7(), "127.0.0.1:1", "")),
        me=clock.uuid7(),
        run_here=lambda *_: pytest.fail("not here"),
        connect=lambda _: Losing(),  # type: ignore[arg-type,return-value]
        clock=clock,
    )
    with pytest.raises(OutcomeUnknown, match="may be forgotten"):
        await forwarder.send(statements.execute(INSERT, ("a",)), timeout=30)
    assert len(sent) == 2
