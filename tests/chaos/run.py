"""A run from beginning to end: build, suffer, heal, judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from littlebigcluster import LbcError
from tests.chaos.clients import Clients
from tests.chaos.faults import Faults, possible
from tests.chaos.node import ChaosNode
from tests.chaos.plan import plan
from tests.chaos.report import by_kind, failovers, longest_gap, spread
from tests.chaos.site import Site
from tests.scenarios.checker import TABLE, Recorder
from tests.scenarios.host import REPOSITORY

RECOVERY_SECONDS = 60.0
"""So long after the last fault every node must answer, be at the head and write. It takes a few seconds; the machine
may be busy."""
VERIFY_SECONDS = 120.0

Say = Callable[[str], None]


class Run:
    def __init__(self, made: Site, *, seconds: float, seed: int, rate: float, say: Say, live: Say) -> None:
        self.site, self.seconds, self.seed, self._say, self._live = made, seconds, seed, say, live
        self.recorder = Recorder(made.cluster)
        self.clients = Clients(self.recorder, made.nodes, seed, rate)
        self.faults = Faults(made, self.clients, say)
        self.problems: list[str] = []
        self.began = self.ended = 0.0
        self.recovered_seconds = float("nan")

    async def run(self) -> None:
        """Afterwards `problems` says what was wrong with the cluster. Raises what was wrong with the test itself."""
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(node.live()) for node in self.site.nodes]
            beside += [group.create_task(self.clients.watch_forever(node)) for node in self.site.nodes]
            try:
                await self._suffer()
                await self._heal()
                await self._judge()
            finally:
                for task in beside:
                    task.cancel()

    async def _suffer(self) -> None:
        await self._begin()
        self.began = time.monotonic()
        planned = plan(self.seed, seconds=self.seconds, nodes=len(self.site.nodes), kinds=possible(self.site))
        async with asyncio.TaskGroup() as group:
            using = [group.create_task(self.clients.write_forever()), group.create_task(self._show())]
            using += [group.create_task(self.clients.read_forever(node)) for node in self.site.nodes]
            await self.faults.run(planned)
            await asyncio.sleep(max(0.0, self.began + self.seconds - time.monotonic()))
            for task in using:
                task.cancel()
        self.ended = time.monotonic()

    async def _begin(self) -> None:
        """Until all nodes are there, and have the table: a local read may well see what was before."""
        nodes = self.site.nodes
        async with asyncio.timeout(RECOVERY_SECONDS):
            while any(node.host is None for node in nodes):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            epoch = None
            while epoch is None:
                await asyncio.sleep(0.1)
                leader = self.clients.leader()
                if leader is not None and leader.host is not None:
                    with contextlib.suppress(LbcError):
                        epoch = (await leader.host.execute(TABLE)).epoch
            for host in [node.host for node in nodes if node.host is not None]:
                await host.epoch.until(lambda there: there >= epoch, timeout=RECOVERY_SECONDS)

    async def _show(self) -> None:
        while True:
            history, leader = self.recorder.history, self.clients.leader()
            who = f"node {leader.number} leads" if leader is not None else "nobody leads"
            self._live(
                f"{time.monotonic() - self.began:4.0f} s  {history.count('acknowledged')} acknowledged,"
                f" {history.count('refused')} refused, {history.count('unknown')} open or unknown; {who};"
                f" {', '.join(self.faults.active.values()) or 'quiet'}"
            )
            await asyncio.sleep(1)

    async def _heal(self) -> None:
        """All faults are over: every node has to come back by itself, and to write."""
        await self.clients.finish()
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                for node in self.site.nodes:
                    await self._until_it_writes(node)
        except TimeoutError:
            away = [node.number for node in self.site.nodes if node.host is None]
            self.problems.append(f"not every node writes within {RECOVERY_SECONDS:g} s after the last fault; {away=}")
        self.recovered_seconds = time.monotonic() - self.ended

    async def _until_it_writes(self, node: ChaosNode) -> None:
        while True:
            if node.host is not None and await self.clients.write_through(node.host) == "acknowledged":
                return
            await asyncio.sleep(0.1)

    async def _judge(self) -> None:
        for node in self.site.nodes:
            self.problems += node.inexcusable + node.unseen_failures()
        hosts = [node.host for node in self.site.nodes if node.host is not None]
        try:
            for host in hosts:
                await self.clients.read_all_of(host)
            await self.recorder.check(*hosts, timeout=RECOVERY_SECONDS)  # type: ignore[arg-type]
        except (AssertionError, LbcError, TimeoutError, sqlite3.Error) as error:
            self.problems.append(f"{type(error).__name__}: {error}")
        self.problems += self.clients.problems + self.clients.violations()
        verified = await asyncio.to_thread(_verify, self.site.place)
        if verified.returncode != 0:
            self.problems.append(f"lbc verify --deep: {verified.stdout}{verified.stderr}")

    async def summary(self) -> list[str]:
        history = self.recorder.history
        terms: dict[int, int] = {}
        with contextlib.suppress(LbcError):  # verify has told why
            async for entry in self.site.cluster.history():
                terms[entry.metadata.epoch] = entry.metadata.term
        overs = failovers(self.clients.answers, terms)
        ended = [why for node in self.site.nodes for why in node.ended_by_itself]
        return [
            f"operations: {by_kind(self.clients.operations)}",
            f"writes: {history.count('acknowledged')} acknowledged, {history.count('refused')} refused,"
            f" {history.count('unknown')} unknown",
            f"faults: {self.faults.done.total()}; {by_kind(self.faults.done)}",
            f"processes started {sum(node.starts for node in self.site.nodes)} times;"
            f" ended by themselves {len(ended)} times{''.join(f'{chr(10)}    {why}' for why in ended)}",
            f"epochs {max(terms, default=0)}, terms {max(terms.values(), default=0)};"
            f" failovers and switchovers seen by writers {len(overs)}: {spread([over.seconds for over in overs])}",
            f"longest time without a durable write {longest_gap(self.clients.answers, self.began, self.ended):.1f} s;"
            f" every node writes {self.recovered_seconds:.1f} s after the last fault",
            f"linearizable: {len(self.clients.appends)} writes, {len(self.clients.seen)} strong reads",
        ]

    def keep(self, directory: Path) -> None:
        """The history, for whoever looks for what went wrong."""
        history = self.recorder.history
        record = {
            "problems": self.problems,
            "fates": history.fates,
            "epochs": history.epochs,
            "appends": [asdict(append) for append in self.clients.appends.values()],
            "strong_reads": [asdict(seen) for _, seen in self.clients.seen],
            "reads": [{**asdict(read), "acknowledged": None, "among": str(read.among)} for read in history.reads],
        }
        (directory / "history.json").write_text(json.dumps(record, default=str))


def _verify(place: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "littlebigcluster", "--store", place, "verify", "--deep"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=VERIFY_SECONDS)
