"""What retention keeps, and what it lets go: decisions on what one listing of the bucket shows.

All dates are the store's (`ObjectInfo.last_modified`), the present moment too: no node's clock decides what is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from littlebigcluster.epochs import names
from littlebigcluster.epochs.merged import Span, span_of
from littlebigcluster.epochs.repairs import Repair
from littlebigcluster.store import ObjectInfo

KEEP_ALL = timedelta(hours=6)
"""Snapshots younger than this are never thinned out."""

STEPS = 8
"""At most so many snapshots stay of those between an age and twice that age, besides the unavoidable ones."""

SNAPSHOTS_IN_RETENTION = 4
"""At most so many snapshots are made in `retention` only so that the log before them can be deleted in time."""


class Dated(NamedTuple):
    """An epoch, or the snapshot of one."""

    epoch: int
    written_at: datetime


@dataclass(frozen=True, slots=True)
class Holdings:
    """The log as a listing shows it."""

    now: datetime
    """A moment before the listing, by the store's clock."""
    snapshots: list[Dated]
    """Oldest first, all of these lists."""
    epochs: list[Dated]
    """Those of the log."""
    strays: list[int]
    """Epochs in front of the log: what a deletion has left, and orphans of creates that came too late."""
    begin: int
    """The log goes on after this epoch."""
    merged: list[Span] = field(default_factory=list)
    """What is in the merged objects: no part of the log, and no proof of one."""

    @property
    def head(self) -> int:
        return max((found[-1].epoch for found in (self.snapshots, self.epochs) if found), default=0)


def holdings(listing: Iterable[ObjectInfo], *, now: datetime, marker: int) -> Holdings:
    """`listing` is sorted; `marker` is what `.last_retained` says."""
    epochs: list[Dated] = []
    snapshots: list[Dated] = []
    merged: list[Span] = []
    for info in listing:
        match names.parse(info.key):
            case ("wal", epoch):
                epochs.append(Dated(epoch, info.last_modified))
            case ("db", epoch):
                snapshots.append(Dated(epoch, info.last_modified))
            case _ if names.parse_merged(info.key):
                merged.append(span_of(info))
    begin = marker
    if snapshots and all(snapshot.epoch != marker for snapshot in snapshots):
        # Damaged, or lowered by a late PUT: then the log is what hangs together with the oldest snapshot.
        begin, present = snapshots[0].epoch, {each.epoch for each in epochs}
        while begin in present:
            begin -= 1
    log = [each for each in epochs if each.epoch > begin]
    return Holdings(now, snapshots, log, [each.epoch for each in epochs if each.epoch <= begin], begin, merged)


def first_gap(found: Holdings, head: int, repairs: Iterable[Repair] = ()) -> int | None:
    """The first epoch of the log that is missing, up to `head`, which is known to exist, and that no repair has
    given up."""
    present, told = {each.epoch for each in found.epochs}, list(repairs)
    missing = (epoch for epoch in range(found.begin + 1, head + 1) if epoch not in present)
    return next((epoch for epoch in missing if not any(each.covers(names.wal(epoch)) for each in told)), None)


def candidates(found: Holdings, retention_seconds: float, pinned: Iterable[int]) -> list[int]:
    """The snapshots below which nothing is needed, newest first: from each of them the log leads to every epoch that
    was the newest one at some time within `retention_seconds`, and to every one from the lowest of `pinned` on."""
    cutoff = found.now - timedelta(seconds=retention_seconds)
    young = next((each.epoch for each in found.epochs if each.written_at > cutoff), None)
    oldest_needed = min([found.head if young is None else young - 1, *pinned])
    return [each.epoch for each in reversed(found.snapshots) if found.begin <= each.epoch <= oldest_needed]


def below(found: Holdings, keep_from: int) -> list[str]:
    """The names of all snapshots and epochs below `keep_from`, oldest first, and of what is merged and begins there or
    at `keep_from` itself: who restores begins at a snapshot that stays, and so with a later epoch."""
    merged = [(span.first, span.name) for span in found.merged if span.first <= keep_from]
    snapshots = [(each.epoch, names.snapshot(each.epoch)) for each in found.snapshots if each.epoch < keep_from]
    epochs = [each.epoch for each in found.epochs if each.epoch < keep_from]
    strays = [epoch for epoch in found.strays if epoch < keep_from]
    singles = [(epoch, names.wal(epoch)) for epoch in strays + epochs]
    return [name for _, name in sorted(merged + snapshots + singles)]


def told_below(listing: Iterable[ObjectInfo], keep_from: int) -> list[str]:
    """The names of the records of repairs, and of what these have kept aside, below `keep_from`."""
    kept = ((names.parse_kept(info.key), info.key) for info in listing)
    return [name for parsed, name in kept if parsed is not None and parsed[1] < keep_from]


def behind_damage(listing: Iterable[ObjectInfo]) -> list[int]:
    """The epochs of repairs, whether their records can be read or not."""
    kept = (names.parse_kept(info.key) for info in listing)
    return [parsed[1] for parsed in kept if parsed is not None and parsed[0] == "json"]


def thinned(found: Holdings, keep_from: int, pinned: Iterable[int], repairs: Iterable[int] = ()) -> list[str]:
    """The names of the snapshots after `keep_from` that are close to others of about their age, oldest first.

    Those younger than `KEEP_ALL` stay. Of the older ones the oldest of each period stays, which is at most an eighth
    of the age; and always the newest, whatever a pinned epoch may be restored from, and the snapshots of `repairs`,
    which are the only way past some damage. Since periods lie end to end from a fixed moment on, and longer ones are
    made of shorter ones, it is the same ones that stay tomorrow, only fewer. However often that is done: where there
    was a snapshot once, there is one before it by less than a fifth of the age (the worst is at the border between two
    classes of age: a short period, and a long one before it).
    """
    lowest = min(pinned, default=names.MAX_EPOCH)
    held_from = max((each.epoch for each in found.snapshots if each.epoch <= lowest), default=0)
    seen: set[tuple[timedelta, int]] = set()
    needed = set(repairs)
    gone = []
    for epoch, written_at in found.snapshots:
        period = _period(found.now, written_at)
        if epoch < keep_from or period is None:
            continue
        if period in seen and epoch < held_from and epoch not in needed:
            gone.append(names.snapshot(epoch))
        seen.add(period)
    return gone


def wants_snapshot(found: Holdings, retention_seconds: float) -> bool:
    """Whether the newest snapshot is so old, with epochs after it, that these could not be deleted in time."""
    if not found.snapshots or found.head <= found.snapshots[-1].epoch:
        return False
    age = found.now - found.snapshots[-1].written_at
    return age >= timedelta(seconds=retention_seconds) / SNAPSHOTS_IN_RETENTION


def _period(now: datetime, written_at: datetime) -> tuple[timedelta, int] | None:
    """The length and number of the period a snapshot belongs to; None for a young one."""
    age, limit = now - written_at, KEEP_ALL
    if age < limit:
        return None
    while age >= 2 * limit:
        limit *= 2
    width = limit / STEPS
    return width, int(written_at.timestamp() // width.total_seconds())
