"""Repair: service comes back from the newest state there is, and nothing of it is hidden."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from littlebigcluster import CorruptLog, Fenced, NodeSettings, NotRetained, StoreUnavailable
from littlebigcluster.cluster import repair as module
from littlebigcluster.cluster import repairing
from littlebigcluster.cluster.repair import Repaired
from littlebigcluster.epochs import Repair, names, read_repairs
from littlebigcluster.store import CreateOutcome, Faulty, Store
from littlebigcluster.store.wrappers import Operation, Wrapper
from tests.cluster.group import Group, eventually, group
from tests.scenarios.damage import HARMS, body_of, harm, wrong_bit
from tests.scenarios.stage import FAST, WAIT, Gate, memory
from tests.scenarios.test_past import QUERY, History, lived, rows_of
from tests.scenarios.test_verify import snapshots

T = TypeVar("T")

QUICK = replace(FAST, leader_timeout=0.01)


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def repaired(g: Group) -> Repaired:
    return await g.cluster.repair(act=True, settings=QUICK)


async def log_of(g: Group) -> dict[str, bytes]:
    return {info.key: await body_of(g.store, info.key) for info in await g.store.list(names.LOG_PREFIX)}


async def goes_on(g: Group, expected: Any) -> None:
    """A node joins, reads this, leads and writes; another one follows. None: there is no table yet."""
    a = await g.node(can_lead=True)
    if expected is not None:
        assert await a.read(QUERY) == expected
    await a.wait_until_leader(timeout=WAIT)
    if expected is None:
        await a.execute("CREATE TABLE job(v)")
    done = await a.execute("INSERT INTO job(v) VALUES ('afterwards')")
    b = await g.node()
    assert await b.read("SELECT count(*) FROM job WHERE v = 'afterwards'", at_least=done.epoch) == [(1,)]
    await g.leave(b)
    await g.leave(a)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("how", HARMS)
async def test_a_damaged_epoch_of_a_cluster_that_is_down(g: Group, how: str, where: str, tmp_path: Path) -> None:
    history = await lived(g, 20, snapshot_epochs=1000)
    head = max(history.rows) + 1
    bad = {"first": 1, "middle": 12, "last": head}[where]
    if (how, where) == ("gone", "last"):
        bad = head - 1  # without the last one the log only ends earlier
    await harm(g.store, names.wal(bad), how, await body_of(g.store, names.wal(3)))
    before = await log_of(g)
    planned = await g.cluster.repair()
    assert (planned.action, planned.newest, planned.head, planned.epoch) == ("go back", bad - 1, head, None)
    assert [finding.object for finding in planned.findings] == [names.wal(bad)]
    assert planned.lost == [(bad, head)]
    assert await log_of(g) == before, "a dry run"
    done = await repaired(g)
    assert (done.action, done.epoch) == ("go back", head + 1)
    after = await log_of(g)
    assert {name: after[name] for name in before} == before, "nothing of the log is altered"
    assert after.keys() - before.keys() == {names.wal(head + 1), names.snapshot(head + 1)}
    (record,) = await read_repairs(g.store)
    assert (record.epoch, record.back_to, record.lost) == (head + 1, bad - 1, [(bad, head)])
    assert list(record.damaged) == [names.wal(bad)]
    assert "@" in record.by
    verified = await g.cluster.verify(deep=True)
    assert (verified.findings, verified.lost) == ([], [(bad, head)])
    assert verified.restorable == [(0, bad - 1), (head + 1, head + 1)]
    assert (await repaired(g)).action == "nothing"
    await goes_on(g, history.rows.get(min(bad - 1, max(history.rows))))
    for epoch in (bad, head):
        with pytest.raises(
            NotRetained, match=f"epoch {epoch} is lost: .* ends before epoch {bad}, .* epoch {head + 1}"
        ):
            await g.cluster.restore(tmp_path / "lost.db", epoch)
    if bad > 3:
        await g.cluster.restore(tmp_path / "sound.db", bad - 1)
        assert rows_of(tmp_path / "sound.db") == history.rows[min(bad - 1, max(history.rows))]
    assert (await g.cluster.verify(deep=True)).findings == []


@pytest.mark.parametrize("how", HARMS)
async def test_damage_under_a_leader_that_lives_costs_no_state(g: Group, how: str, tmp_path: Path) -> None:
    a = await g.leader(settings={"snapshot_epochs": 1000})
    states: dict[int, Any] = {}
    for number in range(10):
        done = await a.execute("INSERT INTO job VALUES (?)", (f"{number}",))
        states[done.epoch] = await a.read("SELECT * FROM job")
    b = await g.node()
    bad = a.epoch.value - 3
    await harm(g.store, names.wal(bad), how, await body_of(g.store, names.wal(2)))
    with pytest.raises(CorruptLog):
        await g.node()
    planned = await g.cluster.repair(settings=FAST)
    assert (planned.action, planned.leader) == ("snapshot", a.leader.value)
    done = await g.cluster.repair(act=True, settings=FAST)
    assert (done.action, done.epoch) == ("snapshot", a.epoch.value)
    assert done.epoch is not None
    (record,) = await read_repairs(g.store)
    assert (record.epoch, record.back_to, record.lost) == (done.epoch, None, [(bad, done.epoch - 1)])
    c = await g.node()
    assert await c.read("SELECT * FROM job") == states[done.epoch]
    more = await a.execute("INSERT INTO job VALUES ('more')")
    for node in (b, c):
        assert len(await node.read("SELECT * FROM job", at_least=more.epoch)) == 11
    assert a.is_leader
    verified = await g.cluster.verify(deep=True)
    assert (verified.findings, verified.lost) == ([], record.lost)
    assert (await g.cluster.repair(act=True, settings=FAST)).action == "nothing"
    with pytest.raises(NotRetained, match="is lost"):
        await g.cluster.restore(tmp_path / "x.db", bad)
    with pytest.raises(NotRetained, match="is lost"):
        async with c.at(bad + 1):
            pass


async def test_damage_that_a_snapshot_has_passed_is_written_down(g: Group) -> None:
    history = await lived(g, 24)
    made, head = await snapshots(g), max(history.rows) + 1
    bad = made[2] + 2
    await harm(g.store, names.wal(bad), "flipped")
    done = await repaired(g)
    assert (done.action, done.obstacle, done.epoch) == ("record", "", made[3])
    (record,) = await read_repairs(g.store)
    assert (record.epoch, record.back_to, record.lost) == (made[3], None, [(bad, made[3] - 1)])
    verified = await g.cluster.verify(deep=True)
    assert (verified.findings, verified.restorable) == ([], [(0, bad - 1), (made[3], head)])
    await goes_on(g, history.rows[head - 1])
    # New damage is news again.
    await harm(g.store, names.wal(3), "cut")
    assert [each.object for each in (await g.cluster.verify()).findings] == [names.wal(3)]
    await repaired(g)
    assert [each.lost for each in await read_repairs(g.store)] == [[(3, made[1] - 1)], record.lost]


async def test_several_stretches_of_damage_are_told_each_where_it_ends(g: Group) -> None:
    history = await lived(g, 24)
    made, head = await snapshots(g), max(history.rows) + 1
    early, late = made[1] + 1, made[-1] + 1
    for bad in (early, late, late + 1):
        await harm(g.store, names.wal(bad), "flipped")
    done = await repaired(g)
    assert (done.action, done.epoch, done.newest) == ("go back", head + 1, made[-1])
    assert {each.epoch: each.lost for each in await read_repairs(g.store)} == {
        made[2]: [(early, made[2] - 1)],
        head + 1: [(late, head)],
    }
    assert (await g.cluster.verify(deep=True)).findings == []
    await goes_on(g, history.rows[made[-1]])


@pytest.mark.parametrize("which", ["newest", "middle", "oldest", "all but the oldest"])
@pytest.mark.parametrize("how", ["cut", "flipped", "another"])
async def test_damaged_snapshots_are_set_aside(g: Group, how: str, which: str) -> None:
    history = await lived(g, 24)
    made, head = await snapshots(g), max(history.rows) + 1
    chosen = {"newest": made[-1:], "middle": made[2:3], "oldest": made[:1], "all but the oldest": made[1:]}[which]
    for epoch in chosen:
        await harm(g.store, names.snapshot(epoch), how, await body_of(g.store, names.snapshot(made[1])))
    damaged = [epoch for epoch in chosen if how != "another" or epoch != made[1]]
    bodies = {epoch: await body_of(g.store, names.snapshot(epoch)) for epoch in damaged}
    done = await repaired(g)
    assert (done.action, done.lost) == ("record", [(0, made[1] - 1)] if which == "oldest" else [])
    for epoch, body in bodies.items():
        assert await g.store.get(names.snapshot(epoch)) is None
        assert await body_of(g.store, f".lbc/aside/{epoch:020}.db") == body
    assert (await g.cluster.verify(deep=True)).findings == []
    await goes_on(g, history.rows[head - 1])


async def test_the_only_snapshot_is_damaged(g: Group) -> None:
    a = await g.leader(settings={"snapshot_epochs": 1000})
    await harm(g.store, names.snapshot(0), "flipped")
    done = await g.cluster.repair(act=True, settings=FAST)  # the leader has it all
    assert (done.action, done.epoch) == ("snapshot", a.epoch.value)
    assert (await g.cluster.verify(deep=True)).findings == []
    await g.leave(a)
    await harm(g.store, names.snapshot(done.epoch or 0), "cut")
    before = await log_of(g)
    with pytest.raises(NotRetained, match="nothing to go on from; nothing was done"):
        await repaired(g)
    assert await log_of(g) == before


async def test_a_sound_cluster_is_left_as_it_is(g: Group) -> None:
    await lived(g, 12)
    before = {info.key: info for info in await g.store.list("")}
    for act in (False, True):
        assert (await g.cluster.repair(act=act, settings=QUICK)).action == "nothing"
    assert {info.key: info for info in await g.store.list("")} == before


async def broken(g: Group, epochs: int = 12) -> tuple[History, int]:
    history = await lived(g, epochs, snapshot_epochs=1000)
    await harm(g.store, names.wal(epochs // 2), "flipped")
    return history, max(history.rows) + 1


class AtOnce(Wrapper):
    """So many create the next epoch at the same moment, however far apart they begin."""

    def __init__(self, store: Store, times: int) -> None:
        super().__init__(store)
        self._barrier = asyncio.Barrier(times)

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        if key.endswith(".wal"):
            await self._barrier.wait()
        return await super().create(key, body)


async def test_of_several_at_once_one_wins_and_the_others_say_so(g: Group) -> None:
    history, head = await broken(g)
    together = Group(AtOnce(g.store, 3))
    results = await asyncio.gather(*(repaired(together) for _ in range(3)), return_exceptions=True)
    (done,) = [result for result in results if isinstance(result, Repaired)]
    assert done.epoch == head + 1
    assert sum(isinstance(result, Fenced) for result in results) == 2, results
    assert [each.epoch for each in await read_repairs(g.store)] == [head + 1]
    assert (await g.cluster.verify(deep=True)).findings == []
    await goes_on(g, history.rows[5])


async def test_one_that_slept_is_fenced_by_the_repair(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate, settings={"leader_timeout": 60})
    await a.execute("INSERT INTO job VALUES ('kept')")
    damaged = a.epoch.value
    await a.execute("INSERT INTO job VALUES ('lost')")
    await harm(g.store, names.wal(damaged), "flipped")
    gate.shut()
    writing = asyncio.create_task(a.transaction(lambda db: db.execute("INSERT INTO job VALUES ('asleep')").rowcount))
    await eventually(lambda: gate.held)
    head = a.epoch.value
    done = await repairing_without_leader(g)
    assert (done.action, done.epoch) == ("go back", head + 1)
    gate.open()
    with pytest.raises(Fenced):
        await writing
    await eventually(lambda: not a.is_leader)
    await eventually(lambda: a.epoch.value > head)  # it has restored what is now
    assert await a.read("SELECT * FROM job") == []


async def repairing_without_leader(g: Group) -> Repaired:
    """As if the leader could not be reached."""

    async def nobody(*_: Any, **__: Any) -> None:
        return None

    original = module._leader
    module._leader = nobody  # type: ignore[assignment]
    try:
        return await repaired(g)
    finally:
        module._leader = original


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_repair_that_dies_at_any_request_is_completed_by_the_next(g: Group, how: str) -> None:
    history, head = await broken(g, 6)
    checked = 0
    async for at in deaths(g.store, how):
        checked += 1
        await repaired(g)
        verified = await g.cluster.verify(deep=True)
        assert verified.findings == [], at
        assert (verified.restorable[0], verified.lost[-1][0]) == ((0, 2), 3)
        async with g.cluster.head() as state:
            assert (await state.query(QUERY)).rows == history.rows.get(2, [])
            assert state.metadata.epoch > head
    assert checked >= 5, "with and without pin, epoch, record, snapshot"


async def deaths(store: Store, how: str, settings: NodeSettings = QUICK) -> AsyncIterator[int]:
    """A repair of what is in `store` dies at each of its requests. Yields when it has left something else than the one
    before, which is what the next one finds. (What it has only read leaves nothing.)"""
    original = {info.key: await body_of(store, info.key) for info in await store.list("")}
    former: dict[str, bytes | None] = {}
    for at in count(1):
        for info in await store.list(""):
            await store.delete([info.key])
        for key, body in original.items():
            await store.put(key, body)
        with contextlib.suppress(Died):
            await Group(Mortal(store, at, how)).cluster.repair(act=True, settings=settings)
            break
        keys = [info.key for info in await store.list("")]
        # What is new is random in parts.
        left = {key if key in original else key.partition("/pins/")[0]: await store.get(key) for key in keys}
        left = {key: body if key in original else b"new" for key, body in left.items()}
        if left != former:
            former = left
            yield at
    assert at > 15, "every request was tried"


class Died(Exception):
    """Nothing catches it."""


class Mortal(Wrapper):
    """The process dies at its n-th request: before it is sent, or when the store has acted."""

    def __init__(self, store: Store, at: int, how: str) -> None:
        super().__init__(store)
        self._left, self._how = at, how

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        self._left -= 1
        if self._left == 0 and self._how == "after":
            await send()
        if self._left <= 0:
            raise Died
        return await send()


async def test_without_a_store_it_says_so(g: Group) -> None:
    await broken(g)
    faulty = Faulty(g.store)
    faulty.outage()
    with pytest.raises(StoreUnavailable):
        await Group(faulty).cluster.repair(act=True, settings=QUICK)


async def test_a_create_whose_fate_stays_unknown_is_told(g: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    _, head = await broken(g)
    monkeypatch.setattr(repairing, "_APPEND_SECONDS", 0.5)

    class Silent(Faulty):
        async def create(self, key: str, body: bytes) -> Any:
            self.outage()
            return await super().create(key, body)

    with pytest.raises(Exception, match=f"does not say whether epoch {head + 1} was created; run this again"):
        await Group(Silent(g.store)).cluster.repair(act=True, settings=QUICK)
    assert (await repaired(g)).epoch == head + 1


@pytest.mark.parametrize("marker", [names.LAST_SNAPSHOT, names.LAST_RETAINED, names.BEACON])
@pytest.mark.parametrize("body", [b"", b"rubbish", b"99999999999999999999"])
async def test_damaged_markers_are_in_nobodys_way(g: Group, marker: str, body: bytes) -> None:
    history = await lived(g, 9)
    await g.store.put(marker, body)
    assert (await repaired(g)).action == "nothing"
    await goes_on(g, history.rows[max(history.rows)])


@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
async def test_a_damaged_authority_makes_way_for_a_new_one(g: Group, how: str) -> None:
    history = await lived(g, 3)
    await harm(g.store, names.authority(1), how)
    with pytest.raises(CorruptLog):
        await g.node()
    assert (await g.cluster.repair()).action == "authority"
    assert (await repaired(g)).action == "authority"
    assert [info.key for info in await g.store.list(names.AUTHORITIES)] == [names.authority(1 if how == "gone" else 2)]
    await goes_on(g, history.rows[max(history.rows)])
    assert (await g.cluster.verify()).findings == []


async def test_epochs_that_the_leader_spoke_of_and_that_are_gone_are_told(g: Group) -> None:
    history = await lived(g, 5)
    head = max(history.rows) + 1
    beacon = json.dumps({"cluster_id": "lol", "term": 1, "epoch": head, "count": 1}).encode()
    await g.store.put(names.BEACON, beacon)
    assert (await g.cluster.verify()).findings == []
    await harm(g.store, names.wal(head), "gone")
    (finding,) = (await g.cluster.verify()).findings
    assert finding.object == names.wal(head)
    assert f"speaks of epoch {head}" in finding.problem


def test_records_are_read_as_they_are_written() -> None:
    assert Repair.decode(b"") is None
    assert Repair.decode(b"[]") is None
    assert Repair.decode(b'{"epoch": 3}') is None
    assert wrong_bit(b"\0", 0) == b"\x10"


def test_gaps_are_what_is_neither_reached_nor_told() -> None:
    assert repairing.gaps(0, 9, [(0, 3), (7, 9)], []) == [(4, 6)]
    assert repairing.gaps(0, 9, [(0, 3), (7, 9)], [5]) == [(4, 4), (6, 6)]
    assert repairing.gaps(2, 5, [], []) == [(2, 5)]
    assert repairing.gaps(2, 5, [(2, 5)], []) == []
