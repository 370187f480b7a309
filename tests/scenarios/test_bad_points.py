"""Going back where that cannot be: to a point of another cluster, on a full disk, while the leader changes."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Aborted, Cluster, LbcError, NotRetained, OutcomeUnknown, WrongCluster
from littlebigcluster.epochs import names
from tests.cluster.group import Group, all_fed, eventually, group
from tests.scenarios.stage import FAST, WAIT, Gate, memory
from tests.scenarios.test_past import lived


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def test_an_epoch_of_a_clone_s_source_is_none_of_the_clone_s(g: Group, tmp_path: Path) -> None:
    history = await lived(g, 6)
    clone = Group(memory())
    await g.cluster.clone(clone.cluster, 4, id="copy")
    after = max(history.rows)
    what = rf"epoch {after} is not in the log, which goes from epoch 0 \(20.*Z\) to epoch "
    with pytest.raises(NotRetained, match=what + r"0 \("):
        await clone.cluster.restore(tmp_path / "x.db", after)
    node = await clone.leader(settings={"directory": tmp_path / "node"})
    head = node.epoch.value
    for back in (node.rollback(after), clone.cluster.rollback(after, settings=FAST)):
        with pytest.raises(NotRetained, match=what + rf"{head} \("):
            await back
    with pytest.raises(NotRetained, match=what + rf"{head} \("):
        async with node.at(after):
            pass
    assert node.epoch.value == head
    refused = Cluster(clone.store, id="lol")
    for attempt in (
        refused.rollback(1, settings=FAST),
        refused.restore(tmp_path / "x.db", 1),
        refused.export(tmp_path / "x.db", 1),
        refused.repair(act=True, settings=FAST),
        refused.clone(memory(), 1),
    ):
        with pytest.raises(WrongCluster, match='holds cluster "copy", not "lol"'):
            await attempt
    assert node.epoch.value == head
    assert not (tmp_path / "x.db").exists()
    await clone.close()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """This process cannot write beyond the first page of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_of(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


async def test_a_full_disk_is_said_and_nothing_is_left_and_then_it_works(g: Group, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    a = await g.leader(settings={"directory": directory})
    b = await g.node()
    await all_fed(b)
    before = (await a.execute("INSERT INTO job VALUES (zeroblob(20000))")).epoch
    await a.execute("DELETE FROM job")
    head, files = a.epoch.value, files_of(directory)

    async def look_back() -> None:
        async with a.at(before) as past:
            assert await past.read("SELECT length(name) FROM job") == [(20000,)]

    for back in (look_back, lambda: a.rollback(before), lambda: b.rollback(before)):
        with full_disk(), pytest.raises((OSError, LbcError), match="File too large"):
            await back()
        assert files_of(directory) == files
    assert (a.is_leader, a.epoch.value) == (True, head)
    await look_back()
    await b.rollback(before)
    assert await a.read("SELECT length(name) FROM job") == [(20000,)]


async def test_the_second_of_two_rollbacks_is_refused_and_says_why(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    b = await g.node()
    await all_fed(b)
    first = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    await a.execute("INSERT INTO job VALUES (2)")
    gate.shut(only="create")
    going_back = asyncio.create_task(a.rollback(first))
    await eventually(lambda: gate.held)
    for node in (a, b):
        with pytest.raises(Aborted, match="another rollback is under way; nothing was done"):
            await node.rollback(0)
    gate.open()
    assert (await going_back).value == first
    assert await a.read("SELECT * FROM job") == [(1,)]


async def test_two_rollbacks_of_a_cluster_that_is_down_come_one_after_the_other(g: Group) -> None:
    a = await g.leader()
    first = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    second = (await a.execute("INSERT INTO job VALUES (2)")).epoch
    await g.leave(a)
    results: list[Any] = await asyncio.gather(
        *(g.cluster.rollback(to, settings=FAST) for to in (first, second)), return_exceptions=True
    )
    done = [each for each in results if not isinstance(each, BaseException)]
    assert all(isinstance(each, LbcError) for each in results if isinstance(each, BaseException)), results
    last = max(done, key=lambda each: each.epoch)
    async with g.cluster.head() as head:
        assert len((await head.query("SELECT * FROM job")).rows) == {first: 1, second: 2}[last.value]


async def test_a_follower_whose_leader_dies_in_the_midst_is_told_that_nobody_knows(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    b = await g.node(can_lead=True)
    await all_fed(b)
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    gate.shut(only="create")
    going_back = asyncio.create_task(b.rollback(before))
    await eventually(lambda: gate.held)
    await g.crash(a)
    with pytest.raises(OutcomeUnknown, match="the rollback may have taken effect"):
        await going_back
    await b.wait_until_leader(timeout=WAIT)
    gate.open()
    await b.rollback(before)
    assert await b.read("SELECT * FROM job") == []


async def test_a_leader_that_steps_down_in_the_midst_finishes_it_first(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate)
    b = await g.node(can_lead=True)
    await all_fed(b)
    before = a.epoch.value
    await a.execute("INSERT INTO job VALUES (1)")
    gate.shut(only="create")
    going_back = asyncio.create_task(b.rollback(before))
    await eventually(lambda: gate.held)
    stepping = asyncio.create_task(a.step_down())
    await asyncio.sleep(0.1)
    gate.open()
    await stepping
    assert (await going_back).value == before
    await b.execute("INSERT INTO job VALUES (2)")  # whoever leads now
    assert await b.read("SELECT * FROM job", consistency="strong") == [(2,)]


async def test_a_destination_that_holds_other_things_keeps_them_and_one_that_is_a_file_is_refused(
    g: Group, tmp_path: Path
) -> None:
    await lived(g, 2)
    target = Cluster(tmp_path / "used")
    await target.store.put("models/1", b"weights")
    await g.cluster.clone(target, id="copy")
    assert await target.store.get("models/1") == b"weights"
    assert (await target.status()).identity.cluster_id == "copy"
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(LbcError, match="Not a directory"):
        await g.cluster.clone(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "not a directory"
    await target.store.put(names.wal(9), b"left over")
    await target.store.delete([names.CLUSTER])
    with pytest.raises(LbcError, match="of a former cluster; delete all of"):
        await g.cluster.clone(target)
    assert await target.store.get("models/1") == b"weights"
