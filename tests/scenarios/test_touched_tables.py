"""The log with the tables that each epoch touched, from the store alone."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Cluster, CorruptLog
from littlebigcluster.cluster import touching
from littlebigcluster.database import Replica
from littlebigcluster.epochs import Identity, Survey, names
from littlebigcluster.roles import Restored, restore_at
from littlebigcluster.store import Store
from tests.cluster.group import Group, eventually, group
from tests.scenarios.damage import wrong_bit
from tests.scenarios.stage import WAIT, Gate, memory
from tests.scenarios.test_past import History, lived
from tests.scenarios.test_repair import repaired


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all is restored to, and nothing may be left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def tables(cluster: Cluster, **which: int) -> dict[int, tuple[str, ...] | None]:
    return {entry.metadata.epoch: entry.tables async for entry in cluster.history(tables=True, **which)}


async def pins(g: Group) -> list[str]:
    return [info.key for info in await g.store.list(names.PINS)]


async def test_each_epoch_tells_the_tables_it_touched(g: Group, temporary: Path) -> None:
    node = await g.leader(settings={"snapshot_epochs": 4})
    expected: dict[int, tuple[str, ...]] = {}
    for statement, touched in [
        ("CREATE TABLE a(id INTEGER PRIMARY KEY, v)", ("(schema)", "a")),
        ("CREATE TABLE b(v UNIQUE)", ("(schema)", "b")),
        ("INSERT INTO a(v) VALUES (zeroblob(100000))", ("a",)),
        ("INSERT INTO b SELECT id FROM a", ("b",)),
        ("UPDATE a SET v = 1", ("a",)),
        ("INSERT INTO job VALUES (1)", ("job",)),
        ("DROP TABLE b", ("(schema)", "b")),
    ]:
        expected[(await node.execute(statement)).epoch] = touched
    found = await tables(g.cluster)
    assert {epoch: found[epoch] for epoch in expected} == expected
    assert found[1] == (), "only the library's own tables"
    last = max(expected)
    assert await tables(g.cluster, limit=3) == {epoch: found[epoch] for epoch in range(last - 2, last + 1)}
    assert await tables(g.cluster, since=last - 1) == {epoch: found[epoch] for epoch in (last - 1, last)}
    assert [entry.tables async for entry in g.cluster.history(limit=2)] == [None, None]
    assert list(temporary.glob("lbc-log-*")) == []
    assert await pins(g) == []


async def test_epochs_to_come_are_told_with_their_tables(g: Group, temporary: Path) -> None:
    node = await g.leader()
    since = node.epoch.value
    async with aclosing(g.cluster.history(since=since, follow=True, tables=True)) as history, asyncio.timeout(WAIT):
        assert (await anext(history)).tables == ("(schema)", "job")
        await node.execute("INSERT INTO job VALUES (1)")
        assert (await anext(history)).tables == ("job",)
        assert await pins(g) == [], "who follows for ever holds up no retention"
        await node.execute("CREATE TABLE c(v)")
        assert (await anext(history)).tables == ("(schema)", "c")
        assert len(list(temporary.glob("lbc-log-*"))) == 1
    assert list(temporary.glob("lbc-log-*")) == []


async def test_a_rollback_tells_what_it_brings_back(g: Group) -> None:
    node = await g.leader()
    await node.execute("CREATE TABLE other(v)")
    to = node.epoch.value
    await node.execute("INSERT INTO job VALUES (1)")
    await node.execute("INSERT INTO job VALUES (2)")
    done = await node.rollback(to)
    assert (await tables(g.cluster, since=done.epoch))[done.epoch] == ("job",)


async def test_what_retention_needs_to_keep_is_pinned_meanwhile(g: Group) -> None:
    history = await lived(g, 10)
    async with aclosing(history.cluster.history(tables=True)) as entries:
        await anext(entries)
        (pin,) = await pins(g)
        assert b'"epoch": 0' in (await g.store.get(pin) or b"")
    assert await pins(g) == []


async def test_an_epoch_whose_past_is_not_there_any_more_is_unknown(g: Group) -> None:
    history = await lived(g, 20)
    known = await tables(history.cluster)
    kept = [info.key for info in await g.store.list(names.DIRECTORY) if info.key.endswith(".db")][1]
    oldest = int(Path(kept).stem)
    await g.store.delete([names.snapshot(0), *(names.wal(epoch) for epoch in range(1, oldest))])
    await g.store.put(names.LAST_RETAINED, b"%020d" % oldest)
    assert await tables(history.cluster) == {
        epoch: None if epoch == oldest else found for epoch, found in known.items() if epoch >= oldest
    }


async def test_damage_is_named_and_after_a_repair_what_it_hides_is_unknown(g: Group) -> None:
    history = await damaged(g, 12)
    with pytest.raises(CorruptLog, match=names.wal(12)):
        await tables(history.cluster)
    head = max(history.rows) + 1
    assert (await repaired(g)).epoch == head + 1
    node = await g.node(can_lead=True)
    await node.wait_until_leader(timeout=WAIT)
    written = (await node.execute("DELETE FROM job")).epoch
    found = await tables(history.cluster)
    assert [epoch for epoch, touched in found.items() if touched is None] == list(range(12, head + 2))
    assert found[11] is not None
    assert found[written] == ("job",)


async def damaged(g: Group, epoch: int) -> History:
    """A cluster that is down, with one epoch whose content is damaged; its metadata can be read."""
    history = await lived(g, 20, snapshot_epochs=1000)
    body = await g.store.get(names.wal(epoch)) or b""
    await g.store.put(names.wal(epoch), wrong_bit(body, len(body) - 9))
    return history


async def test_one_restore_is_enough(g: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    history = await lived(g, 20)
    restored: list[int] = []

    async def seen(
        store: Store, identity: Identity, directory: Path, found: Survey, epoch: int, **how: Any
    ) -> Restored:
        restored.append(epoch)
        return await restore_at(store, identity, directory, found, epoch, **how)

    monkeypatch.setattr(touching, "restore_at", seen)
    await tables(history.cluster)
    assert restored == [0]


async def test_who_gives_up_at_the_end_closes_the_copy_all_the_same(g: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    history = await lived(g, 3)
    gate, closed, close = Gate(g.store), list[Path](), Replica.close

    def noted(replica: Replica) -> None:
        closed.append(replica.path)
        close(replica)

    async def look() -> None:
        async with aclosing(Cluster(gate).history(tables=True)) as entries:
            await anext(entries)
            closed.clear()  # of other ones
            gate.shut(only="delete")

    assert history.rows
    monkeypatch.setattr(Replica, "close", noted)
    looking = asyncio.create_task(look())
    await eventually(lambda: gate.held)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert len(closed) == 1
