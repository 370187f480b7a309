"""Processes that restore or clone and are killed at any step on the disk: what they leave is never taken for whole."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import AlreadyInitialized, Cluster, NotInitialized
from littlebigcluster.clock import Clock
from littlebigcluster.store import open_store
from littlebigcluster.temporary import LOCK
from tests.cluster.group import group
from tests.scenarios import dying_mover

pytestmark = pytest.mark.slow

MOST_STEPS = 60
FORMER = [("former",)]
ROWS = [("one",), ("two",)]


@pytest.fixture
async def source(tmp_path: Path) -> str:
    """A cluster with a snapshot, a few epochs after it, and nobody in it."""
    url = str(tmp_path / "source")
    async with group(open_store(url, clock=Clock())) as g:
        node = await g.leader()
        await node.execute("INSERT INTO job VALUES ('one')")
        await node.snapshot()
        await node.execute("INSERT INTO job VALUES ('two')")
    return url


async def killed(what: str, source: str, targets: list[Path]) -> int:
    """How many steps there were."""
    command = [sys.executable, dying_mover.__file__, what, source, *map(str, targets)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # it forks
    ran = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    steps = int(ran.stdout)
    assert 5 < steps < MOST_STEPS, "every step was tried"
    return steps


def rows(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT * FROM job").fetchall()


@pytest.mark.parametrize("what", ["restore", "overwrite"])
async def test_a_restore_that_is_killed_leaves_the_whole_file_or_what_was_there(
    what: str, source: str, tmp_path: Path
) -> None:
    targets = [tmp_path / f"{at}" / "restored.db" for at in range(MOST_STEPS)]
    for target in targets:
        target.parent.mkdir()
        if what == "overwrite":
            with closing(sqlite3.connect(target)) as db:
                db.executescript("CREATE TABLE job(name); INSERT INTO job VALUES ('former')")
    steps = await killed(what, source, targets)
    outcomes = []
    for target in targets[:steps]:
        found = rows(target) if target.exists() else []
        assert found in (ROWS, FORMER if what == "overwrite" else [])
        outcomes.append(found == ROWS)
        await Cluster(source).restore(target, overwrite=True)
        assert rows(target) == ROWS
        left = [each for each in target.parent.iterdir() if each != target]
        assert all(each.name.startswith(".lbc-restore-") for each in left), "what was just being made or removed"
        assert {inside.name for each in left for inside in each.iterdir()} <= {LOCK, f"{LOCK}-journal"}
    assert outcomes == sorted(outcomes)
    assert (await Cluster(source).verify(deep=True)).findings == []


async def test_a_clone_that_is_killed_leaves_a_cluster_or_one_that_nobody_can_join(source: str, tmp_path: Path) -> None:
    targets = [tmp_path / f"{at}" / "copy" for at in range(MOST_STEPS)]
    for target in targets:
        target.parent.mkdir()
    steps = await killed("clone", source, targets)
    outcomes = []
    for target in targets[:steps]:
        made = Cluster(str(target))
        try:
            async with made.head() as state:
                assert (await state.query("SELECT * FROM job")).rows == ROWS
            assert (await made.verify(deep=True)).findings == []
            outcomes.append(True)
        except NotInitialized:
            outcomes.append(False)
        try:
            await Cluster(source).clone(made, id="copy")
        except AlreadyInitialized:
            pass
        else:
            assert not outcomes[-1]
            async with made.head() as state:
                assert (await state.query("SELECT * FROM job")).rows == ROWS
    assert outcomes == sorted(outcomes)
    assert True in outcomes
