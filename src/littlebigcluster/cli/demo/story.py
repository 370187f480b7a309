"""The story of the demo, from an empty store to the proof."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from littlebigcluster.cli.demo.cast import Cast
from littlebigcluster.cli.demo.ledger import Ledger, Verdict
from littlebigcluster.cli.demo.messages import TABLE
from littlebigcluster.cli.demo.process import NodeProcess
from littlebigcluster.cli.demo.summary import Findings, farewell, opening, summary
from littlebigcluster.cli.demo.view import Picture, View, make_view
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import Cluster
from littlebigcluster.errors import LbcError
from littlebigcluster.watch import Watch

SETTINGS: dict[str, Any] = {"leader_timeout": 3.0, "poll_interval": 0.1, "epoch_interval": 0.0}
"""Quicker than the defaults, which save requests; the demo says so."""

_WRITERS = 4
_PAUSE_SECONDS = 0.02
_FRAME_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0
_RATE_SECONDS = 2.0


class DemoFailed(LbcError):
    """Something that should have happened did not."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says."""

    store: str | None
    keep: bool
    phase_seconds: float


@contextlib.asynccontextmanager
async def _patience(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            yield
    except TimeoutError:
        raise DemoFailed(f"the demo waited {_PATIENCE_SECONDS:.0f} s in vain for {what}") from None


async def run_demo(options: DemoOptions) -> bool:
    """Run it; True when the proof holds. Raises AlreadyInitialized, StoreUnavailable, NodeDied, DemoFailed."""
    directory = Path(tempfile.mkdtemp(prefix="lbc-demo-"))
    kept = False
    try:
        store = options.store or str(directory / "store")
        story = Story(store, directory, options.phase_seconds)
        kept = await story.tell(keep=options.keep)
        return story.findings.holds
    finally:
        if not kept:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


class Story:
    """Four nodes; the first leads, and is killed."""

    def __init__(self, store: str, directory: Path, phase_seconds: float) -> None:
        self._store, self._directory, self._phase_seconds = store, directory, phase_seconds
        self._clock = Clock()
        self._cast = Cast(store, directory, SETTINGS, clock=self._clock)
        self._ledger = Ledger()
        self._numbers = itertools.count(1)
        self._began = self._clock.monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        # The name of the node that acknowledged last, and when it did so for the first time.
        self._first_write: Watch[tuple[str, float]] = Watch(("", 0.0))
        self.findings = Findings(self._ledger)

    async def tell(self, *, keep: bool) -> bool:
        """The whole of it. True when the cluster was left running."""
        print(opening(self._store, SETTINGS))
        kept = False
        try:
            with make_view() as self._view:
                async with self._shown(self._view):
                    await self._act()
            print(summary(self.findings))
            if keep:
                for node in self._cast.alive:
                    await node.keep()
                kept = True
        finally:
            if not kept:
                await self._cast.stop()
        pids = [node.pid for node in self._cast.alive]
        print(farewell(self._store, self._directory, pids, kept=kept), end="")
        return kept

    async def _act(self) -> None:
        await Cluster(self._store).init("demo")
        self._event("cluster initialized")
        first = await self._cast.start("node 1", can_lead=True)
        async with _patience("the first leader"):
            await self._cast.leader.until(bool)
        self._event("node 1 leads", style="bold")
        starts = [("node 2", True), ("node 3", False), ("node 4", False)]
        await asyncio.gather(*(self._cast.start(name, can_lead=can_lead) for name, can_lead in starts))
        self._event("node 2 has joined as standby, node 3 and node 4 as followers")
        async with self._writing():
            await asyncio.sleep(self._phase_seconds)
            await self._kill(first)
            await asyncio.sleep(self._phase_seconds / 2)
            await self._cast.start("node 1", can_lead=True)
            self._event("node 1 has come back, in a new process, as standby")
            await asyncio.sleep(self._phase_seconds / 2)
        self.findings.lags_seconds = self._cast.lags_seconds()
        self._event("writing has ended; comparing with the rows on every node")
        await self._prove()

    async def _kill(self, leader: NodeProcess) -> None:
        """Kill the leader, wait for the first durable write of the next one, and take the time in between."""
        # In the middle of writes, so that some are left without an answer.
        await leader.under_way.until(lambda writes: writes > 1)
        self.findings.acknowledged_before = len(self._ledger.acknowledged)
        leader.kill()
        killed_at = self._clock.monotonic()
        self._event(f"kill -9 {leader.pid}: {leader.name}, the leader, is dead", style="bold red")
        await leader.died()
        async with _patience("a new leader"):
            successor = await self._cast.leader.until(bool)
        assert successor is not None
        async with _patience("the first durable write of the new leader"):
            _, written_at = await self._first_write.until(lambda first: first[0] == successor.name)
        self.findings.failover_seconds = written_at - killed_at
        self._event(
            f"{successor.name} leads, term {successor.term}; "
            f"first durable write {self.findings.failover_seconds:.2f} s after the kill",
            style="bold green",
        )

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Write all the time; at the end wait until every write has ended."""
        self._stopping = False
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WRITERS):
                tasks.create_task(self._write())
            try:
                yield
            finally:
                self._stopping = True

    async def _write(self) -> None:
        while not self._stopping:
            leader = await self._cast.leader.until(bool)
            assert leader is not None
            number, began = next(self._numbers), self._clock.monotonic()
            answer = await leader.write(number)
            now = self._clock.monotonic()
            self._ledger.record(number, answer.outcome, latency_seconds=now - began, epoch=answer.epoch)
            if answer.outcome == "acknowledged":
                self._cast.acknowledged(answer.epoch)
                if self._first_write.value[0] != leader.name:
                    self._first_write._set((leader.name, now))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _prove(self) -> None:
        """Read every node's own replica, and a copy restored from the store alone. Raises NodeDied for a node that
        is not there any more."""
        for node in self._cast.nodes.values():
            async with _patience(f"the rows of {node.name}"):
                numbers = await node.numbers(at_least=self._ledger.last_epoch)
            self._judge(node.name, self._ledger.check(numbers))
        async with Cluster(self._store).head() as head:
            rows = (await head.query(f"SELECT number FROM {TABLE}")).rows
        self._judge("the store", self._ledger.check(number for (number,) in rows))

    def _judge(self, place: str, verdict: Verdict) -> None:
        self.findings.verdicts[place] = verdict

    def _event(self, what: str, *, style: str = "") -> None:
        self._view.event(self._clock.monotonic() - self._began, what, style=style)

    @contextlib.asynccontextmanager
    async def _shown(self, view: View) -> AsyncIterator[None]:
        async def frames() -> None:
            while True:
                view.show(self._picture())
                await asyncio.sleep(_FRAME_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            shower = tasks.create_task(frames())
            yield
            shower.cancel()
            view.show(self._picture())

    def _picture(self) -> Picture:
        now, acknowledged = self._clock.monotonic(), len(self._ledger.acknowledged)
        self._recent.append((now, acknowledged))
        while now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        then, before = self._recent[0]
        rate = (acknowledged - before) / (now - then) if now > then else 0.0
        return Picture(now - self._began, self._cast.states(), acknowledged, rate)
