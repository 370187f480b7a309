"""Forwarded writes whose first answer was lost: no later answer may call them refused."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from types import SimpleNamespace
from typing import Any

import pytest

from littlebigcluster import LbcError, Leader, NotLeader, OutcomeUnknown, Overloaded, PeerUnavailable, StoreUnavailable
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import statements
from littlebigcluster.cluster.forward import Forwarder
from littlebigcluster.watch import Watch
from tests.cluster.group import eventually

LOST = PeerUnavailable("the connection broke", sent=True)
NEVER_SENT = PeerUnavailable("no connection", sent=False)


def refusal(kind: str, status: int = 503) -> Any:
    return SimpleNamespace(status=status, body=json.dumps({"error": kind, "message": "no"}).encode())


class Answers:
    """A client that gets these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def request(self, *_: Any, **__: Any) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


async def send(*answers: Any, timeout: float = 0.5) -> None:
    clock = Clock()
    leader: Watch[Leader | None] = Watch(Leader(clock.uuid7(), "127.0.0.1:1", ""))
    client: Any = Answers(*answers)
    forwarder = Forwarder(
        leader, me=clock.uuid7(), run_here=lambda *_: pytest.fail("not here"), connect=lambda _: client, clock=clock
    )
    await forwarder.send(statements.execute("INSERT INTO x VALUES (1)", ()), timeout=timeout)


@pytest.mark.parametrize(
    "kind", ["StoreUnavailable", "DeadlineExceeded", "EpochTooLarge", "IntegrityError", "NotLeader", "Overloaded"]
)
async def test_a_refusal_of_the_second_attempt_says_nothing_of_the_first(kind: str) -> None:
    with pytest.raises(OutcomeUnknown):
        await send(LOST, refusal(kind))


async def test_a_refusal_is_certain_when_nothing_was_sent_before() -> None:
    with pytest.raises(StoreUnavailable):
        await send(NEVER_SENT, refusal("StoreUnavailable"), timeout=60)
    with pytest.raises(Overloaded):
        await send(NEVER_SENT, refusal("Overloaded"), timeout=60)
    with pytest.raises(NotLeader):
        await send(NEVER_SENT)


@pytest.mark.parametrize(("lost", "kind"), [(LOST, OutcomeUnknown), (NEVER_SENT, LbcError)])
async def test_a_write_that_may_have_been_taken_is_in_doubt_when_the_node_stops(
    lost: PeerUnavailable, kind: type[LbcError]
) -> None:
    clock, asked = Clock(), asyncio.Event()
    leader: Watch[Leader | None] = Watch(Leader(clock.uuid7(), "127.0.0.1:1", ""))

    class Breaking(Answers):
        async def request(self, *_: Any, **__: Any) -> Any:
            leader._set(None)
            asked.set()
            raise lost

    client: Any = Breaking()
    forwarder = Forwarder(
        leader, me=clock.uuid7(), run_here=lambda *_: pytest.fail("not here"), connect=lambda _: client, clock=clock
    )
    sent = asyncio.create_task(forwarder.send(statements.execute("INSERT INTO x VALUES (1)", ()), timeout=5))
    await asked.wait()
    leader._end(LbcError("the node has stopped"))
    with pytest.raises(LbcError) as caught:
        await sent
    assert type(caught.value) is kind


async def test_a_leader_that_changes_while_the_former_connection_closes_is_no_error() -> None:
    clock, closing = Clock(), asyncio.Event()
    first, second, third = (Leader(clock.uuid7(), f"127.0.0.1:{port}", "") for port in (1, 2, 3))
    leader: Watch[Leader | None] = Watch(first)

    class Slow(Answers):
        async def close(self) -> None:
            await closing.wait()

    clients: Any = iter([Slow(refusal("IntegrityError")), Answers(NEVER_SENT), Answers(refusal("IntegrityError"))])
    forwarder = Forwarder(
        leader,
        me=clock.uuid7(),
        run_here=lambda *_: pytest.fail("not here"),
        connect=lambda _: next(clients),
        clock=clock,
    )
    work = statements.execute("INSERT INTO x VALUES (1)", ())
    with pytest.raises(sqlite3.IntegrityError):
        await forwarder.send(work, timeout=5)
    leader._set(second)
    sent = asyncio.create_task(forwarder.send(work, timeout=5))
    await asyncio.sleep(0)
    giving_up = asyncio.create_task(forwarder.run())
    await asyncio.sleep(0)
    leader._set(third)
    await eventually(lambda: forwarder._client is None)
    closing.set()
    with pytest.raises(sqlite3.IntegrityError):
        await sent
    giving_up.cancel()
