"""Databases that move: a file into a new cluster and out again, a cluster into another one, and what dies half way."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from littlebigcluster import (
    AlreadyInitialized,
    Cluster,
    ClusterSettings,
    Node,
    NotAllowed,
    NotInitialized,
    NotRetained,
    StoreUnavailable,
    WrongCluster,
)
from littlebigcluster.cluster.certificates import load_authorities
from littlebigcluster.epochs import names, read_metadata
from littlebigcluster.store import Fault, Faulty, Store, Wrapper
from littlebigcluster.store.wrappers import Operation
from tests.cluster.group import Group
from tests.scenarios.applications import change, changes, content, content_of, make_application
from tests.scenarios.stage import WAIT, Gate, eventually, memory

T = TypeVar("T")


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A small one."""
    path = tmp_path / "application.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE note(line); INSERT INTO note VALUES ('one'), ('two')")
    return path


async def joined(store: Store, body: Callable[[Node], Awaitable[T]]) -> T:
    """What `body` returns for a leader that joins."""
    g = Group(store)
    try:
        node = await g.node(can_lead=True)
        await node.wait_until_leader(timeout=WAIT)
        return await body(node)
    finally:
        await g.close()


async def notes(store: Store) -> list[Any]:
    return await joined(store, lambda node: node.read("SELECT * FROM note"))


def node_content(node: Node) -> Any:
    with node.connection() as db:
        return content_of(db)


@pytest.mark.parametrize("seed", range(6))
async def test_an_application_moves_in_lives_on_and_moves_out(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    source, model, out = (tmp_path / name for name in ("source.db", "model.db", "out.db"))
    make_application(source, seed)
    make_application(model, seed)
    settings = ClusterSettings(
        page_size=chance.choice((512, 4096, 16384)),
        compression=chance.choice(("zstd", "none")),
        foreign_keys=chance.random() < 0.5,
    )
    store = memory()
    g = Group(store)
    assert await g.cluster.import_file(source, "lol", settings=settings) == "lol"
    assert (await g.cluster.status()).identity.settings == settings
    await g.cluster.export(out, 0)
    assert content(out) == content(source)
    with closing(sqlite3.connect(out)) as db:
        assert db.execute("SELECT name FROM sqlite_schema WHERE name GLOB '*_lbc*'").fetchall() == []
    try:
        leader = await g.node(can_lead=True, settings={"snapshot_epochs": 5})
        await leader.wait_until_leader(timeout=WAIT)
        follower = await g.node()
        assert node_content(follower) == content(source)
        with closing(sqlite3.connect(model, isolation_level=None)) as db:
            db.execute(f"PRAGMA foreign_keys = {settings.foreign_keys}")
            for number in range(1000, 1025):
                state = chance.getstate()
                change(db, chance, number)
                chance.setstate(state)
                for statement, parameters in changes(chance, number):
                    done = await chance.choice((leader, follower)).execute(statement, parameters)
            expected = content_of(db)
        await follower.read("SELECT 1", at_least=done.epoch)
        assert node_content(follower) == node_content(leader) == expected
        await eventually(lambda: leader._local.since_snapshot.epoch > 5)
        late = await g.node()
        assert node_content(late) == expected
        await g.cluster.export(out, overwrite=True)
        assert content(out) == expected
        assert [each.name for each in tmp_path.glob("out*")] == ["out.db"]
    finally:
        await g.close()


async def test_a_clone_is_a_cluster_of_its_own_at_every_epoch(tmp_path: Path) -> None:
    g, expected = Group(memory()), dict[int, Any]()
    make_application(tmp_path / "source.db", 3)
    settings = ClusterSettings(page_size=1024, compression="none")
    await g.cluster.import_file(tmp_path / "source.db", "lol", settings=settings)
    expected[0] = content(tmp_path / "source.db")
    node = await g.node(can_lead=True, settings={"snapshot_epochs": 4})
    await node.wait_until_leader(timeout=WAIT)
    chance = random.Random(3)
    for number in range(1000, 1012):
        for statement, parameters in changes(chance, number):
            await node.execute(statement, parameters)
            expected[node.epoch.value] = node_content(node)
    await g.close()
    before = await g.store.list("")
    for epoch in expected:
        place = tmp_path / f"clone-{epoch}"  # a store of another kind
        made, metadata = await g.cluster.clone(str(place), epoch)
        assert (metadata.epoch, metadata.cluster_id) == (epoch, "lol")
        clone = Cluster(str(place), id=made)
        assert (await clone.status()).identity.settings == settings
        await clone.export(tmp_path / "out.db", overwrite=True)
        assert content(tmp_path / "out.db") == expected[epoch]
        authorities = [(await load_authorities(store)).all[0].to_json() for store in (g.store, clone.store)]
        assert made != "lol"
        assert authorities[0] != authorities[1]
    assert await g.store.list("") == before, "the source is only read"

    async def write(node: Node) -> Any:
        await node.execute("INSERT INTO log VALUES ('in the clone')")
        return await node.read("SELECT line FROM log ORDER BY rowid DESC LIMIT 1")

    assert await joined(clone.store, write) == [("in the clone",)]
    with pytest.raises(WrongCluster):
        await Cluster(clone.store, id="lol").status()


async def test_a_place_that_is_taken_is_refused_and_nothing_is_changed(application: Path, tmp_path: Path) -> None:
    source = Cluster(memory())
    await source.import_file(application, "source")
    taken = Cluster(memory())
    await taken.init("taken")
    for cluster in (taken, source):
        before = {info.key: await cluster.store.get(info.key) for info in await cluster.store.list("")}
        for attempt in (source.clone(cluster), cluster.import_file(application), cluster.init("other")):
            with pytest.raises(AlreadyInitialized, match="already; join it"):
                await attempt
        assert {info.key: await cluster.store.get(info.key) for info in await cluster.store.list("")} == before
    await taken.store.delete([names.CLUSTER])
    for attempt in (source.clone(taken), taken.import_file(application)):
        with pytest.raises(AlreadyInitialized, match="of a former cluster; delete all of"):
            await attempt
    assert await taken.store.get(names.CLUSTER) is None
    free = Cluster(memory())
    with pytest.raises(ValueError, match="needs an id of its own"):
        await source.clone(free, id="source")
    with pytest.raises(NotRetained):
        await source.clone(free, 7)
    with pytest.raises(WrongCluster):
        await Cluster(source.store, id="other").clone(free)
    with pytest.raises(NotInitialized):
        await Cluster(memory()).clone(free)
    with pytest.raises(ValueError, match="cluster id"):
        await source.clone(free, id="a/b")
    assert await free.store.list("") == []
    await source.clone(free, id="copy")
    assert (await free.status()).identity.cluster_id == "copy"


async def test_a_file_that_is_refused_leaves_the_store_untouched(application: Path) -> None:
    with closing(sqlite3.connect(application)) as db:
        db.executescript(
            "CREATE TABLE _lbc_mine(a); CREATE TABLE child(a REFERENCES note(line)); INSERT INTO child VALUES (1)"
        )
    cluster = Cluster(memory())
    with pytest.raises(NotAllowed):
        await cluster.import_file(application)
    with closing(sqlite3.connect(application)) as db:
        db.executescript("DROP TABLE _lbc_mine")
    with pytest.raises(ValueError, match="foreign key"):
        await cluster.import_file(application, settings=ClusterSettings(foreign_keys=True))
    with pytest.raises(TypeError):
        await cluster.import_file(application, settings=4096)  # type: ignore[arg-type]
    assert await cluster.store.list("") == []
    await cluster.import_file(application)
    assert await notes(cluster.store) == [("one",), ("two",)]


async def test_a_restored_file_is_a_new_cluster_s_beginning(application: Path, tmp_path: Path) -> None:
    first, second = Cluster(memory()), Cluster(memory())
    await first.import_file(application, "first")
    assert await notes(first.store) == [("one",), ("two",)]
    await first.restore(tmp_path / "restored.db")
    await second.import_file(tmp_path / "restored.db", "second")
    assert await notes(second.store) == [("one",), ("two",)]
    assert (await second.status()).epoch == 2, "led once since"


async def test_a_schema_that_needs_a_newer_sqlite_says_so_in_the_log(application: Path) -> None:
    with closing(sqlite3.connect(application)) as db:
        db.executescript("CREATE VIEW parts AS SELECT line -> '$.part' AS part FROM note WHERE json_valid(line)")
    cluster = Cluster(memory())
    await cluster.import_file(application)
    assert (await read_metadata(cluster.store, names.snapshot(0))).min_sqlite_version == "3.38.0"
    await Cluster(other := memory()).init()
    assert (await read_metadata(other, names.snapshot(0))).min_sqlite_version == "3.35.0"


class Dying(Wrapper):
    """The process dies at one request after so many: before it is sent, or after."""

    def __init__(self, store: Store, left: int, *, after: bool) -> None:
        super().__init__(store)
        self.left, self.after, self.died = left, after, False

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        if self.died:
            raise asyncio.CancelledError
        if "probe" not in key:
            self.died = not self.left
            self.left -= 1
        if self.died and self.after:
            await send()
        if self.died:
            raise asyncio.CancelledError
        return await send()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cloned", [False, True], ids=["import", "clone"])
async def test_an_import_that_dies_at_any_request_leaves_nothing_half_usable(
    after: bool, cloned: bool, application: Path
) -> None:
    source = Cluster(memory())
    await source.import_file(application, "source")
    outcomes = []
    for left in range(30):
        store = memory()
        dying = Dying(store, left, after=after)
        try:
            await (source.clone(dying, id="lol") if cloned else Cluster(dying).import_file(application, "lol"))
        except asyncio.CancelledError:
            assert dying.died
        else:
            break
        cluster = Cluster(store)
        begun = await store.get(names.CLUSTER) is not None
        whole = await store.get(names.snapshot(0)) is not None
        if whole:
            outcome = "whole"
            assert await notes(store) == [("one",), ("two",)]
        elif begun:
            outcome = "begun"
            for using in (cluster.status(), cluster.join().__aenter__(), cluster.restore("unused.db")):
                with pytest.raises(
                    NotInitialized, match=r'an import as "lol", .*delete all of \.lbc/ there and import'
                ):
                    await using
        else:
            outcome = "nothing"
        outcomes.append(outcome)
        if outcome != "nothing":
            for again in (cluster.init(), cluster.init("lol"), cluster.import_file(application, "lol")):
                with pytest.raises(AlreadyInitialized, match="already" if whole else "delete all of"):
                    await again
            await store.delete([info.key for info in await store.list(names.DIRECTORY)])
        await cluster.import_file(application, "lol")
        assert await notes(store) == [("one",), ("two",)]
    assert set(outcomes) == {"nothing", "begun", "whole"}
    assert outcomes == sorted(outcomes, key=["nothing", "begun", "whole"].index)


async def test_every_lost_answer_is_resolved(application: Path) -> None:
    for operation, key in [
        ("create", names.CLUSTER),
        ("create", names.authority(1)),
        ("put_stream", names.snapshot(0)),
    ]:
        for fault in Fault:
            if fault is Fault.CONFLICT and operation != "create":
                continue
            store = memory()
            network = Faulty(store, timeout_seconds=0.05, zombie_seconds=(0.0, 0.05))
            network.next(operation, fault, fault, key=key)  # type: ignore[arg-type]
            await Cluster(network).import_file(application, "lol")
            assert len(network.faults) == 2 or fault in (
                Fault.AFTER,
                Fault.DELAY,
                Fault.DUPLICATE,
                Fault.CONFLICT,
                Fault.HANG,
            )
            await network.settle()
            assert await notes(store) == [("one",), ("two",)]
            await network.close()


async def test_a_store_that_fails_for_good_says_what_to_delete(application: Path) -> None:
    store = memory()
    network = Faulty(store)
    network.next("put_stream", *[Fault.BEFORE] * 10)
    with pytest.raises(StoreUnavailable, match=r"broken off; unless it can be joined, delete all of \.lbc/ there"):
        await Cluster(network).import_file(application, "lol")
    with pytest.raises(AlreadyInitialized, match=r"delete all of \.lbc/"):
        await Cluster(store).init()


async def test_an_init_does_not_complete_an_import_that_is_under_way(application: Path) -> None:
    """Not even one that found no cluster when it began."""
    store, slow = memory(), asyncio.Event()
    gate = Gate(store)

    class Late(Wrapper):
        async def create(self, key: str, body: bytes) -> Any:
            if key == names.CLUSTER:
                await slow.wait()
            return await self.inner.create(key, body)

    late = [asyncio.create_task(Cluster(Late(store)).init(id)) for id in (None, "lol")]
    late += [asyncio.create_task(Cluster(Late(store)).import_file(application, id)) for id in (None, "lol")]
    gate.shut("put_stream")
    importing = asyncio.create_task(Cluster(gate).import_file(application, "lol"))
    await eventually(lambda: gate.held)
    slow.set()
    for outcome in await asyncio.gather(*late, Cluster(store).init("lol"), return_exceptions=True):
        assert isinstance(outcome, AlreadyInitialized)
    gate.open()
    assert await importing == "lol"
    assert await notes(store) == [("one",), ("two",)]


async def test_of_many_who_begin_at_once_one_succeeds_and_nothing_is_mixed(tmp_path: Path) -> None:
    for _ in range(4):
        store, paths = memory(), dict[str, Path]()
        for name in ("a", "b", "c"):
            paths[name] = tmp_path / f"{name}.db"
            with closing(sqlite3.connect(paths[name])) as db:
                db.executescript(
                    f"DROP TABLE IF EXISTS note; CREATE TABLE note(line); INSERT INTO note VALUES ('{name}')"
                )
        begun = [Cluster(store).import_file(path, name) for name, path in paths.items()]
        begun += [Cluster(store).init(name) for name in ("a", "x")]
        outcomes = await asyncio.gather(*begun, return_exceptions=True)
        assert all(isinstance(outcome, str | AlreadyInitialized) for outcome in outcomes)
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if outcomes.index(winner) < len(paths):
            assert await notes(store) == [(winner,)]
        else:
            assert await joined(store, lambda node: node.read("SELECT count(*) FROM sqlite_schema")) == [(3,)]


async def test_a_large_file_is_imported_in_bounded_memory(tmp_path: Path) -> None:
    path, size = tmp_path / "large.db", 64 << 20
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE note(line)")
        db.executemany("INSERT INTO note VALUES (randomblob(?))", [(1 << 20,)] * (size >> 20))
        db.commit()
    cluster = Cluster(str(tmp_path / "store"))
    tracemalloc.start()
    try:
        await cluster.import_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2
    assert (await cluster.status()).identity.imported


async def test_the_upload_of_an_import_and_of_a_clone_tells_how_far_it_is(tmp_path: Path) -> None:
    source = tmp_path / "app.db"
    with closing(sqlite3.connect(source)) as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("INSERT INTO t VALUES (randomblob(12000000))")
        db.commit()
    cluster, told = Cluster(memory()), list[tuple[int, int]]()
    await cluster.import_file(source, "app", on_bytes=lambda done, total: told.append((done, total)))
    size = (await cluster.status()).snapshot_bytes
    assert told[-1] == (2 * size, 2 * size)  # up, and back to be checked
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) > 5
    told.clear()
    await cluster.clone(memory(), on_bytes=lambda done, total: told.append((done, total)))
    assert [done for done, total in told if done == total] == [size, told[-1][1]]
