"""Is everything that lies in the bucket as it must be? And if not, what can still be restored?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.verify_merged import MergedCheck, problem
from littlebigcluster.database import Replica, StateMismatch
from littlebigcluster.epochs import (
    Beacon,
    Entry,
    Identity,
    Metadata,
    Position,
    Repair,
    Span,
    Survey,
    check_follows,
    epoch_of,
    in_order,
    names,
    read_identity,
    read_metadata,
    read_repairs,
    retained,
    snapshots,
    span_of,
)
from littlebigcluster.errors import CorruptLog, FormatTooNew
from littlebigcluster.roles import OnBytes, apply_entry, load_snapshot, read_epoch
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.temporary import remove_tree, temporary_directory
from littlebigcluster.threads import in_thread

_WINDOW = 16
_KNOWN = re.compile(
    r"cluster\.json|\.last_snapshot|\.last_retained|\.beacon|ca/[0-9]{20}\.json|pins/[^/]+\.json"
    r"|repairs/[0-9]{20}\.json|aside/[0-9]{20}(-[0-9]{20})?\.(wal|db)|aside/ca/[0-9]{20}\.json|aside/cluster\.json"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be."""

    object: str
    """Its name, below the cluster's prefix."""
    problem: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` has found."""

    findings: list[Finding]
    """In the order of the log; empty if all is well. What a repair has given up is not told again."""
    epochs: int
    snapshots: int
    size_bytes: int
    """Of all that was looked at, as it is stored."""
    restorable: list[tuple[int, int]]
    """From which to which epoch every one can be restored."""
    lost: list[tuple[int, int]]
    """From which to which epoch none can: a repair has given them up."""
    deep: bool
    merged: int = 0
    """Objects that hold many epochs as one."""


async def verify(
    store: Store,
    *,
    deep: bool,
    expected_id: str | None,
    clock: Clock,
    on_bytes: OnBytes = lambda done, total: None,
) -> Verified:
    """Read all that is retained, and check names, hashes, chain, and the state of each snapshot; `deep` also replays
    every epoch. Changes nothing; a living cluster may go on.

    Raises NotInitialized, WrongCluster, StoreUnavailable, OSError; CorruptLog for the cluster's identity only.
    """
    identity, _ = await read_identity(store, expected_id=expected_id)
    beacon = await read_beacon(store, identity)
    found = await retained(store)
    size_bytes = sum(info.size_bytes for info in found.snapshots + found.epochs + found.merged)
    total = size_bytes + deep * sum(info.size_bytes for info in found.epochs + found.merged)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_bytes(done, total)

    check = Check(store, identity, found, beacon, clock=clock, count=count)
    await check.strangers()
    await check.epochs()
    await check.merged.hashes()
    async with temporary_directory() as directory:
        await check.snapshots(directory, integrity_of_all=deep)
        if deep:
            await check.replay(directory)
    return Verified(
        check.findings(),
        len(found.epochs),
        len(found.snapshots),
        size_bytes,
        check.restorable(),
        sorted({span for repair in check.repairs for span in repair.lost if span[1] >= check.first}),
        deep,
        merged=len(found.merged),
    )


async def read_beacon(store: Store, identity: Identity) -> Beacon | None:
    """The last sign of life of this cluster. To be read before a listing: whatever it speaks of must be there then."""
    beacon = Beacon.decode(await store.get(names.BEACON))
    return beacon if beacon is not None and beacon.cluster_id == identity.cluster_id else None


class Check:
    """What is known so far."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        found: Survey,
        beacon: Beacon | None,
        *,
        clock: Clock,
        count: Callable[[int], None],
    ) -> None:
        self._store, self._identity, self._found, self._clock, self._count = store, identity, found, clock, count
        self._oldest_first = found.snapshots[::-1]
        self.first = epoch_of(self._oldest_first[0]) if found.snapshots else 0
        self.merged = MergedCheck(store, identity.cluster_id, found.merged, count=count)
        self.repairs: list[Repair] = []
        self.newest: Metadata | None = None
        """Of the newest epoch or snapshot that can be read."""
        self.too_new: FormatTooNew | None = None
        """Something that is not damaged, but nothing for this version."""
        self._beacon = beacon
        self._strange: list[Finding] = []
        self.bad_epochs: dict[int, str] = {}
        self.bad_snapshots: dict[int, str] = {}
        self._states: dict[int, tuple[str, str]] = {}
        """The hash of the object and the state checksum, of the epochs that have a snapshot."""

    async def strangers(self) -> None:
        """Objects that nothing here has made; and what repairs have told."""
        listing = await self._store.list(names.DIRECTORY)
        self.repairs = await read_repairs(self._store, listing)
        for info in listing:
            known = names.parse(info.key) or names.parse_merged(info.key)
            if not known and not _KNOWN.fullmatch(info.key.removeprefix(names.DIRECTORY)):
                self._strange.append(Finding(info.key, "this is no name of anything; who has put it there?"))

    async def epochs(self) -> None:
        """Hashes and chain."""
        at = await self._start()
        wanted = {epoch_of(info) for info in self._oldest_first}
        async for epoch, entry in self._entries(self.first + 1):
            if isinstance(entry, str):
                self.bad_epochs[epoch], at = entry, None
                continue
            try:
                if at is not None:
                    check_follows(entry, at, cluster_id=self._identity.cluster_id)
                elif _place(entry.metadata) != ("wal", self._identity.cluster_id, epoch):
                    raise CorruptLog(names.wal(epoch), f"epoch {epoch} of this cluster")
            except CorruptLog as error:
                self.bad_epochs[epoch], at = f"expected {error.expected}", None
                continue
            self.newest = entry.metadata
            at = Position(epoch, entry.metadata.term, entry.sha256)
            self.merged.saw(entry)
            if epoch in wanted:
                self._states[epoch] = entry.sha256, entry.metadata.state_checksum

    async def _start(self) -> Position | None:
        """Where the chain begins: at the oldest snapshot, if that can be read."""
        if not self._oldest_first:
            return None
        try:
            metadata = await read_metadata(self._store, self._oldest_first[0].key)
            return await snapshots.position_of(self._store, metadata)
        except (CorruptLog, FormatTooNew):
            return None  # told when its turn comes

    async def snapshots(self, directory: Path, *, integrity_of_all: bool) -> None:
        """Content, state checksum, agreement with the log; and SQLite's own opinion, of the newest or of all."""
        for info in self._oldest_first:
            epoch = epoch_of(info)
            try:
                loaded = await load_snapshot(
                    self._store, self._identity, info, directory, clock=self._clock, on_bytes=self._count
                )
            except (CorruptLog, FormatTooNew) as error:
                self._notice(error)
                self.bad_snapshots[epoch] = problem(error)
                continue
            metadata, replica = loaded.metadata, loaded.replica
            try:
                if self.newest is None or metadata.epoch > self.newest.epoch:
                    self.newest = metadata
                sha256, state = self._states.get(epoch, (metadata.previous_sha256, metadata.state_checksum))
                if epoch and metadata.previous_sha256 != sha256:
                    self.bad_snapshots[epoch] = "it was made of another epoch of this number than the log has"
                elif metadata.state_checksum != state:
                    self.bad_snapshots[epoch] = f"its state checksum is {metadata.state_checksum}, the log says {state}"
                elif integrity_of_all or info == self._oldest_first[-1]:
                    opinion = await _opinion(replica)
                    if opinion != "ok":
                        self.bad_snapshots[epoch] = f"SQLite finds: {opinion}"
            finally:
                await _drop(replica)

    async def replay(self, directory: Path) -> None:
        """Apply every epoch to the state before it."""
        replica: Replica | None = None
        infos = {epoch_of(info): info for info in self._oldest_first}

        async def from_snapshot(epoch: int) -> Replica | None:
            if epoch not in infos or epoch in self.bad_snapshots:
                return None
            loaded = await load_snapshot(self._store, self._identity, infos[epoch], directory, clock=self._clock)
            return loaded.replica

        try:
            replica = await from_snapshot(self.first)
            async with aclosing(self._entries(self.first + 1)) as entries:
                async for epoch, entry in entries:
                    if replica is not None:
                        await self.merged.replay(replica, epoch)
                    is_next = epoch not in self.bad_epochs and all(repair.epoch != epoch for repair in self.repairs)
                    if replica is not None and not isinstance(entry, str) and is_next:
                        try:
                            await in_thread(apply_entry, replica, entry)
                            continue
                        except (CorruptLog, StateMismatch, FormatTooNew) as error:
                            self.bad_epochs[epoch] = f"it cannot be applied: {problem(error)}"
                    if replica is not None:
                        await _drop(replica)
                    replica = await from_snapshot(epoch)
            if replica is not None:
                opinion = await _opinion(replica)
                if opinion != "ok":
                    self.bad_epochs[self._found.head] = f"SQLite finds after it: {opinion}"
        finally:
            if replica is not None:
                await _drop(replica)

    async def _entries(self, first: int) -> AsyncGenerator[tuple[int, Entry | str], None]:
        """All epochs from `first` on, or what is wrong with one."""
        numbers = iter(range(first, self._found.head + 1))
        reads = (self._entry(epoch) for epoch in range(first, self._found.head + 1))
        async with aclosing(in_order(reads, window=_WINDOW)) as found:
            async for entry in found:
                yield next(numbers), entry

    async def _entry(self, epoch: int) -> Entry | str:
        try:
            entry = await read_epoch(self._store, epoch)
        except (CorruptLog, FormatTooNew) as error:
            self._notice(error)
            return problem(error)
        self._count(entry.size_bytes)
        return entry

    def _notice(self, error: Exception) -> None:
        if isinstance(error, FormatTooNew):
            self.too_new = error

    def findings(self) -> list[Finding]:
        """All of them, in the order of the log."""
        bad = [Finding(names.snapshot(epoch), problem) for epoch, problem in self.bad_snapshots.items()]
        bad += [Finding(names.wal(epoch), problem) for epoch, problem in self.bad_epochs.items()]
        bad += [Finding(span.name, problem) for span, problem in self.merged.bad.items()]
        bad += self._missing_head()
        told = {each.object for each in bad if any(repair.covers(each.object) for repair in self.repairs)}
        return sorted((each for each in bad if each.object not in told), key=lambda each: each.object) + self._strange

    def _missing_head(self) -> list[Finding]:
        head = self._found.head
        if self._beacon is None or self._beacon.epoch <= head:
            return []
        speaks = f"the leader's last sign of life speaks of epoch {self._beacon.epoch}"
        return [Finding(names.wal(head + 1), f"expected an object, found none: {speaks}")]

    def damaged_beside_epochs(self) -> list[ObjectInfo]:
        """Snapshots and merged objects, as they were listed."""
        snapshots = [info for info in self._oldest_first if epoch_of(info) in self.bad_snapshots]
        return snapshots + [info for info in self._found.merged if span_of(info) in self.merged.bad]

    def given_up(self) -> list[int]:
        """The epochs that repairs have told to be lost."""
        spans = [span for repair in self.repairs for span in repair.lost]
        return [epoch for begin, end in spans for epoch in range(max(begin, self.first), end + 1)]

    def sound_snapshots(self) -> list[int]:
        """Oldest first."""
        return [epoch for info in self._oldest_first if (epoch := epoch_of(info)) not in self.bad_snapshots]

    def restorable(self) -> list[tuple[int, int]]:
        """Runs of epochs, each reached from a sound snapshot over sound epochs, or merged ones."""
        return runs(self.first, self._found.head, self.sound_snapshots(), self.bad_epochs, self.merged.sound())


def runs(
    first: int, head: int, snapshots: Iterable[int], bad_epochs: Iterable[int], merged: Iterable[Span] = ()
) -> list[tuple[int, int]]:
    """From where to where epochs can be restored, if these snapshots and merged objects are sound and these epochs are
    not. Merged epochs lead to the epoch after them. A restore begins at the newest sound snapshot and nowhere else."""
    starts, bad = set(snapshots), set(bad_epochs)
    bridges: defaultdict[int, list[Span]] = defaultdict(list)
    for span in merged:
        bridges[span.first].append(span)
    landings: set[int] = set()
    found: list[tuple[int, int]] = []
    reached = False
    for epoch in range(first, head + 1):
        if reached:
            landings.update(span.last + 1 for span in bridges.get(epoch, ()))
        if epoch in starts:
            landings.clear()
        reached = epoch in starts or ((reached or epoch in landings) and epoch not in bad)
        if reached and found and found[-1][1] == epoch - 1:
            found[-1] = (found[-1][0], epoch)
        elif reached:
            found.append((epoch, epoch))
    return found


def _place(metadata: Metadata) -> tuple[str, str, int]:
    return metadata.kind, metadata.cluster_id, metadata.epoch


async def _opinion(replica: Replica) -> str:
    """What SQLite says about it, "ok" or not; cancelling interrupts it."""
    with closing(replica.connect()) as connection:
        rows = await in_thread(
            lambda: connection.execute("PRAGMA integrity_check(10)").fetchall(), stop=connection.interrupt
        )
    return "; ".join(str(row[0]) for row in rows)


async def _drop(replica: Replica) -> None:
    await in_thread(replica.close)
    await remove_tree(replica.path.parent)
