"""The one checker of all scenarios: nothing acknowledged is lost, nothing refused appears, no reader sees too little.

Every write inserts a row with an id of its own and the epoch that it will be part of. What was promised about it is
kept in a `History`, which `problems` compares with the rows that are there at the end. Both are plain values, so the
checker is itself tested on histories that are known to be bad.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from littlebigcluster import (
    Aborted,
    Cluster,
    DeadlineExceeded,
    EpochTooLarge,
    Fenced,
    LbcError,
    Node,
    NotAllowed,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
)
from littlebigcluster.settings import seconds

TABLE = "CREATE TABLE IF NOT EXISTS op(id INTEGER NOT NULL, epoch INTEGER NOT NULL)"
INSERT = "INSERT INTO op SELECT ?, value + 1 FROM _lbc WHERE key = 'epoch'"
SELECT = "SELECT NULL, value FROM _lbc WHERE key = 'epoch' UNION ALL SELECT id, epoch FROM op"
AMONG = " WHERE id >= ? AND id < ?"
"""Behind `SELECT`, for those of a range only. Rows come in the order in which they were written."""

REFUSALS = (
    NotLeader,
    Fenced,
    Aborted,
    StoreUnavailable,
    Overloaded,
    DeadlineExceeded,
    EpochTooLarge,
    NotAllowed,
    sqlite3.Error,
)
"""Each of these says that the write is certainly not there."""

Fate = Literal["acknowledged", "refused", "unknown"]


@dataclass(frozen=True)
class State:
    """The rows of one copy of the database."""

    name: str
    epoch: int
    rows: list[tuple[int, int]]
    """(id, epoch) of each write that is there."""


@dataclass(frozen=True)
class Read:
    """A read that has returned, and what it had to include."""

    node: str
    state: State
    not_before: int
    """The newest epoch that a read of this node, or a write through it, had returned before this one began."""
    at_least: int = 0
    acknowledged: frozenset[int] = frozenset()
    """For a strong read: what had been acknowledged, anywhere, before it began."""
    among: range | None = None
    """If it asked for these writes only."""


@dataclass
class History:
    """What was promised to those who write, and shown to those who read."""

    fates: dict[int, Fate] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    """Of acknowledged writes, as the acknowledgement says."""
    later: set[int] = field(default_factory=set)
    """Acknowledged writes that may be of an earlier epoch: they had travelled to the leader more than once."""
    reads: list[Read] = field(default_factory=list)

    def acknowledge(self, write: int, epoch: int) -> None:
        self.fates[write], self.epochs[write] = "acknowledged", epoch

    @property
    def acknowledged(self) -> frozenset[int]:
        return frozenset(self.epochs)

    def acknowledged_of(self, among: range | None) -> frozenset[int]:
        return self.acknowledged if among is None else frozenset(write for write in among if write in self.epochs)

    def count(self, fate: Fate) -> int:
        return sum(found == fate for found in self.fates.values())


def problems(history: History, ends: Iterable[State]) -> list[str]:
    """What is wrong; nothing, one hopes. `ends` are the copies at the end, all of which must agree."""
    ends = list(ends)
    found = [text for end in ends for text in _of_rows(history, end)]
    for end in ends[1:]:
        if sorted(end.rows) != sorted(ends[0].rows):
            found.append(f"{end.name} and {ends[0].name} differ")
    # A read shows durable writes only, so all that any of them has shown is there at the end.
    lasting = {write for write, _ in ends[0].rows}
    for read in history.reads:
        found += _of_read(history, read, lasting)
    return found


def _of_rows(history: History, end: State) -> list[str]:
    found = []
    times = Counter(write for write, _ in end.rows)
    found += [f"{end.name}: write {write} is there {number} times" for write, number in times.items() if number > 1]
    for write, fate in history.fates.items():
        if fate == "acknowledged" and not times[write]:
            found.append(f"{end.name}: write {write}, acknowledged in epoch {history.epochs[write]}, is lost")
        if fate == "refused" and times[write]:
            found.append(f"{end.name}: write {write} was refused, and is there")
    for write, epoch in end.rows:
        if write not in history.fates:
            found.append(f"{end.name}: nobody has written {write}")
        acknowledged = history.epochs.get(write, epoch)
        if acknowledged < epoch or (acknowledged != epoch and write not in history.later):
            found.append(f"{end.name}: write {write} is of epoch {epoch}, acknowledged in {history.epochs[write]}")
        if epoch > end.epoch:
            found.append(f"{end.name}: write {write} is of epoch {epoch}, and this is epoch {end.epoch}")
    return found


def _of_read(history: History, read: Read, lasting: set[int]) -> list[str]:
    state = read.state
    shown = {write for write, _ in state.rows}
    who = f"a read on {read.node} at epoch {state.epoch}"
    found = [f"{who} shows write {write}, which is not there at the end" for write in shown - lasting]
    if state.epoch < read.not_before:
        found.append(f"{who} is older than epoch {read.not_before}, seen there before")
    if state.epoch < read.at_least:
        found.append(f"{who} should be at least at {read.at_least}")
    missing = {write for write in history.acknowledged_of(read.among) if history.epochs[write] <= state.epoch} - shown
    found += [f"{who} lacks write {write} of epoch {history.epochs[write]}" for write in missing]
    found += [f"strong, {who} lacks the acknowledged write {write}" for write in read.acknowledged - shown]
    return found


class Recorder:
    """Writes and reads through nodes, remembers all of it, and judges it at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.history = History()
        self.ids = count(1)
        self.unresolved: dict[int, str] = {}
        """The keys of forwarded writes whose outcome is unknown."""
        self._seen: dict[Node, int] = {}

    async def prepare(self, node: Node) -> None:
        """Make the table; on a leader."""
        await node.execute(TABLE)

    async def write(self, node: Node, work: Callable[[sqlite3.Connection], object] | None = None, **how: Any) -> Fate:
        """One write, after `work` in the same transaction; returns how it went."""
        write = next(self.ids)
        self.history.fates[write] = "unknown"

        def function(db: sqlite3.Connection) -> None:
            if work is not None:
                work(db)
            db.execute(INSERT, (write,))

        try:
            done = await node.transaction(function, **how)
        except OutcomeUnknown:
            return "unknown"
        except REFUSALS:
            self.history.fates[write] = "refused"
            return "refused"
        self.history.acknowledge(write, done.epoch)
        return "acknowledged"

    async def forward(self, node: Node, **how: Any) -> Fate:
        """One write through any node, which sends it to whoever leads. Answered in time, it is visible there."""
        write, now = next(self.ids), asyncio.get_running_loop().time
        give_up_at = float("-inf")  # of one in another process nobody knows when it did
        if isinstance(node, Node) and not node.is_leader:
            give_up_at = now() + seconds(how.get("timeout") or node.settings.write_timeout)
        self.history.fates[write] = "unknown"
        try:
            done = await node.execute(INSERT, (write,), **how)
        except REFUSALS:
            self.history.fates[write] = "refused"
            return "refused"
        except OutcomeUnknown as error:
            if error.key is not None:  # it has travelled
                self.unresolved[write] = error.key
            return "unknown"
        except LbcError:
            return "unknown"
        self.history.later.add(write)
        self.history.acknowledge(write, done.epoch)
        if now() < give_up_at:
            self._seen[node] = max(self._seen.get(node, 0), done.epoch)
        return "acknowledged"

    async def resolve(self, node: Node) -> int:
        """Send what is unresolved again, with its keys, through any node. Returns how many there were."""
        unresolved, self.unresolved = self.unresolved, {}
        for write, key in unresolved.items():
            done = await node.execute(INSERT, (write,), key=key)
            self.history.later.add(write)
            self.history.acknowledge(write, done.epoch)
        return len(unresolved)

    async def writes(self, node: Node, number: int) -> list[Fate]:
        """Several at once."""
        return await asyncio.gather(*(self.write(node) for _ in range(number)))

    async def read(self, node: Node, *, among: range | None = None, **how: Any) -> State:
        """A read of everything, or of a range, of any consistency."""
        strong = how.get("consistency") == "strong"
        acknowledged = self.history.acknowledged_of(among) if strong else frozenset()
        not_before = self._seen.get(node, 0)
        question = (SELECT,) if among is None else (SELECT + AMONG, (among.start, among.stop))
        state = _state(str(node.id), await node.read(*question, **how))
        self._seen[node] = max(self._seen.get(node, 0), state.epoch)
        read = Read(str(node.id), state, not_before, how.get("at_least") or 0, acknowledged, among)
        self.history.reads.append(read)
        return state

    def transcript(self, lines: Iterable[str]) -> None:
        """What another process has told of its writes: "begin ID", "done ID EPOCH", "refused ID"."""
        for line in lines:
            match line.split():
                case ["begin", write]:
                    self.history.fates[int(write)] = "unknown"
                case ["done", write, epoch]:
                    self.history.acknowledge(int(write), int(epoch))
                case ["refused", write]:
                    self.history.fates[int(write)] = "refused"

    async def check(self, *nodes: Node, timeout: float = 20.0) -> State:
        """Compare all that was promised with a fresh restore from the store, and with these nodes, which must get
        as far by themselves. Returns what the store holds."""
        async with self._cluster.head() as head:
            end = _state("the store", (await head.query(SELECT)).rows)
        ends = [end]
        for node in nodes:
            await node.epoch.until(lambda epoch: epoch >= end.epoch, timeout=timeout)
            state = await self.read(node)
            # A copy that has gone on since is compared as of then.
            rows = [row for row in state.rows if row[1] <= end.epoch]
            ends.append(State(f"node {node.id}", state.epoch, rows))
        found = problems(self.history, ends)
        assert not found, "\n".join(found)
        return end


def _state(name: str, rows: list[Any]) -> State:
    (_, epoch), *rest = rows
    return State(name, epoch, [(write, of) for write, of in rest])
