"""No file descriptors, no disk: what goes on meanwhile, what does not, and that all of it does afterwards."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from littlebigcluster import LbcError
from tests.chaos.node import Disk
from tests.scenarios.checker import INSERT
from tests.scenarios.host import Host, Hosts, hosts
from tests.scenarios.stage import WAIT

LOOK = 1.0
"""Longer than a node takes to notice that descriptors are scarce, or that they are not."""


@contextmanager
def without_descriptors(host: Host) -> Iterator[None]:
    """Its process cannot open anything any more; what is open stays so."""
    pid = host.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def on_s3(s3_url: str) -> AsyncIterator[Hosts]:
    async with hosts(s3_url) as made:
        yield made


@pytest.mark.slow
async def test_without_descriptors_a_leader_goes_on_with_the_connections_it_has(on_s3: Hosts) -> None:
    a = await on_s3.leader()
    # Not replaced for a moment without a word on a busy machine: it takes no connection on which to ask it.
    b = await on_s3.start(join={"address": "127.0.0.1:0", "can_lead": True}, suspect_timeout=WAIT)
    await b.sees(lambda status: status["fed"])
    for host in (a, b):
        assert await on_s3.forward(host) == "acknowledged"
        await on_s3.read(host)
    with without_descriptors(a):
        await asyncio.sleep(LOOK)
        starting = asyncio.create_task(on_s3.start())
        while not starting.done():  # however long that takes: a store closes what is idle, which nobody can open now
            assert await on_s3.forward(a) == "acknowledged"
            await asyncio.sleep(0.2)
        c = starting.result()
        for _ in range(8):  # longer than leader_timeout
            for host in (a, b):
                assert await on_s3.forward(host) == "acknowledged"
            await on_s3.read(b, consistency="strong")
            await asyncio.sleep(0.5)
        assert (await b.status())["fed"], "what was connected stays so"
        assert not (await c.status())["fed"], "it polls the store"
        await on_s3.read(c, consistency="strong")
        with pytest.raises(LbcError):
            await c.ask("execute", INSERT, [0], timeout=1.5)
    await c.sees(lambda status: status["fed"])
    assert await on_s3.forward(c) == "acknowledged"
    status = await a.status()
    assert (status["is_leader"], status["term"]) == (True, 1)


@pytest.mark.slow
async def test_without_descriptors_a_directory_cannot_be_written_and_a_standby_takes_over(tmp_path: Path) -> None:
    async with hosts(tmp_path / "store") as cast:
        a = await cast.leader(write_timeout=2)
        b = await cast.start(join={"address": "127.0.0.1:0", "can_lead": True})
        assert await cast.forward(b) == "acknowledged"
        with without_descriptors(a):
            assert await cast.forward(a) in ("refused", "unknown")
            await b.leads()
            assert await cast.forward(b) == "acknowledged"
        await a.sees(lambda status: not status["is_leader"])
        assert await cast.forward(a) == "acknowledged"
        await cast.check(a, b)


@pytest.mark.slow
async def test_a_leader_whose_disk_is_full_writes_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    try:
        async with hosts(tmp_path / "store") as cast:
            a = await cast.leader(directory=str(disk.directory), write_timeout=5)
            b = await cast.start()
            assert await cast.forward(a) == "acknowledged"
            disk.fill(a.process.pid)
            for host in (a, b):
                with pytest.raises(sqlite3.OperationalError, match="disk"):
                    await host.execute("CREATE TABLE large AS SELECT zeroblob(1000000) AS x")
            await cast.read(b, consistency="strong")
            await cast.read(a)
            disk.free(a.process.pid)
            await a.leads()
            assert await cast.forward(a) == "acknowledged"
            assert await cast.forward(b) == "acknowledged"
            assert await b.read("SELECT count(*) FROM sqlite_schema WHERE name = 'large'") == [[0]]
            await cast.check(a, b)
    finally:
        disk.remove()
