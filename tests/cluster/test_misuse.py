"""What is asked in a wrong way is refused at once, and the message says what to do."""

from __future__ import annotations

import datetime
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from littlebigcluster import Cluster, EpochTooLarge, Node, NodeSettings, NotLeader
from littlebigcluster.cluster.fed import KEEP_ALIVE_SECONDS
from littlebigcluster.cluster.forward import MAX_BODY_BYTES
from tests.cluster.group import Group, eventually, group
from tests.scenarios.stage import memory

Use = Callable[[Node], Any]


@pytest.fixture
async def nodes() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def test_what_is_too_large_to_travel_is_refused_before_it_is_sent(nodes: Group) -> None:
    await nodes.leader()
    follower = await nodes.node()
    with pytest.raises(EpochTooLarge, match="it was not sent, and is not written"):
        await follower.execute("INSERT INTO job VALUES (?)", (b"x" * (MAX_BODY_BYTES * 3 // 4),))
    fits = b"x" * (MAX_BODY_BYTES * 3 // 4 - 1000)
    await follower.execute("INSERT INTO job VALUES (?)", (fits,))
    assert await follower.read("SELECT length(name) FROM job") == [(len(fits),)]


async def test_what_cannot_travel_says_who_leads_and_what_can(nodes: Group) -> None:
    leader = await nodes.leader()
    standby, follower = await nodes.node(can_lead=True), await nodes.node()
    wait = ", and `wait_until_leader` waits for this node to lead"
    for node, advice in ((standby, wait), (follower, "")):
        with pytest.raises(NotLeader, match=f"{leader.id} at .* leads.*`call` can{advice}$") as raised:
            await node.transaction(lambda db: None)
        assert raised.value.leader == leader.leader.value
        with pytest.raises(NotLeader, match="VACUUM cannot travel"):
            await node.execute("VACUUM")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda node: node.execute("INSERT INTO job VALUES (?)", 1), r"like \(1,\)"),
        (lambda node: node.executemany("INSERT INTO job VALUES (?)", [1, 2]), r"like \(1,\)"),
        (lambda node: node.batch(["INSERT INTO job VALUES (1)"]), r"made of \(sql, parameters\), not 'INSERT"),
        (lambda node: node.batch([("INSERT INTO job VALUES (1)",)]), r"made of \(sql, parameters\), not \('INSERT"),
        (lambda node: node.batch(["ab"]), r"made of \(sql, parameters\), not 'ab'"),
    ],
)
async def test_parameters_that_are_none_are_told_what_they_should_be(nodes: Group, use: Use, message: str) -> None:
    leader = await nodes.leader()
    with pytest.raises(TypeError, match=message):
        await use(leader)


async def test_a_function_that_runs_out_of_rows_says_that_it_raised(nodes: Group) -> None:
    leader = await nodes.leader()

    def first(db: sqlite3.Connection) -> Any:
        return next(db.execute("SELECT * FROM job"))

    with pytest.raises(RuntimeError, match=r"the transaction function raised StopIteration\(\); it was rolled back"):
        await leader.transaction(first)


@pytest.mark.parametrize(
    ("join", "kind", "message"),
    [
        ({"address": "8080"}, ValueError, "not an address: '8080'; write \"host:port\""),
        ({"address": ":8080"}, ValueError, "not an address: ':8080'; write \"host:port\""),
        ({"address": 8080}, TypeError, '"host:port", not 8080'),
        ({"app": 5}, TypeError, "app is an ASGI application, not 5"),
        ({"leader_app": "x"}, TypeError, "leader_app is an ASGI application, not 'x'"),
    ],
)
def test_bad_arguments_of_a_join_are_refused_at_the_call(join: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        Cluster("memory://").join(**join)


def test_a_setting_that_is_no_duration_is_named() -> None:
    with pytest.raises(TypeError, match=r"^leader_timeout: a duration is a timedelta or .*, not '20'"):
        NodeSettings(leader_timeout="20")  # type: ignore[arg-type]


async def test_a_node_that_was_not_entered_says_how(nodes: Group) -> None:
    join: Any = nodes.cluster.join(can_lead=True)
    with pytest.raises(AttributeError, match=r"a Join has no 'execute': `async with cluster.join"):
        await join.execute("SELECT 1")


@pytest.mark.filterwarnings("ignore:The default date adapter is deprecated:DeprecationWarning")
async def test_a_write_with_dates_and_adapters_does_the_same_on_every_node(nodes: Group) -> None:
    class Point:
        def __conform__(self, protocol: object) -> str:
            return "1;2"

    day = datetime.date(2026, 11, 26)
    for node in (await nodes.leader(), await nodes.node()):
        await node.execute("INSERT INTO job VALUES (?)", (day,))
        await node.execute("INSERT INTO job VALUES (:name)", {"name": Point()}, key=f"mine {node.id}")
        await node.executemany("INSERT INTO job VALUES (?)", [(day,), (bytearray(b"x"),)])
        await node.batch([("INSERT INTO job VALUES (?)", [Point()])])
        with pytest.raises((sqlite3.Error, TypeError), match=r"is not supported|cannot travel"):
            await node.execute("INSERT INTO job VALUES (?)", (object(),))
    first = ["2026-11-26", "1;2", "2026-11-26", b"x", "1;2"]
    assert [name for (name,) in await node.read("SELECT name FROM job ORDER BY rowid")] == first * 2


async def test_a_procedure_gets_and_gives_the_same_wherever_it_is_called(nodes: Group) -> None:
    @nodes.cluster.procedure
    def echo(db: sqlite3.Connection, value: Any) -> Any:
        db.execute("INSERT INTO job VALUES ('echo')")
        return (value, b"x", {1: None})

    @nodes.cluster.procedure
    def give(db: sqlite3.Connection) -> Any:
        db.execute("INSERT INTO job VALUES ('lost')")
        return object()

    for node in (await nodes.leader(), await nodes.node()):
        assert (await node.call("echo", value=(1, 2))).value == [[1, 2], b"x", {"1": None}]
        with pytest.raises(TypeError, match="cannot travel"):
            await node.call("echo", value=object())
        with pytest.raises(TypeError, match="cannot travel"):
            await node.call("give")
    assert await node.read("SELECT name FROM job") == [("echo",)] * 2


async def test_a_leader_whose_event_loop_was_blocked_says_so(nodes: Group, caplog: pytest.LogCaptureFixture) -> None:
    await nodes.leader()
    time.sleep(KEEP_ALIVE_SECONDS + 1.1)  # noqa: ASYNC251 - what it must not do
    await eventually(lambda: "this leader stood still for " in caplog.text)
    assert "asyncio.to_thread" in caplog.text
