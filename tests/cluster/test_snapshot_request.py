"""Snapshots on request: by a follower, or by the leader where there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from littlebigcluster.cluster import SNAPSHOT_PATH, Snapshot
from littlebigcluster.epochs import epoch_of, names, survey_all
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.roles import Snapshotter
from littlebigcluster.store import Fault, Faulty
from tests.cluster.group import Group, all_fed, eventually, group


@pytest.fixture
async def cluster() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


async def stored(cluster: Group) -> list[int]:
    return [epoch_of(info) for info in (await survey_all(cluster.store)).snapshots]


async def test_a_leader_alone_makes_it_itself(cluster: Group) -> None:
    leader = await cluster.leader()
    made = await leader.snapshot()
    assert (made.epoch, made.by) == (leader.epoch.value, leader.id)
    assert made.size_bytes == (await survey_all(cluster.store)).snapshots[0].size_bytes
    assert await cluster.store.get(names.LAST_SNAPSHOT) == names.marker(made.epoch)


async def test_a_leader_has_the_follower_with_the_lowest_lag_make_it(cluster: Group) -> None:
    leader = await cluster.leader()
    far, near = await cluster.node(), await cluster.node()
    await all_fed(far, near)
    await cluster.unfeed(far, leader)
    await all_fed(near)
    for name in "abc":
        await leader.execute("INSERT INTO job VALUES (?)", (name,))
    # The leader itself is ahead of both until the next report.
    await eventually(lambda: len({each.epoch for each in leader.members.value if each.id != leader.id}) > 1)
    made = await leader.snapshot()
    assert (made.epoch, made.by) == (leader.epoch.value, near.id)
    # The leader knows, and shows it.
    assert leader.status()["snapshot_epoch"] == made.epoch
    assert not (await cluster.cluster.verify(deep=True)).findings


async def test_a_follower_makes_its_own_of_what_it_has(cluster: Group) -> None:
    await cluster.leader()
    follower = await cluster.node()
    made = await follower.snapshot()
    assert (made.epoch, made.by) == (follower.epoch.value, follower.id)


async def test_it_covers_what_was_written_before(cluster: Group) -> None:
    leader = await cluster.leader()
    follower = await cluster.node()
    await all_fed(follower)
    for number in range(10):
        done = await leader.execute("INSERT INTO job VALUES (?)", (number,))
        assert (await leader.snapshot()).epoch >= done.epoch


async def test_the_leader_does_it_when_the_follower_cannot(
    cluster: Group, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leader = await cluster.leader()
    network = Faulty(cluster.store)
    follower = await cluster.node(store=network)
    await all_fed(follower)
    await eventually(lambda: len(leader.members.value) == 2)
    network.next("put_stream", Fault.BEFORE)
    caplog.set_level("INFO")
    made = await leader.snapshot()
    assert (made.epoch, made.by) == (leader.epoch.value, leader.id)
    assert "made no snapshot, this node does" in caplog.text
    await cluster.crash(follower)
    assert (await leader.snapshot()).by == leader.id


async def test_several_at_once_all_end_well(cluster: Group) -> None:
    leader = await cluster.leader()
    followers = [await cluster.node() for _ in range(2)]
    await all_fed(*followers)

    async def write() -> None:
        for number in range(20):
            await leader.execute("INSERT INTO job VALUES (?)", (number,))

    writing = asyncio.create_task(write())
    made = await asyncio.gather(*(node.snapshot() for node in (leader, leader, *followers, *followers)))
    await writing
    assert {each.epoch for each in made} <= set(await stored(cluster))
    # A hint: of two nodes that end at the same moment the one with the older snapshot may be the last to write it.
    assert await cluster.store.get(names.LAST_SNAPSHOT) in {names.marker(each.epoch) for each in made}
    assert not (await cluster.cluster.verify(deep=True)).findings
    last = await leader.snapshot()
    assert await cluster.store.get(names.LAST_SNAPSHOT) == names.marker(last.epoch)
    assert last.epoch >= max(each.epoch for each in made)


async def test_a_snapshot_that_takes_too_long_is_given_up(cluster: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = await cluster.leader()
    make = Snapshotter.make

    async def slow(self: Snapshotter) -> object:
        await asyncio.sleep(60)
        return await make(self)

    monkeypatch.setattr(Snapshotter, "make", slow)
    with pytest.raises(TimeoutError):
        await leader.snapshot(timeout=0.1)
    assert await stored(cluster) == [0]


async def test_what_the_store_refuses_comes_out(cluster: Group) -> None:
    network = Faulty(cluster.store)
    leader = await cluster.leader(store=network)
    network.next("put_stream", Fault.BEFORE)
    with pytest.raises(StoreUnavailable, match="put_stream"):
        await leader.snapshot()
    assert isinstance(await leader.snapshot(), Snapshot)


@pytest.mark.parametrize("body", [b"{}", b'{"here": 1}', b'{"here": true, "at_least": "x"}'])
async def test_a_request_that_is_none_is_refused(cluster: Group, body: bytes) -> None:
    leader = await cluster.leader()
    answer = await leader.leader_client.post(SNAPSHOT_PATH, body)
    assert (answer.status, "snapshot" in json.loads(answer.body)["error"]) == (400, True)
    assert await stored(cluster) == [0]


async def test_from_outside_the_leader_is_asked(cluster: Group) -> None:
    leader = await cluster.leader()
    answer = await cluster.cluster.ask_leader("POST", SNAPSHOT_PATH, {"here": False})
    assert answer["epoch"] == leader.epoch.value
    assert (await cluster.cluster.status()).snapshot_epoch == answer["epoch"]
