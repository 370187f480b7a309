"""Those who use the cluster while it suffers: writers with operations of their own, readers at each level.

All of them are in one process, so that one clock says what came before what.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from littlebigcluster import LbcError
from tests.chaos.node import ChaosNode
from tests.scenarios.checker import INSERT, REFUSALS, Fate, Recorder, State
from tests.scenarios.host import Host
from tests.scenarios.linearizable import Append, Seen, violation

LIST_LENGTH = 100
"""So many writes with numbers that follow each other are taken as one list: see linearizable.py."""
WRITE_SECONDS, READ_SECONDS = 6.0, 4.0
PATIENCE_SECONDS = 2.0
"""So long after its time-out a call is given up: its node is stopped."""
RESOLVE_SECONDS = 60.0
"""So long a writer asks again with its key; far less than keys are kept."""


@dataclass(frozen=True)
class Acknowledged:
    at: float
    epoch: int


class Clients:
    def __init__(self, recorder: Recorder, nodes: Sequence[ChaosNode], seed: int, rate: float) -> None:
        self.recorder, self.nodes, self.rate = recorder, nodes, rate
        self.operations: Counter[str] = Counter()
        """By kind, those that have got an answer; reads that came too late are "late"."""
        self.appends: dict[int, Append] = {}
        self.seen: list[tuple[range, Seen]] = []
        """What strong reads have seen of a range of writes."""
        self.answers: list[Acknowledged] = []
        self.problems: list[str] = []
        self._chance = random.Random(seed)
        self._open: set[asyncio.Task[object]] = set()
        self._newest = 0

    # -- writing ---------------------------------------------------------------------------------------------------

    async def write_forever(self) -> None:
        """A new operation now and then, however long the former ones take, as far as that is reasonable."""
        while True:
            await asyncio.sleep(self._chance.uniform(0, 2 / self.rate))
            if len(self._open) < 4 * self.rate:
                self._start(self.write(self._kind()))

    def _kind(self) -> str:
        kinds = ["execute", "execute until known", "execute twice at once", "transaction"]
        (kind,) = self._chance.choices(kinds, [4, 2, 1, 3])
        return kind

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def finish(self) -> None:
        """Until all that was started has an end."""
        while self._open:
            await asyncio.wait(self._open)

    async def write_through(self, host: Host) -> Fate:
        """One write, through this one."""
        return await self.write("execute", [host])

    async def write(self, kind: str, hosts: Sequence[Host] = ()) -> Fate:
        hosts = hosts or self._hosts()
        if not hosts:
            return "refused"
        write = self._newest = next(self.recorder.ids)
        history, called = self.recorder.history, time.monotonic()
        history.fates[write] = "unknown"
        self.appends[write] = Append(write, called)
        key = f"write {write}"
        match kind:
            case "transaction":
                leader = self.leader()
                host = leader.host if leader is not None and leader.host is not None else hosts[0]
                fate = await self._attempt(write, host.ask("transaction", INSERT, [write], timeout=WRITE_SECONDS))
            case "execute twice at once":
                ways = [self._execute(host, write, key) for host in hosts[:2]]
                fate = _together(await asyncio.gather(*(self._attempt(write, way) for way in ways)))
            case "execute until known":
                fate = await self._until_known(write, key, called + RESOLVE_SECONDS)
            case _:
                fate = await self._attempt(write, self._execute(hosts[0], write, key))
        self.operations[kind] += 1
        if fate == "refused":
            history.fates[write] = "refused"
        return fate

    async def _until_known(self, write: int, key: str, give_up_at: float) -> Fate:
        fates: list[Fate] = []
        while time.monotonic() < give_up_at:
            hosts = self._hosts()
            if hosts:
                fates.append(await self._attempt(write, self._execute(hosts[0], write, key)))
            if fates and _together(fates) != "unknown":
                break
            await asyncio.sleep(0.2)
        return _together(fates)

    async def _execute(self, host: Host, write: int, key: str) -> int:
        return int((await host.execute(INSERT, (write,), key=key, timeout=WRITE_SECONDS)).epoch)

    async def _attempt(self, write: int, way: Coroutine[Any, Any, int]) -> Fate:
        try:
            async with asyncio.timeout(WRITE_SECONDS + PATIENCE_SECONDS):
                epoch = await way
        except REFUSALS:
            return "refused"
        except (LbcError, TimeoutError):
            return "unknown"
        now, history = time.monotonic(), self.recorder.history
        self.answers.append(Acknowledged(now, epoch))
        if write not in history.epochs:
            history.later.add(write)
            history.acknowledge(write, epoch)
            append = self.appends[write]
            self.appends[write] = Append(write, append.called, now)
        return "acknowledged"

    # -- reading ---------------------------------------------------------------------------------------------------

    async def read_forever(self, node: ChaosNode) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0, 0.4))
            if node.host is None or not self._newest:
                continue
            number = max(0, self._newest // LIST_LENGTH - self._chance.choice([0, 0, 0, 1, 2]))
            among = range(number * LIST_LENGTH, (number + 1) * LIST_LENGTH)
            level = self._chance.choice(["local", "at_least", "strong", "strong"])
            try:
                await self.read(node.host, level, among)
            except sqlite3.Error as error:
                self.operations[f"{level} read, failed"] += 1
                if not node.disk.was_full:
                    self.problems.append(f"a read on node {node.number} failed: {error!r}")

    async def read(self, host: Host, level: str, among: range) -> State | None:
        """What it shows; None if it is late. Raises sqlite3.Error."""
        how: dict[str, Any] = {"timeout": READ_SECONDS}
        if level == "strong":
            how["consistency"] = "strong"
        elif level == "at_least":
            how["at_least"] = max((answer.epoch for answer in self.answers[-3:]), default=0)
        called = time.monotonic()
        try:
            async with asyncio.timeout(READ_SECONDS + PATIENCE_SECONDS):
                state = await self.recorder.read(host, among=among, **how)  # type: ignore[arg-type]
        except (LbcError, TimeoutError):
            self.operations[f"{level} read, late"] += 1
            return None
        self.operations[f"{level} read"] += 1
        if level == "strong":
            values = tuple(write for write, _ in state.rows)
            self.seen.append((among, Seen(values, called, time.monotonic())))
        return state

    async def read_all_of(self, host: Host) -> None:
        """Strong reads of everything, list by list. Raises AssertionError when one gets no answer, sqlite3.Error."""
        for start in range(0, self._newest + 1, LIST_LENGTH):
            state = await self.read(host, "strong", range(start, start + LIST_LENGTH))
            assert state is not None, "a strong read got no answer, long after the last fault"

    # -- who is there ----------------------------------------------------------------------------------------------

    def _hosts(self) -> list[Host]:
        hosts = [node.host for node in self.nodes if node.host is not None]
        return self._chance.sample(hosts, len(hosts))

    def leader(self) -> ChaosNode | None:
        """Who leads, as far as the nodes that answer know."""
        leaders = [node for node in self.nodes if node.host and node.status and node.status["is_leader"]]
        return max(leaders, key=lambda node: node.status["term"], default=None)  # type: ignore[index]

    async def watch_forever(self, node: ChaosNode) -> None:
        """What it says of itself, for those who want to know who leads."""
        while True:
            host = node.host
            status = None
            if host is not None:
                try:
                    async with asyncio.timeout(1):
                        status = await host.status()
                except (LbcError, TimeoutError):
                    pass
            node.status = status if host is node.host else None
            await asyncio.sleep(0.4)

    # -- the verdict -----------------------------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """Whether strong reads and writes are linearizable, list by list."""
        appends: dict[int, list[Append]] = defaultdict(list)
        for write, append in self.appends.items():
            if self.recorder.history.fates[write] != "refused":  # if it is there, it is a phantom
                appends[write // LIST_LENGTH].append(append)
        reads: dict[int, list[Seen]] = defaultdict(list)
        for among, seen in self.seen:
            reads[among.start // LIST_LENGTH].append(seen)
        found = {number: violation(appends[number], reads[number]) for number in {*appends, *reads}}
        return [f"not linearizable, list {number}: {why}" for number, why in sorted(found.items()) if why is not None]


def _together(fates: Sequence[Fate]) -> Fate:
    """Of several attempts at the same write."""
    if "acknowledged" in fates:
        return "acknowledged"
    return "unknown" if "unknown" in fates else "refused"
