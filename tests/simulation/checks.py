"""What was promised in one simulated history, and whether it was kept. The judge of rows is that of the scenarios."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch
from uuid import UUID

from littlebigcluster import LbcError
from littlebigcluster.epochs import Metadata, Position, codec, names
from littlebigcluster.roles import LocalCopy
from littlebigcluster.testing import Member, Simulation
from littlebigcluster.testing.loop import MACHINE
from tests.scenarios.checker import INSERT, REFUSALS, SELECT, Fate, History, Recorder, State, problems

CATCH_UP_SECONDS = 60.0
KEPT_SECONDS = 300.0


@contextlib.contextmanager
def chained(problems: list[str]) -> Iterator[None]:
    """Whether each copy goes from an epoch to one that follows this very epoch, as their objects say."""
    advance = LocalCopy._advance

    def judged(self: LocalCopy, done: Any, metadata: Metadata, position: Position, size_bytes: int) -> None:
        former = self.log.position
        advance(self, done, metadata, position, size_bytes)
        if self.log.position is position and metadata.previous_sha256 != former.sha256:
            machine = MACHINE.get()
            problems.append(
                f"{machine and machine.name} was at epoch {former.epoch}, and has taken epoch {position.epoch},"
                f" which follows another epoch {former.epoch}"
            )

    with patch.object(LocalCopy, "_advance", judged):
        yield


class Ledger:
    """Writes and reads through members, and judges what they were told."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._recorder = Recorder(simulation.cluster)
        self.history: History = self._recorder.history
        self.problems: list[str] = []
        self.epochs = self.terms = self.deleted = 0
        self._acknowledged_by: dict[int, UUID] = {}
        self._begun: dict[int, float] = {}
        """When unresolved writes were sent for the first time, or before."""
        self._strong_epoch = 0
        """The newest that a strong read has returned, anywhere."""

    # -- while it lasts ----------------------------------------------------------------------------------------------

    async def prepare(self, member: Member) -> None:
        await self._recorder.prepare(member.node)

    async def write(self, member: Member, **how: Any) -> Fate:
        """Through a node that leads, as it believes."""
        write, history = next(self._recorder.ids), self.history
        history.fates[write] = "unknown"
        try:
            done = await member.node.transaction(lambda db: db.execute(INSERT, (write,)) and None, **how)
        except REFUSALS:
            history.fates[write] = "refused"
        except LbcError:  # its outcome is unknown, or the node has stopped
            pass
        else:
            history.acknowledge(write, done.epoch)
            other = self._acknowledged_by.setdefault(done.epoch, member.node.id)
            if other != member.node.id:
                self.problems.append(
                    f"{member.node.id} and {other} have both acknowledged writes of epoch {done.epoch}"
                )
        return history.fates[write]

    async def forward(self, member: Member, **how: Any) -> Fate:
        begun = self._simulation.loop.now
        try:
            return await self._recorder.forward(member.node, **how)
        except LbcError:
            return "unknown"
        finally:
            for write in self._recorder.unresolved:
                self._begun.setdefault(write, begun)

    async def read(self, member: Member, **how: Any) -> None:
        """Of all levels. A strong one may not go back behind another strong one that had returned before it began."""
        strong, floor = how.get("consistency") == "strong", self._strong_epoch
        try:
            state = await self._recorder.read(member.node, **how)
        except LbcError:  # too late, no store, or the node has ended
            return
        if strong:
            if state.epoch < floor:
                self.problems.append(
                    f"a strong read on {member.name} at epoch {state.epoch}, after one that had returned epoch {floor}"
                )
            self._strong_epoch = max(self._strong_epoch, state.epoch)

    def rewind(self, epoch: int) -> None:
        """An operator has put the store back to this epoch: what came later is as if it had never been."""
        history = self.history
        for write in [write for write, at in history.epochs.items() if at > epoch]:
            del history.epochs[write], history.fates[write]
        history.reads = [read for read in history.reads if read.state.epoch <= epoch]
        self._acknowledged_by = {at: node for at, node in self._acknowledged_by.items() if at <= epoch}
        self._strong_epoch = min(self._strong_epoch, epoch)

    # -- in the end --------------------------------------------------------------------------------------------------

    async def resolve(self, member: Member) -> None:
        """Find out about forwarded writes without an answer, by their keys, as long as these are surely kept."""
        unresolved = self._recorder.unresolved
        for write in [write for write in unresolved if self._simulation.loop.now - self._begun[write] > KEPT_SECONDS]:
            del unresolved[write]
        for write, key in list(unresolved.items()):
            with contextlib.suppress(LbcError):  # it stays unknown
                done = await member.node.execute(INSERT, (write,), key=key)
                self.history.later.add(write)
                self.history.acknowledge(write, done.epoch)

    async def judge(self, retention: float, members: list[Member]) -> None:
        """Find all that is wrong, with the store and with these copies, which must get to the head by themselves."""
        simulation = self._simulation
        async with simulation.cluster.head() as head:
            (_, epoch), *rows = (await head.query(SELECT)).rows
        ends = [State("the store", epoch, rows)]
        for member in members:
            try:
                await member.node.epoch.until(lambda value: value >= epoch, timeout=CATCH_UP_SECONDS)
            except TimeoutError:
                self.problems.append(f"{member.name} stays at epoch {member.node.epoch.value}, the head is {epoch}")
                continue
            state = await self._recorder.read(member.node)
            ends.append(State(member.name, state.epoch, [row for row in state.rows if row[1] <= epoch]))
            self.problems += self._differences(member)
        self.problems += problems(self.history, ends)
        self.problems += await self._of_log(retention)

    def _differences(self, member: Member) -> list[str]:
        """Whether its copy has the state that the log says."""
        local = member.node._local
        body = self._simulation.store.get(names.wal(local.log.position.epoch))
        if body is None:
            return [f"{member.name} is at epoch {local.log.position.epoch}, which is not in the store"]
        wanted = codec.decode_header(body, name="an epoch")[0].state_checksum
        found = f"{local.replica.checksum:016x}"
        return [] if found == wanted else [f"{member.name} has state {found}, its epoch {wanted}"]

    async def _of_log(self, retention: float) -> list[str]:
        """The log itself: whole, restorable, and each term of one leader."""
        found = []
        verified = await self._simulation.cluster.verify(deep=True)
        found += [f"verify: {finding}" for finding in verified.findings]
        found += self._of_retention(retention, verified.restorable)
        leaders: dict[int, Any] = {}
        former = 0
        for key in sorted(self._simulation.store.objects):
            parsed = names.parse(key)
            if parsed is None or parsed[0] != "wal":
                continue
            metadata = codec.decode_header(self._simulation.store.objects[key][0], name=key)[0]
            if metadata.term < former:
                found.append(f"epoch {metadata.epoch} is of term {metadata.term}, after term {former}")
            former = metadata.term
            leader = metadata.leader.uuid if metadata.leader else None
            if leader is not None and leaders.setdefault(metadata.term, leader) != leader:
                found.append(f"term {metadata.term} has two leaders")
            self.epochs = metadata.epoch
        self.terms = former
        return found

    def _of_retention(self, retention: float, restorable: list[tuple[int, int]]) -> list[str]:
        """Every epoch that was the newest one within the retention can be restored."""
        store = self._simulation.store
        since = self._simulation.loop.now - retention
        epochs = {key: at for key, at in store.written_at.items() if (names.parse(key) or ("", 0))[0] == "wal"}
        self.deleted = len(epochs.keys() - store.objects.keys())
        before = [names.parse(key)[1] for key, at in epochs.items() if at < since]  # type: ignore[index]
        oldest = max(before, default=0)
        if len(restorable) == 1 and restorable[0][0] <= oldest:
            return []
        return [f"epoch {oldest} was the newest {retention:g} s ago; restorable is {restorable}"]
