"""A random history, and a plain SQLite file beside it: every epoch comes back as it was, whatever lies in the bucket.

`LBC_SEEDS=1000` tries many; a seed that fails is run again with `LBC_SEED=N`.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Cluster, ClusterSettings, Node, NotRetained
from littlebigcluster.epochs import epoch_of, merged, names, retained, survey_all
from littlebigcluster.roles.compactor import Compactor
from littlebigcluster.roles.retention import STANDING_SECONDS, Retention
from tests.clocks import HandClock
from tests.cluster.group import Group
from tests.dated import Dated
from tests.scenarios.applications import Content, changes, content, content_of, make_application
from tests.scenarios.stage import WAIT

pytestmark = pytest.mark.slow

SEEDS = (
    [int(os.environ["LBC_SEED"])] if "LBC_SEED" in os.environ else list(range(int(os.environ.get("LBC_SEEDS", "3"))))
)
STEPS = 26
PACE_SECONDS = 400.0
"""From one step to the next, by the clock of the store."""
RETENTION_SECONDS = 3600.0

Change = tuple[str, tuple[Any, ...]]


def digest(found: Content) -> str:
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


class Model:
    """A SQLite file that knows nothing of clusters, and what was in it at each epoch."""

    def __init__(self, path: Path, *, foreign_keys: bool) -> None:
        self._path, self._foreign_keys = path, foreign_keys
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
        self._images: list[bytes] = []
        self.digests: list[str] = []
        """By epoch."""
        self.keep(0)

    @property
    def head(self) -> int:
        return len(self.digests) - 1

    def change(self, statements: list[Change]) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute(f"PRAGMA foreign_keys = {self._foreign_keys}")
            if len(statements) > 1:  # else VACUUM could not be one
                statements = [("BEGIN", ()), *statements, ("COMMIT", ())]
            for statement, parameters in statements:
                db.execute(statement, parameters)

    def go_back(self, epoch: int) -> None:
        self._path.write_bytes(self._images[epoch])

    def keep(self, epoch: int) -> None:
        """What is in it now is what was there at all epochs since the last one, to this one."""
        image, found = self._path.read_bytes(), digest(content(self._path))
        while self.head < epoch:
            self._images.append(image)
            self.digests.append(found)


class Past:
    """A cluster that lives, and its model."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.chance = random.Random(seed)
        self.store, self._seed, self._directory = Dated(), seed, directory
        self.group = Group(self.store)
        self.cluster: Cluster = self.group.cluster
        self.leader: Node
        self.happened: list[str] = []
        self._clock = HandClock()
        self._named = 0

    async def begin(self) -> None:
        chance = self.chance
        settings = ClusterSettings(
            page_size=chance.choice((512, 1024, 4096)),
            compression=chance.choice(("zstd", "none")),
            foreign_keys=chance.random() < 0.5,
        )
        source, model = self._directory / "source.db", self._directory / "model.db"
        for path in (source, model):
            make_application(path, self._seed, rows=20)
        await self.cluster.import_file(source, "lol", settings=settings)
        self.compression = settings.compression
        self.model = Model(model, foreign_keys=settings.foreign_keys)
        self.leader = await self._standby()
        await self.leader.wait_until_leader(timeout=WAIT)
        self.model.keep(self.leader.epoch.value)
        self.follower = await self.group.node()

    async def _standby(self) -> Node:
        return await self.group.node(can_lead=True, settings={"snapshot_epochs": self.chance.choice((6, 15, 1000))})

    async def step(self) -> None:
        self.store.pass_time(PACE_SECONDS)
        what = self.chance.choices(
            ("change", "change schema", "vacuum", "roll back", "snapshot", "succeed", "crash"), (40, 14, 5, 14, 8, 6, 2)
        )[0]
        self.happened.append(what)
        match what:
            case "change":
                number = 1000 + len(self.happened)
                some = [changes(self.chance, number * 10 + more) for more in range(self.chance.choice((1, 1, 4)))]
                await self._change([each for statements in some for each in statements])
            case "change schema":
                await self._change(self._schema_change())
            case "vacuum":
                await self.leader.execute("VACUUM")
                self.model.change([("VACUUM", ())])
            case "roll back":
                first = epoch_of((await retained(self.store)).snapshots[-1])
                to = self.chance.randint(first, self.model.head)
                await self.chance.choice((self.leader, self.follower)).rollback(to)
                self.model.go_back(to)
            case "snapshot":
                await self.chance.choice((self.leader, self.follower)).snapshot()
            case "succeed" | "crash":
                await self._succeed(crashed=what == "crash")
        if what not in ("succeed", "crash"):  # these make several, and change nothing
            assert self.leader.epoch.value <= self.model.head + 1
        self.model.keep(self.leader.epoch.value)
        await self.follower.epoch.until(self.model.head.__le__, timeout=WAIT)
        with self.follower.connection() as db:
            assert digest(content_of(db)) == self.model.digests[-1], what

    async def _change(self, statements: list[Change]) -> None:
        """All of them in one transaction."""

        def run(db: sqlite3.Connection) -> None:
            for statement, parameters in statements:
                db.execute(statement, parameters)

        await self.leader.transaction(run)
        self.model.change(statements)

    def _schema_change(self) -> list[Change]:
        self._named += 1
        name, before = f"extra_{self._named}", f"extra_{self.chance.randint(0, self._named)}"
        return self.chance.choice(
            [
                [
                    (f"CREATE TABLE {name}(a PRIMARY KEY, b)", ()),
                    (f"INSERT INTO {name} VALUES (1, zeroblob(5000))", ()),
                ],
                [(f"DROP TABLE IF EXISTS {before}", ())],
                [(f"CREATE INDEX {name} ON log(line)", ())],
                [(f"ALTER TABLE book ADD COLUMN {name} DEFAULT {self._named}", ())],
                [(f"CREATE VIRTUAL TABLE {name} USING fts5(z)", ()), (f"INSERT INTO {name} VALUES ('alpha')", ())],
            ]
        )

    async def _succeed(self, *, crashed: bool) -> None:
        """Another node leads."""
        former, self.leader = self.leader, await self._standby()
        await (self.group.crash(former) if crashed else self.group.leave(former))
        await self.leader.wait_until_leader(timeout=WAIT)

    async def merge(self) -> None:
        made = Compactor(self.store, self.leader._local, self.compression)
        made._done = 0
        await made.make_pass()

    async def delete_old(self) -> None:
        retention = Retention(
            self.store, self.leader._local, RETENTION_SECONDS,
            make_snapshot=self.leader._snapshotter.make,
            clock=self._clock,
        )  # fmt: skip
        for _ in range(3):
            self._clock.sleep_machine(STANDING_SECONDS + 1)
            await retention.make_pass()

    def oldest_needed(self) -> int:
        """The first epoch that was the newest one at some time within the retention."""
        cutoff = self.store.now - timedelta(seconds=RETENTION_SECONDS)
        dates = self.store.dates
        return next(
            (epoch for epoch in range(self.model.head) if dates.get(names.wal(epoch + 1), cutoff) > cutoff),
            self.model.head,
        )

    async def check(self, first: int) -> None:
        """Every epoch from `first` on comes back in every way, none before does, and the bucket is in order."""
        node = await self.group.node()  # which has no former state at hand
        try:
            for epoch in range(first, self.model.head + 1):
                expected = self.model.digests[epoch]
                path = self._directory / "restored.db"
                assert (await self.cluster.restore(path, epoch, overwrite=True)).epoch == epoch
                assert digest(content(path)) == expected, f"restored: epoch {epoch}"
                async with self.cluster.at(epoch) as state:
                    assert digest(content_of(state.connection)) == expected, f"read from outside: epoch {epoch}"
                async with node.at(epoch) as past:
                    with past.connection() as db:
                        assert digest(content_of(db)) == expected, f"read on a node: epoch {epoch}"
            if first:
                with pytest.raises(NotRetained):
                    await self.cluster.restore(self._directory / "old.db", first - 1)
                with pytest.raises(NotRetained):
                    async with node.at(first - 1):
                        pass
        finally:
            await self.group.leave(node)
        verified = await self.cluster.verify(deep=True)
        assert verified.findings == []
        assert verified.restorable == [(first, self.model.head)]


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_epoch_of_a_random_history_comes_back_as_it_was(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = Past(seed, tmp_path)
    await past.begin()
    try:
        for _ in range(STEPS // 2):
            await past.step()
        await past.follower.snapshot()  # an old one, for retention to begin at
        for _ in range(STEPS // 2):
            await past.step()
        assert (await survey_all(past.store)).merged == []
        await past.check(0)
        monkeypatch.setattr(merged, "FANOUT", 4)
        await past.merge()
        assert len((await survey_all(past.store)).merged) >= past.model.head // 4
        await past.check(0)
        await past.delete_old()
        first = epoch_of((await retained(past.store)).snapshots[-1])
        assert 0 < first <= past.oldest_needed()
        await past.check(first)
        for _ in range(8):
            await past.step()
        await past.check(first)
    finally:
        await past.group.close()
