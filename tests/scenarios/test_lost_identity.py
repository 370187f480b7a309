"""`cluster.json` is lost or damaged: nobody can join, and a repair writes it as the log tells it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator

import pytest

from littlebigcluster import (
    AlreadyInitialized,
    Cluster,
    ClusterSettings,
    CorruptLog,
    LbcError,
    NotRetained,
    WrongCluster,
)
from littlebigcluster.epochs import Identity, names, read_identity, survey_all
from littlebigcluster.store import Store
from tests.cluster.group import Group, group
from tests.scenarios.damage import body_of, harm
from tests.scenarios.stage import FAST, WAIT, memory
from tests.scenarios.test_past import lived
from tests.scenarios.test_repair import QUICK, deaths, goes_on, repaired

SETTINGS = ClusterSettings(page_size=1024, compression="none", foreign_keys=True)


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def made_with(settings: ClusterSettings, *statements: str) -> Group:
    made = Group(memory())
    await made.cluster.init("lol", settings=settings)
    a = await made.leader()
    for statement in statements:
        await a.execute(statement)
    await made.leave(a)
    return made


async def identity_of(store: Store) -> Identity:
    return (await read_identity(store))[0]


async def lose(store: Store, how: str) -> None:
    body = await body_of(store, names.CLUSTER)
    value = json.loads(body)
    match how:
        case "of another cluster":
            await store.put(names.CLUSTER, json.dumps(value | {"cluster_id": "other"}).encode())
        case "of another page size":
            await store.put(names.CLUSTER, json.dumps(value | {"page_size": 8192}).encode())
        case "without a member":
            await store.put(names.CLUSTER, body.replace(b'"page_size"', b'"page_sire"'))
        case _:
            await harm(store, names.CLUSTER, how)


LOSSES = ["gone", "empty", "cut", "flipped in front", "without a member", "of another cluster", "of another page size"]


@pytest.mark.parametrize("settings", [ClusterSettings(), SETTINGS], ids=["by default", "chosen"])
@pytest.mark.parametrize("how", LOSSES)
async def test_it_is_written_as_the_log_tells_it(how: str, settings: ClusterSettings) -> None:
    g = await made_with(settings, "INSERT INTO job VALUES ('kept')")
    former = await identity_of(g.store)
    await lose(g.store, how)
    before = {info.key: await body_of(g.store, info.key) for info in await g.store.list("")}
    with pytest.raises((CorruptLog, sqlite3.Error)):
        await g.node()
    planned = await g.cluster.repair()
    assert (planned.action, planned.question, planned.epoch) == ("identity", "", None)
    assert [finding.object for finding in planned.findings] == [names.CLUSTER]
    assert names.CLUSTER in planned.obstacle
    assert {info.key: await body_of(g.store, info.key) for info in await g.store.list("")} == before, "a dry run"
    done = await repaired(g)
    present = await identity_of(g.store)
    assert (done.action, done.identity) == ("identity", present)
    assert (present.cluster_id, present.settings.page_size) == ("lol", settings.page_size)
    assert present.settings.compression == settings.compression
    assert abs((present.created_at - former.created_at).total_seconds()) < WAIT
    tells = how in ("cut", "flipped in front", "without a member", "of another page size")
    assert present.settings.foreign_keys == (settings.foreign_keys and tells)
    kept = [] if how == "gone" else [names.aside(names.CLUSTER)]
    assert [info.key for info in await g.store.list(names.ASIDE)] == kept
    if kept:
        assert await g.store.get(kept[0]) == before[names.CLUSTER]
    assert (await repaired(g)).action == "nothing"
    assert (await g.cluster.verify(deep=True)).findings == []
    await goes_on_with_jobs(g, "kept")
    await g.close()


async def goes_on_with_jobs(g: Group, *jobs: str) -> None:
    a = await g.leader()
    assert await a.read("SELECT name FROM job") == [(job,) for job in jobs]
    await a.execute("INSERT INTO job VALUES ('afterwards')")
    await g.leave(a)


RELATED = ("CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE c(p REFERENCES p)")


@pytest.mark.parametrize("enforced", [True, False])
async def test_where_foreign_keys_matter_somebody_must_say_whether_they_are_enforced(enforced: bool) -> None:
    g = await made_with(ClusterSettings(foreign_keys=enforced), *RELATED)
    await lose(g.store, "gone")
    assert "whether foreign keys are enforced" in (await g.cluster.repair()).question
    with pytest.raises(LbcError, match=r"nothing was done: whether foreign keys are enforced .* --foreign-keys"):
        await repaired(g)
    assert await g.store.get(names.CLUSTER) is None
    planned = await g.cluster.repair(foreign_keys=enforced)
    assert planned.question == ""
    await g.cluster.repair(act=True, foreign_keys=enforced, settings=QUICK)
    assert (await identity_of(g.store)).settings.foreign_keys == enforced
    a = await g.leader()
    if enforced:
        with pytest.raises(sqlite3.IntegrityError):
            await a.execute("INSERT INTO c VALUES (1)")
    else:
        await a.execute("INSERT INTO c VALUES (1)")
    await g.close()


async def test_what_is_said_does_not_change_an_identity_that_is_sound() -> None:
    g = await made_with(ClusterSettings(), *RELATED)
    before = await body_of(g.store, names.CLUSTER)
    assert (await g.cluster.repair(act=True, foreign_keys=True, settings=QUICK)).action == "nothing"
    assert await body_of(g.store, names.CLUSTER) == before


async def test_nodes_that_run_do_not_notice(g: Group) -> None:
    a = await g.leader()
    b = await g.node()
    await lose(g.store, "gone")
    await a.execute("INSERT INTO job VALUES ('kept')")
    done = await g.cluster.repair(act=True, settings=FAST)
    assert (done.action, done.leader) == ("identity", None)
    more = await a.execute("INSERT INTO job VALUES ('more')")
    c = await g.node()
    for node in (b, c):
        assert await node.read("SELECT name FROM job", at_least=more.epoch) == [("kept",), ("more",)]
    assert a.is_leader


async def test_the_log_is_damaged_too(g: Group) -> None:
    history = await lived(g, 12, snapshot_epochs=1000)
    head = max(history.rows) + 1
    await harm(g.store, names.wal(6), "flipped")
    await harm(g.store, names.authority(1), "cut")
    await lose(g.store, "gone")
    planned = await g.cluster.repair(foreign_keys=False)
    assert planned.action == "identity"
    assert [each.object for each in planned.findings] == [names.CLUSTER, names.authority(1), names.wal(6)]
    assert (await g.cluster.repair()).question != "", "what tables there are cannot be seen"
    done = await g.cluster.repair(act=True, foreign_keys=False, settings=QUICK)
    assert done.action == "identity"
    assert (await survey_all(g.store)).head == head + 1
    assert (await g.cluster.verify(deep=True)).findings == []
    await goes_on(g, history.rows[5])


@pytest.mark.parametrize("how", ["gone", "cut"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_repair_that_dies_at_any_request_is_completed_by_the_next(g: Group, how: str, when: str) -> None:
    await lose(g.store, how)
    checked = 0
    async for at in deaths(g.store, when):
        checked += 1
        await repaired(g)
        assert (await identity_of(g.store)).cluster_id == "lol"
        assert (await g.cluster.verify()).findings == [], at
    assert checked >= (4 if how == "cut" else 3), "with and without pin, identity, what is kept aside"


@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_several_repairs_at_once_come_to_the_same(g: Group, how: str) -> None:
    await lose(g.store, how)
    done = await asyncio.gather(*(repaired(g) for _ in range(3)))
    assert {each.action for each in done} <= {"identity", "nothing"}
    assert {each.identity for each in done} <= {await identity_of(g.store), None}
    assert (await g.cluster.verify()).findings == []


async def test_nothing_is_left_that_tells_it(g: Group) -> None:
    await lived(g, 3, snapshot_epochs=1000)
    await lose(g.store, "gone")
    for info in await g.store.list(names.LOG_PREFIX):
        await harm(g.store, info.key, "flipped in front")
    with pytest.raises(CorruptLog, match=r"cluster\.json: .* the log, but that has no object that can be read. Put"):
        await repaired(g)


async def test_only_the_metadata_is_left(g: Group) -> None:
    await lived(g, 3, snapshot_epochs=1000)
    await lose(g.store, "gone")
    await harm(g.store, names.snapshot(0), "flipped")
    with pytest.raises(NotRetained, match="nothing was done"):
        await repaired(g)
    assert await g.store.get(names.CLUSTER) is None


async def test_objects_of_two_clusters_lie_there_and_the_id_tells_which(g: Group) -> None:
    await lived(g, 3, snapshot_epochs=1000)
    other = Group(memory())
    await other.cluster.init("other")
    await lived(other, 2, snapshot_epochs=1000)
    await g.store.put(names.wal((await survey_all(g.store)).head), await body_of(other.store, names.wal(2)))
    await lose(g.store, "gone")
    with pytest.raises(CorruptLog, match=r'of "lol" .* and of "other" .*; give the id of the right one'):
        await repaired(g)
    with pytest.raises(WrongCluster, match='the log of lol and other, not of "third"'):
        await Cluster(g.store, id="third").repair()
    planned = await Cluster(g.store, id="lol").repair()
    assert planned.identity is not None
    assert planned.identity.cluster_id == "lol"


async def test_another_cluster_is_not_made_where_one_has_lost_its_identity(g: Group) -> None:
    await lose(g.store, "gone")
    before = await g.store.list("")
    with pytest.raises(AlreadyInitialized, match=r"of a former cluster; .* `lbc -p .* repair` write it anew"):
        await g.cluster.init()
    with pytest.raises(CorruptLog, match=r"cluster\.json: expected .* but the rest of it; run `lbc -p .* repair`"):
        await g.node()
    assert await g.store.list("") == before
