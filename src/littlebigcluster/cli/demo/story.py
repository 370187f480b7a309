"""The story of the demo, from an empty store to the proof."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from littlebigcluster.cli.demo.cast import PARTS, Cast
from littlebigcluster.cli.demo.ledger import Acknowledgement, Ledger
from littlebigcluster.cli.demo.messages import TABLE
from littlebigcluster.cli.demo.process import NodeProcess
from littlebigcluster.cli.demo.summary import Findings, farewell, opening, summary
from littlebigcluster.cli.demo.view import Picture, View, make_view
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import Cluster
from littlebigcluster.errors import LbcError
from littlebigcluster.temporary import remove_tree

SETTINGS: dict[str, Any] = {
    "leader_timeout": 3.0,
    "member_timeout": 4.0,
    "poll_interval": 0.1,
    "epoch_interval": 0.0,
}
"""Quicker than the defaults, which save requests; the demo says so."""

_WRITERS = 2
"""For each node."""
_PAUSE_SECONDS = 0.05
_LOOK_SECONDS = 0.005
_FRAME_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
_RATE_SECONDS = 2.0

T = TypeVar("T")


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
    needed = False
    try:
        store = options.store or str(directory / "store")
        story = Story(store, directory, options.phase_seconds)
        needed = await story.tell(keep=options.keep)
        if not story.findings.holds:
            needed = True
            print(f"The logs of the nodes, and the store if it is a temporary one, are kept in {directory}")
        return story.findings.holds
    finally:
        if not needed:
            await remove_tree(directory)


class Story:
    """Four nodes, all of them written through; the leader is killed."""

    def __init__(self, store: str, directory: Path, phase_seconds: float) -> None:
        self._store, self._directory, self._phase_seconds = store, directory, phase_seconds
        self._clock = Clock()
        self._cast = Cast(store, directory, SETTINGS, clock=self._clock)
        self._ledger = Ledger()
        self._numbers = itertools.count(1)
        self._began = self._clock.monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        self.findings = Findings(self._ledger)

    async def tell(self, *, keep: bool) -> bool:
        """The whole of it. True when the cluster was left running."""
        print(opening(self._store, SETTINGS, self._phase_seconds))
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
        await self._start("node 1")
        await self._until("the first leader", lambda: self._cast.leader)
        self._event("node 1 leads", style="bold")
        await self._cast.nodes["node 1"].create()
        await asyncio.gather(*(self._start(name) for name in PARTS if name != "node 1"))
        await self._until("the member list", self._cast.all_know_all)
        self._event("node 2 has joined as standby, node 3 and node 4 as followers", table=True)
        self._event("writing through all four; a node that does not lead hands the write to the leader")
        async with self._writing():
            await asyncio.sleep(self._phase_seconds)
            killed = await self._kill()
            await asyncio.sleep(self._phase_seconds / 2)
            await self._until(f"{killed} to be off the member list", self._cast.all_know_all)
            self._event(f"{killed} is off the member list", table=True)
            await self._start(killed)
            await self._until(f"{killed} to be on the member list", self._cast.all_know_all)
            self._event(f"{killed} has come back, in a new process, as standby")
            await asyncio.sleep(self._phase_seconds / 2)
        self.findings.lags_seconds = self._cast.lags_seconds()
        self._event("writing has ended; comparing with the rows on every node")
        await self._prove()
        await self._until("the last report of every node", self._all_reported)
        self._event(f"all have been compared, at epoch {self.findings.epoch}", table=True)

    async def _start(self, name: str) -> None:
        async with _patience(f"{name} to join"):
            await self._cast.start(name)

    async def _kill(self) -> str:
        """Kill the leader, wait for the first durable write under the next one, and take the time in between.

        Returns the name of who was killed.
        """
        # In the middle of writes, its own and others', so that answers are lost.
        leader = await self._until("writes under way", self._busy_leader)
        self.findings.acknowledged_before = len(self._ledger.acknowledged)
        self.findings.caught = {node.name: node.under_way for node in self._cast.alive}
        leader.kill()
        killed_at = self._clock.monotonic()
        self.findings.killed = leader.name
        self._event(f"kill -9 {leader.pid}: {leader.name}, the leader, is dead", style="bold red")
        await leader.died()
        successor = await self._until("a new leader", lambda: self._cast.leader)
        since = successor.leads_since or successor.epoch
        # Only the successor can have made a later epoch than its own first one.
        written_at = await self._until(
            "the first durable write of the new leader", lambda: self._ledger.first_after(since)
        )
        self.findings.failover_seconds = written_at - killed_at
        self._event(
            f"{successor.name} leads, term {successor.term}; "
            f"first durable write {self.findings.failover_seconds:.2f} s after the kill",
            style="bold green",
        )
        return leader.name

    def _busy_leader(self) -> NodeProcess | None:
        leader = self._cast.leader
        others = sum(len(node.under_way) for node in self._cast.alive if node is not leader)
        return leader if leader is not None and leader.under_way and others > 1 else None

    def _all_reported(self) -> bool:
        return all(node.epoch >= self.findings.epoch for node in self._cast.alive)

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Write all the time, through every node; at the end wait until every write has ended."""
        self._stopping = False
        async with asyncio.TaskGroup() as tasks:
            for name in PARTS:
                for _ in range(_WRITERS):
                    tasks.create_task(self._write(name))
            try:
                yield
            finally:
                self._stopping = True

    async def _write(self, name: str) -> None:
        while not self._stopping:
            node = self._cast.nodes[name]
            if node.alive and node.joined:
                number, began, led = next(self._numbers), self._clock.monotonic(), node.leads
                answer = await node.write(number)
                now = self._clock.monotonic()
                match answer.outcome:
                    case "acknowledged":
                        done = Acknowledgement(name, led, answer.epoch, now, now - began)
                        self._ledger.acknowledged[number] = done
                    case "refused":
                        self._ledger.refused.add(number)
                    case "unknown":
                        self._ledger.unknown.add(number)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _prove(self) -> None:
        """Read every node's own replica, and a copy restored from the store alone, all at the same epoch.

        Raises NodeDied for a node that is not there any more.
        """
        at_least = self._ledger.last_epoch
        async with _patience("all nodes to be at the same epoch"):
            while True:
                copies = {name: await self._cast.nodes[name].copy(at_least=at_least) for name in PARTS}
                async with Cluster(self._store).head() as head:
                    rows = (await head.query(f"SELECT number FROM {TABLE}")).rows
                    copies["the store"] = head.metadata.epoch, [number for (number,) in rows]
                at_least = max(epoch for epoch, _ in copies.values())
                if all(epoch == at_least for epoch, _ in copies.values()):
                    break
        self.findings.epoch = at_least
        for place, (_, numbers) in copies.items():
            self.findings.verdicts[place] = self._ledger.check(numbers)

    async def _until(self, what: str, condition: Callable[[], T | None]) -> T:
        """The first value of this that counts as true. Raises DemoFailed."""
        async with _patience(what):
            while True:
                if value := condition():
                    return value
                await asyncio.sleep(_LOOK_SECONDS)

    def _event(self, what: str, *, style: str = "", table: bool = False) -> None:
        elapsed = self._clock.monotonic() - self._began
        self._view.event(elapsed, what, style=style)
        if table:
            self._view.table(self._picture())

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
        leader = self._cast.leader
        return Picture(
            now - self._began,
            self._cast.states(self._ledger.through()),
            term=max((node.term for node in self._cast.alive), default=0),
            members=len(leader.members) if leader else None,
            acknowledged=acknowledged,
            rate=rate,
        )
