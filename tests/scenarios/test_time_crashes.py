"""Who snapshots, merges or deletes dies at any request: whoever comes next finds all in order, and every point as it
was.

The same of repairs is in `test_repair.py`, of imports and clones in `test_moving.py`; which points retention keeps, in
`tests/roles/test_retention.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Cluster, Node
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import epoch_of, merged, names, retained, survey_all
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.roles import Snapshotter
from littlebigcluster.roles import retention as retention_module
from littlebigcluster.roles.retention import STANDING_SECONDS, Retention
from littlebigcluster.store import Store, Wrapper, open_store
from tests import buckets
from tests.clocks import HandClock
from tests.cluster.group import Group, group
from tests.dated import Dated
from tests.dying import Dying
from tests.roles.long_logs import LongLog
from tests.scenarios.stage import FAST, memory
from tests.servers import Server
from tests.tools.proxy import Break, proxied

pytestmark = pytest.mark.slow

QUERY = "SELECT id, hex(v) FROM job ORDER BY id"
Rows = list[tuple[Any, ...]]


async def in_order(store: Store, first: int, head: int) -> None:
    """Nothing in the bucket is amiss, nor is anything that can be restored missing."""
    verified = await Cluster(store).verify(deep=True)
    assert verified.findings == []
    assert verified.restorable == [(first, head)]


async def copied(store: Store, target: Store) -> None:
    for info in await store.list(""):
        await target.put(info.key, await store.get(info.key) or b"")


# -- snapshots --------------------------------------------------------------------------------------------------------


class Written:
    """A cluster of some size that lives, and its rows at each epoch."""

    def __init__(self, g: Group, node: Node) -> None:
        self.store, self.node = g.store, node
        self.rows: dict[int, Rows] = {}

    async def write(self, epochs: int) -> None:
        await self.node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, v)")
        for _ in range(epochs):
            done = await self.node.execute("INSERT INTO job(v) VALUES (randomblob(60000))")
            self.rows[done.epoch] = await self.node.read(QUERY)

    def snapshotter(self, store: Store) -> Snapshotter:
        """That of a node with the same copy of the database."""
        return Snapshotter(store, self.node._local, FAST, scratch=self.node._directory, clock=Clock())

    async def check(self, store: Store) -> bool:
        """Everything is as it was, and what the marker names is there. Whether the snapshot is."""
        head = max(self.rows)
        await in_order(store, 0, head)
        marked = names.parse_marker(await store.get(names.LAST_SNAPSHOT)) or 0
        assert await store.get(names.snapshot(marked)) is not None
        for epoch in (min(self.rows), head):
            async with Cluster(store).at(epoch) as state:
                assert (await state.query(QUERY)).rows == self.rows[epoch]
        return marked == head

    async def goes_on(self, store: Store) -> None:
        """The next one makes the snapshot, and what came of the former one is in nobody's way."""
        await self.snapshotter(store).make()
        assert await self.check(store)


@pytest.fixture
async def written() -> AsyncIterator[Written]:
    async with group() as g:
        node = await g.node(can_lead=True)
        await node.wait_until_leader()
        made = Written(g, node)
        await made.write(5)
        yield made


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_node_that_dies_at_any_request_of_a_snapshot_leaves_a_whole_one_or_none(
    how: str, written: Written
) -> None:
    outcomes = []
    for at in count(1):
        store = memory()
        await copied(written.store, store)
        try:
            await written.snapshotter(Dying(store, at, how)).make()
            break
        except StoreUnavailable:
            outcomes.append(await written.check(store))
            await written.goes_on(store)
    assert outcomes == [False] * (at - 2) + [how == "after"], "the marker comes last"
    assert at > 5, "every request was tried"


@pytest.mark.parametrize("how", [Break.RESET_BEFORE, Break.RESET_AFTER], ids=["before", "after"])
async def test_a_node_that_dies_at_any_part_of_an_upload_leaves_a_whole_snapshot_or_none(
    how: Break, written: Written, ministack: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("littlebigcluster.store.object_store.PART_BYTES", 128 << 10)
    outcomes, seen = [], set[str]()
    async with proxied(ministack.port) as proxy:
        for at in count(1):
            url = buckets.new_s3_url(ministack)
            store = open_store(url, clock=Clock())
            await copied(written.store, store)
            left, over = at, asyncio.Event()

            def rule(method: str, path: str, over: asyncio.Event = over) -> Break | None:
                nonlocal left
                left -= 1
                if left == 0:
                    over.set()
                    return how
                return Break.RESET_BEFORE if left < 0 else None

            proxy.rule = rule
            mortal = open_store(url.replace(str(ministack.port), str(proxy.port)), clock=Clock())
            making = asyncio.create_task(written.snapshotter(mortal).make())
            dying = asyncio.create_task(over.wait())
            await asyncio.wait([making, dying], return_when=asyncio.FIRST_COMPLETED)
            if not over.is_set():
                dying.cancel()
                await making
                break
            if how is Break.RESET_AFTER:  # the store acts, and nobody hears of it
                await asyncio.sleep(0.05)
            making.cancel()
            await asyncio.wait([making])
            outcomes.append(await written.check(store))
            await written.goes_on(store)
    seen = {f"{method} {path.partition('?')[2].partition('=')[0]}" for method, path in proxy.requests}
    assert {"POST uploads", "PUT partNumber", "POST uploadId"} <= seen, "it was sent in parts"
    assert sorted(outcomes) == outcomes
    assert at > 8, "every request was tried"


async def test_an_upload_that_fails_half_way_lets_go_of_its_file(written: Written) -> None:
    class Failing(Wrapper):
        async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
            self.chunks = chunks
            await anext(chunks)
            await anext(chunks)
            raise StoreUnavailable("half way")

    store = Failing(written.store)
    with pytest.raises(StoreUnavailable, match="half way"):
        await written.snapshotter(store).make()
    generator: Any = store.chunks
    assert generator.ag_frame is None, "it is closed, and the file with it"


# -- merging and deleting ---------------------------------------------------------------------------------------------


@pytest.fixture
async def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LongLog]:
    monkeypatch.setattr(merged, "FANOUT", 3)
    made = await LongLog(tmp_path, seed=5, store=Dated()).begin()
    yield made
    made.close()


@contextlib.contextmanager
def on(log: LongLog, store: Store) -> Any:
    """It goes on in another store that holds the same."""
    former, log.store = log.store, store
    try:
        yield
    finally:
        log.store = former


@pytest.mark.parametrize("how", ["before", "after"])
async def test_who_dies_at_any_request_of_merging_leaves_every_point_as_it_was(
    how: str, log: LongLog, tmp_path: Path
) -> None:
    await log.write(11)
    original: Any = log.store
    for at in count(1):
        with on(log, store := await original.copy()):
            dying = log.compactor(Dying(store, at, how))
            dying._done = 0
            try:
                await dying.make_pass()
                break
            except StoreUnavailable:
                pass
            await in_order(store, 0, 11)
            assert await log.restored(tmp_path, at % 12) == log.states[at % 12]
            await log.compactor(done=11).make_pass()
            await in_order(store, 0, 11)
            assert len(await log.merged()) == 4
            for epoch in (at % 12, 11):
                assert await log.restored(tmp_path, epoch) == log.states[epoch]
    assert at > 12, "every request was tried, and so was every point"


@pytest.mark.parametrize("how", ["before", "after", "half"])
async def test_who_dies_at_any_request_of_deleting_takes_nothing_along_that_is_kept(
    how: str, log: LongLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "DELETE_BATCH", 4)
    for epoch in range(1, 17):
        log.store.pass_time(600)  # type: ignore[attr-defined]
        await log.write(1)
        if epoch in (5, 8, 15):
            await log.snapshot()
    await log.compactor().make_pass()
    original: Any = log.store
    # The retention of an hour began when epoch 10 was the newest.
    for at in count(1):
        with on(log, store := await original.copy()):
            clock, died = HandClock(), False
            try:
                await passes(log, Dying(store, at, how), clock)
            except StoreUnavailable:
                died = True
            first = epoch_of((await retained(store)).snapshots[-1])
            assert first in (0, 8)
            await in_order(store, first, 16)
            for epoch in (first, 8 + at % 9):
                assert await log.restored(tmp_path, epoch) == log.states[epoch]
            await passes(log, store, clock)
            found = await survey_all(store)
            assert [epoch_of(info) for info in found.snapshots] == [15, 8]
            assert epoch_of(found.epochs[0]) == 8
            assert all(span.first > 8 for span in await log.merged())
            await in_order(store, 8, 16)
            for epoch in (8 + at % 9, 16):
                assert await log.restored(tmp_path, epoch) == log.states[epoch]
        if not died:
            break
    assert at > 12, "every request was tried, and so was every point"


async def passes(log: LongLog, store: Store, clock: HandClock) -> None:
    """Those of a leader that has just begun."""
    leader = Retention(store, log.local, 3600.0, make_snapshot=log.snapshot, clock=clock)
    for _ in range(3):
        clock.sleep_machine(STANDING_SECONDS + 1)
        await leader.make_pass()
