"""What a repair must not do in another order, and what it does where epochs are merged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from littlebigcluster import Fenced, NotRetained
from littlebigcluster.epochs import names, read_metadata, read_repairs, survey_all
from littlebigcluster.store import Store
from littlebigcluster.store.wrappers import Operation, Wrapper
from tests.cluster.group import Group, group
from tests.roles.long_logs import small_spans
from tests.scenarios.damage import harm
from tests.scenarios.stage import memory
from tests.scenarios.test_past import QUERY, lived
from tests.scenarios.test_repair import QUICK, goes_on, repaired

__all__ = ["small_spans"]

T = TypeVar("T")


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


class Rival(Wrapper):
    """Somebody else creates an epoch a moment before."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self._name = name

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        if (operation, key) == ("create", self._name):
            await self.inner.put(key, b"of somebody else")
        return await send()


async def test_who_loses_the_epoch_has_written_neither_a_record_nor_a_snapshot(g: Group) -> None:
    history = await lived(g, 6, snapshot_epochs=1000)
    head = max(history.rows) + 1
    await harm(g.store, names.wal(4), "flipped")
    rival = Group(Rival(g.store, names.wal(head + 1)))
    with pytest.raises(Fenced, match=f"somebody else has created epoch {head + 1}: .* has done nothing more"):
        await rival.cluster.repair(act=True, settings=QUICK)
    assert await read_repairs(g.store) == []
    assert [info.key for info in (await survey_all(g.store)).snapshots] == [names.snapshot(0)]


async def test_its_term_is_above_that_of_leaders_whose_epochs_cannot_be_read(g: Group) -> None:
    await lived(g, 3, snapshot_epochs=1000)
    readable = max([int(info.key[5:25]) for info in (await survey_all(g.store)).epochs])
    for _ in range(3):
        node = await g.node(can_lead=True)
        await node.wait_until_leader()
        await g.leave(node)
    head = (await g.cluster.status()).epoch
    newest = await read_metadata(g.store, names.wal(head))
    assert newest.term == 4
    await g.store.delete([names.BEACON])
    for epoch in range(readable + 1, head + 1):
        await harm(g.store, names.wal(epoch), "empty")
    done = await repaired(g)
    assert done.epoch == head + 1
    made = await read_metadata(g.store, names.wal(head + 1))
    assert made.term > newest.term
    async with g.cluster.head() as state:
        assert (await state.query("SELECT value FROM _lbc WHERE key = 'term'")).rows == [(made.term,)]


async def test_it_is_one_term_above_the_newest_epoch_that_can_be_read(g: Group) -> None:
    history = await lived(g, 6, snapshot_epochs=1000)
    head = max(history.rows) + 1
    await harm(g.store, names.wal(4), "flipped")
    await repaired(g)
    assert (await read_metadata(g.store, names.wal(head + 1))).term == 2


async def merged_history(g: Group) -> tuple[dict[int, list[tuple[object, ...]]], int]:
    """Epochs 1 to 16 lie merged, beside themselves."""
    history = await lived(g, 20, snapshot_epochs=1000)
    whole = names.merged(1, 16)
    if await g.store.get(whole) is None:  # the first leader has left before: the next one does it when it merges, too
        node = await g.leader()
        while await g.store.get(whole) is None:
            await node.execute("INSERT INTO job(v) VALUES ('more')")
            history.rows[node.epoch.value] = await node.read(QUERY)
        await g.leave(node)
    return history.rows, (await g.cluster.status()).epoch


async def test_merged_epochs_lead_around_the_damage_and_nothing_newer_is_lost(
    g: Group, small_spans: None, tmp_path: Path
) -> None:
    rows, head = await merged_history(g)
    newest = rows[max(rows)]
    await harm(g.store, names.wal(6), "flipped")
    done = await repaired(g)
    assert (done.action, done.obstacle, done.newest) == ("record", "", head)
    ((first, last),) = done.lost
    assert (first, last) <= (6, 16)
    await goes_on(g, newest)
    (record,) = await read_repairs(g.store)
    assert (record.back_to, record.lost) == (None, done.lost)
    assert (await g.cluster.verify(deep=True)).findings == []
    with pytest.raises(NotRetained, match="epoch 6 is lost"):
        await g.cluster.restore(tmp_path / "x.db", 6)
    await g.cluster.restore(tmp_path / "x.db", 18)


@pytest.mark.parametrize("which", ["alone", "with an epoch in it"])
async def test_damaged_merged_epochs_are_set_aside(g: Group, small_spans: None, which: str) -> None:
    rows, head = await merged_history(g)
    merged = [info.key for info in (await survey_all(g.store)).merged]
    for key in merged:
        await harm(g.store, key, "flipped")
    if which != "alone":
        await harm(g.store, names.wal(6), "flipped")
    done = await repaired(g)
    assert await survey_all(g.store) is not None
    assert (done.action, done.epoch) == (("record", head) if which == "alone" else ("go back", head + 1))
    assert (await survey_all(g.store)).merged == []
    assert [info.key for info in await g.store.list(names.ASIDE)] == [names.aside(key) for key in merged]
    assert (await g.cluster.verify(deep=True)).findings == []
    await goes_on(g, rows[max(rows) if which == "alone" else 5])
