"""The state of a former epoch as a new one: everywhere at once, history kept."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Aborted, EpochTooLarge, NotLeader, NotRetained, OutcomeUnknown
from littlebigcluster.database import way_back
from littlebigcluster.epochs import names
from littlebigcluster.roles import leader
from littlebigcluster.store import Fault, Faulty
from tests.cluster.group import Group, all_fed, eventually, group, identity, member_client, within
from tests.scenarios.stage import FAST, WAIT, Gate


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


async def rows(node: Any) -> Any:
    return await node.read("SELECT rowid, * FROM job ORDER BY 1")


async def test_any_node_rolls_back_and_all_see_it_and_it_can_be_undone(g: Group) -> None:
    a = await g.leader()
    b = await g.node(can_lead=False)
    await all_fed(b)
    states: dict[int, Any] = {}
    for number in range(6):
        done = await a.execute("INSERT INTO job VALUES (?)", (f"{number}",))
        states[done.epoch] = await rows(a)
    last = a.epoch.value
    middle = sorted(states)[2]
    done = await b.rollback(middle)
    assert (done.value, done.epoch) == (middle, last + 1)
    assert await rows(b) == states[middle]
    assert await rows(a) == states[middle]
    assert a.is_leader
    more = await a.execute("INSERT INTO job VALUES ('new')")
    assert (await b.read("SELECT name FROM job ORDER BY rowid DESC LIMIT 1", at_least=more.epoch)) == [("new",)]
    done = await a.rollback(last)
    assert await rows(a) == states[last]
    await b.epoch.until(done.epoch.__le__)
    assert await rows(b) == states[last]
    for node in (a, b):
        ((epoch,),) = await node.read("SELECT value FROM _lbc WHERE key = 'epoch'")
        assert epoch == done.epoch
    async with g.cluster.at(middle + 1) as state:  # history is kept
        assert (await state.query("SELECT rowid, * FROM job ORDER BY 1")).rows == states[middle + 1]


async def test_schemas_go_back_and_no_connection_is_deceived(g: Group) -> None:
    """The schema's cookie must not come again: connections that slept over the rollback know a schema by it."""
    a = await g.leader(settings={"readers": 1})
    b = await g.node(can_lead=False, settings={"readers": 1})
    await all_fed(b)
    before = (await a.execute("INSERT INTO job VALUES ('x')")).epoch
    with closing(sqlite3.connect(f"file:{b.database_path}?mode=ro", uri=True)) as slept:
        await a.execute("ALTER TABLE job ADD COLUMN one DEFAULT 1")
        await b.epoch.until(a.epoch.value.__le__)
        assert slept.execute("SELECT * FROM job").fetchall() == [("x", 1)]
        await a.rollback(before)
        done = await a.execute("ALTER TABLE job ADD COLUMN other DEFAULT 'other'")
        await b.epoch.until(done.epoch.__le__)
        cursor = slept.execute("SELECT * FROM job")
        assert [column[0] for column in cursor.description] == ["name", "other"]
        assert cursor.fetchall() == [("x", "other")]
    assert await b.read("SELECT * FROM job") == [("x", "other")]


async def test_random_histories_come_back_exactly(g: Group) -> None:
    chance = random.Random(7)
    a = await g.leader(settings={"snapshot_epochs": 9})
    b = await g.node(can_lead=False)
    await all_fed(b)
    await a.execute("CREATE TABLE big(id INTEGER PRIMARY KEY, v)")
    states: dict[int, Any] = {}
    for _ in range(40):
        match chance.randrange(6):
            case 0:
                await a.execute("DELETE FROM big WHERE id % 2 = ?", (chance.randrange(2),))
            case 1:
                await a.execute("VACUUM")
            case 2 if states:
                to = chance.choice(sorted(states))
                done = await chance.choice([a, b]).rollback(to)
                assert await a.read("SELECT * FROM big ORDER BY id", at_least=done.epoch) == states[to]
            case 3:
                await a.executescript("CREATE TABLE IF NOT EXISTS extra(x); INSERT INTO extra VALUES (1);")
            case _:
                blobs = [(chance.randbytes(chance.randrange(9000)),) for _ in range(8)]
                await a.executemany("INSERT INTO big(v) VALUES (?)", blobs)
        states[a.epoch.value] = await a.read("SELECT * FROM big ORDER BY id")
    await b.epoch.until(a.epoch.value.__le__)
    for node in (a, b):
        assert await node.read("PRAGMA integrity_check") == [("ok",)]
        assert await node.read("SELECT * FROM big ORDER BY id") == states[max(states)]
    async with g.cluster.head() as head:  # replayed from the store
        assert (await head.query("SELECT * FROM big ORDER BY id")).rows == states[max(states)]


async def test_only_pages_that_differ_are_written(g: Group) -> None:
    a = await g.leader()
    await a.execute("CREATE TABLE big(v)")
    await a.executemany("INSERT INTO big VALUES (?)", [(random.Random(n).randbytes(2000),) for n in range(2000)])
    before = (await a.execute("INSERT INTO job VALUES ('x')")).epoch
    await a.execute("INSERT INTO job VALUES ('y')")
    done = await a.rollback(before)
    body = await g.store.get(names.wal(done.epoch))
    assert body is not None
    assert len(body) < 20_000


async def test_the_keys_of_writes_do_not_go_back(g: Group) -> None:
    a = await g.leader()
    b = await g.node(can_lead=False)
    await all_fed(b)
    before = a.epoch.value
    await b.execute("INSERT INTO job VALUES ('once')", key="k1")
    await a.rollback(before)
    await b.execute("INSERT INTO job VALUES ('once')", key="k1")  # it was done, and then taken back on purpose
    assert await rows(a) == []


async def test_writes_meanwhile_are_written_before_or_after_or_told_to_try_again(g: Group) -> None:
    a = await g.leader()
    b = await g.node(can_lead=False)
    await all_fed(b)
    before = a.epoch.value
    stop = False
    acknowledged: dict[int, int] = {}
    aborted = 0

    async def write(writer: int) -> None:
        nonlocal aborted
        number = writer
        while not stop:
            try:
                acknowledged[number] = (await a.execute("INSERT INTO job VALUES (?)", (number,))).epoch
            except Aborted:
                aborted += 1
            number += 4

    writing = [asyncio.create_task(write(writer)) for writer in range(4)]
    returns = []
    for node in (a, b, a):
        await eventually(lambda: a.epoch.value > before + 10 * (len(returns) + 1))
        returns.append((await node.rollback(before)).epoch)
    stop = True
    await asyncio.gather(*writing)
    present = {int(name) for _, name in await rows(a)}
    assert present == {number for number, epoch in acknowledged.items() if epoch > returns[-1]}
    assert await a.read("SELECT count(*) FROM job WHERE typeof(name) = 'x'") == [(0,)]
    assert len(acknowledged) > aborted


async def test_what_cannot_be_done_changes_nothing(g: Group) -> None:
    a = await g.leader(settings={"max_epoch_bytes": 200_000})
    b = await g.node(can_lead=False)
    await all_fed(b)
    before = a.epoch.value
    for number in range(10):
        await a.executemany(
            "INSERT INTO job VALUES (?)", [(random.Random(number * i).randbytes(900),) for i in range(30)]
        )
    here = await rows(a)
    far = a.epoch.value
    for first in range(0, 300, 50):
        await a.execute("DELETE FROM job WHERE rowid BETWEEN ? AND ?", (first, first + 50))
    with pytest.raises(EpochTooLarge, match="max_epoch_bytes"):
        await b.rollback(far)
    with pytest.raises(NotRetained):
        await b.rollback(10_000)
    assert await rows(a) == []
    await a.execute("INSERT INTO job VALUES ('goes on')")
    assert len(await rows(a)) == 1
    assert len(here) == 300
    await a.rollback(before)
    assert await rows(a) == []
    status = await identity(g.store, "stranger")
    assert status is not None
    async with member_client(g, a, "0198c0de-0000-7000-8000-000000000001") as client:
        for body in (b"", b"{}", b'{"to": "x"}', b'{"to": true}', b"[1]", b'{"to": 1.5}'):
            answer = await client.request("POST", "/.lbc/rollback", body=body, timeout=WAIT)
            assert answer.status == 400, body
        answer = await client.request("POST", "/.lbc/rollback", body=json.dumps({"to": 10**9}).encode(), timeout=WAIT)
        assert (answer.status, answer.json()["error"]) == (409, "NotRetained")


async def test_without_a_leader_nothing_is_done(g: Group) -> None:
    a = await g.leader()
    b = await g.node(can_lead=False)
    await all_fed(b)
    await g.leave(a)
    with pytest.raises(NotLeader, match="nothing was done"):
        await b.rollback(0, timeout=1)


async def test_a_cluster_that_is_down_is_rolled_back_from_outside(g: Group) -> None:
    a = await g.leader()
    before = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    await a.execute("INSERT INTO job VALUES (2)")
    alive = await g.cluster.rollback(before, settings=FAST)
    assert a.is_leader
    assert [name for _, name in await rows(a)] == [1]
    await a.execute("INSERT INTO job VALUES (3)")
    await g.leave(a)
    done = await g.cluster.rollback(alive.epoch, settings=FAST)
    async with g.cluster.head() as head:
        assert (await head.query("SELECT name FROM job")).rows == [(1,)]
        assert head.metadata.leader is None  # it has gone again
        assert head.metadata.epoch == done.epoch + 1
    with pytest.raises(NotRetained):
        await g.cluster.rollback(10_000, settings=FAST)


async def test_two_rollbacks_at_once_are_done_one_after_the_other_or_refused(g: Group) -> None:
    a = await g.leader()
    b = await g.node(can_lead=False)
    await all_fed(b)
    first = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    second = (await a.execute("INSERT INTO job VALUES (2)")).epoch
    await a.execute("INSERT INTO job VALUES (3)")
    results = await asyncio.gather(
        *(node.rollback(to) for node, to in [(a, first), (b, second), (a, second)]), return_exceptions=True
    )
    done = [result for result in results if not isinstance(result, BaseException)]
    assert done
    assert all(isinstance(result, Aborted) for result in results if isinstance(result, BaseException))
    last = max(done, key=lambda result: result.epoch)
    assert len(await a.read("SELECT * FROM job", at_least=last.epoch)) == {first: 1, second: 2}[last.value]


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER, Fault.HANG])
async def test_a_lost_answer_of_the_store_is_resolved(g: Group, fault: Fault) -> None:
    store = Faulty(g.store, timeout_seconds=0.2)
    a = await g.leader(store=store)
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    store.next("create", fault)
    done = await a.rollback(before)
    assert done.epoch == before + 2
    assert await rows(a) == []
    await a.execute("INSERT INTO job VALUES (2)")
    await store.settle()
    async with g.cluster.head() as head:
        assert (await head.query("SELECT name FROM job")).rows == [(2,)]


async def test_a_leader_that_is_replaced_in_the_midst_has_done_nothing(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    gate.shut(only="create")
    going_back = asyncio.create_task(a.rollback(before))
    await eventually(lambda: gate.held)
    gate.shut()
    c = await g.node(can_lead=True)
    await c.wait_until_leader(timeout=WAIT)
    await c.execute("INSERT INTO job VALUES (2)")
    gate.open()
    with pytest.raises((NotLeader, OutcomeUnknown, Exception)) as raised:
        await going_back
    assert type(raised.value).__name__ == "Fenced"
    assert [name for _, name in await rows(c)] == [1, 2]


async def test_the_node_dies_in_the_midst(g: Group, tmp_path: Path) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate, settings={"directory": tmp_path / "kept"})
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    gate.shut(only="create")
    going_back = asyncio.create_task(a.rollback(before))
    await eventually(lambda: gate.held)
    await g.crash(a)
    with pytest.raises(OutcomeUnknown):
        await going_back
    gate.open()
    c = await g.leader(settings={"directory": tmp_path / "kept"})
    assert len(await rows(c)) in (0, 1)
    await c.rollback(before)
    assert await rows(c) == []


async def test_a_leadership_that_ends_before_it_is_asked_has_done_nothing(g: Group) -> None:
    """It is over while the former state is being restored: nobody would answer any more."""
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    gate.shut(only="get_range")
    going_back = asyncio.create_task(a.rollback(before))
    await eventually(lambda: gate.held)
    await a.step_down()
    gate.open()
    with pytest.raises(NotLeader, match="nothing was done"):
        await within(going_back)
    await a.wait_until_leader(timeout=WAIT)
    await a.rollback(before)
    assert await rows(a) == []


@pytest.mark.parametrize("how", ["is given up", "ends with the node"])
async def test_the_former_state_stays_while_the_leader_reads_it(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    reading, go_on, there = threading.Event(), threading.Event(), list[bool]()

    def slowly(replica: Any, former: Path, **options: Any) -> Any:
        reading.set()
        assert go_on.wait(30)
        there.append(former.exists())
        return way_back(replica, former, **options)

    monkeypatch.setattr(leader, "way_back", slowly)
    a = await g.leader(settings={"directory": tmp_path})
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    going_back = asyncio.create_task(a.rollback(before))
    assert await asyncio.to_thread(reading.wait, 30)
    ending = asyncio.create_task(g.crash(a)) if how == "ends with the node" else None
    if ending is None:
        going_back.cancel()
    await asyncio.wait([going_back], timeout=0.2)
    go_on.set()
    with pytest.raises(asyncio.CancelledError if ending is None else NotLeader):
        await going_back
    if ending is not None:
        await ending
    assert there == [True]
    assert list(tmp_path.glob("rollback-*")) == []
