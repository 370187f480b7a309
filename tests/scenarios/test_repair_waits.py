"""A repair waits for signs of life before it lets the log go on: who shows one, or writes, is not deposed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from littlebigcluster import Cluster
from littlebigcluster.epochs import names
from littlebigcluster.store import Store, Wrapper
from tests.clocks import HandClock
from tests.cluster.group import Group, group
from tests.scenarios.stage import FAST, WAIT, memory
from tests.scenarios.test_repair import broken, goes_on


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


class Meanwhile(Wrapper):
    """While a repair waits for signs of life, somebody else writes an object: after its second look at the beacon, of
    which the first one tells what will be news."""

    def __init__(self, store: Store, key: str, body: bytes, also: Callable[[], None] = lambda: None) -> None:
        super().__init__(store)
        self._looks, self._key, self._body, self._also = 0, key, body, also

    async def get(self, key: str) -> bytes | None:
        found = await super().get(key)
        self._looks += key == names.BEACON
        if key == names.BEACON and self._looks == 2:
            await self.inner.put(self._key, self._body)
            self._also()
        return found


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_leader_that_cannot_be_asked_is_not_deposed(g: Group, frozen: bool) -> None:
    """Not even when the process that repairs stood still for all of the time in which it wanted to look."""
    _, head = await broken(g)
    beacon = json.dumps({"cluster_id": "lol", "term": 9, "epoch": head, "count": 1}).encode()
    clock = HandClock()
    meanwhile = Meanwhile(g.store, names.BEACON, beacon, lambda: clock.pass_time(3600.0 * frozen))
    with pytest.raises(Exception, match="a leader lives, of term 9, and cannot be asked from here"):
        await Cluster(meanwhile, clock=clock).repair(act=True, settings=replace(FAST, leader_timeout=WAIT))
    assert await g.store.get(names.wal(head + 1)) is None


async def test_an_epoch_that_comes_meanwhile_is_looked_at_anew(g: Group) -> None:
    history, head = await broken(g)
    watched = Group(Meanwhile(g.store, names.wal(head + 1), b"an epoch of somebody"))
    done = await watched.cluster.repair(act=True, settings=replace(FAST, leader_timeout=0.5))
    assert done.epoch == head + 2
    await goes_on(g, history.rows[5])
