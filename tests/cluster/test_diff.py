"""What changed between two points of a cluster's past."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from littlebigcluster import Cluster, CorruptLog, NotRetained
from littlebigcluster.cluster import compare
from littlebigcluster.database import Counts
from littlebigcluster.epochs import names
from tests.cluster.group import Group, group
from tests.scenarios.stage import memory
from tests.scenarios.test_past import History, lived


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


def expected(history: History, a: int, b: int) -> Counts:
    old, new = dict(history.rows[a]), dict(history.rows[b])
    both = old.keys() & new.keys()
    return Counts(len(new.keys() - both), len(old.keys() - both), sum(old[key] != new[key] for key in both))


async def test_any_two_epochs_are_compared(g: Group) -> None:
    history = await lived(g, 25, seed=3)
    chance = random.Random(3)
    epochs = sorted(history.rows)
    for _ in range(12):
        a, b = chance.choice(epochs), chance.choice(epochs)
        async with history.cluster.diff(a, b) as changes:
            found = changes.tables["job"].counts if "job" in changes.tables else Counts()
            assert found == expected(history, a, b)
            assert (changes.before.epoch, changes.after.epoch) == (a, b)
            assert changes.schema == []
            if found:
                made = dict(history.rows[a])
                async for row in changes.rows("job"):
                    if row.old is not None:
                        assert made.pop(row.old[0]) == row.old[1]
                    if row.new is not None:
                        made[row.new[0]] = row.new[1]
                assert made == dict(history.rows[b])
                limited = [row async for row in changes.rows("job", limit=1)]
                assert len(limited) == 1


async def test_points_are_those_of_the_past_and_the_second_is_now_if_not_given(g: Group) -> None:
    history = await lived(g, 10)
    first, last = min(history.rows), max(history.rows)
    history.clock.moment = history.moments[last] + timedelta(hours=1)
    async with history.cluster.diff(history.moments[first], timedelta(hours=1)) as changes:
        assert (changes.before.epoch, changes.after.epoch) == (first, last)
    async with history.cluster.diff(first) as changes:
        assert changes.after.epoch == last + 1  # the release, which changes nothing that users made
        assert changes.tables["job"].counts == expected(history, first, last)
    async with history.cluster.diff(last) as changes:
        assert not changes
    with pytest.raises(NotRetained):
        async with history.cluster.diff(first, last + 9):
            pass
    with pytest.raises(ValueError, match='there is no table "nothing" in either state'):
        async with history.cluster.diff(first, table="nothing"):
            pass


async def test_a_damaged_epoch_is_named_and_nothing_is_left(
    g: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    history = await lived(g, 5, snapshot_epochs=100)
    await g.store.put(names.wal(4), b"x" * 5000)
    before = set(tmp_path.iterdir())
    with pytest.raises(CorruptLog, match=names.wal(4)):
        async with history.cluster.diff(2, 5):
            pass
    assert set(tmp_path.iterdir()) == before


async def test_a_comparison_that_is_cancelled_ends(g: Group) -> None:
    node = await g.leader()
    await node.execute("CREATE TABLE t AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i+1 FROM n LIMIT 300000)"
                       " SELECT i, hex(i) AS h FROM n")  # fmt: skip
    await node.execute("UPDATE t SET i = -i")
    cluster = Cluster(g.store)
    async with cluster.at(node.epoch.value - 1) as old, cluster.at(node.epoch.value) as new:
        comparing = asyncio.create_task(compare(old, new))
        await asyncio.sleep(0.05)
        assert not comparing.done()
        comparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await comparing
        assert (await new.query("SELECT count(*) FROM t")).rows == [(300000,)]
        assert (await compare(old, new)).tables["t"].counts == Counts(changed=300000)
