"""Merged epochs: one object that leads as far as many epochs do, for whoever has a long way to go (ADR 11).

They are a convenience and nothing else. The epochs they hold stay until retention lets them go, a merged object is
never a proof that an epoch exists, and one that is missing, damaged or not of this history is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from littlebigcluster.epochs import codec, names
from littlebigcluster.epochs.codec import Entry
from littlebigcluster.epochs.log import Position
from littlebigcluster.epochs.metadata import MergedMetadata
from littlebigcluster.epochs.survey import read_metadata
from littlebigcluster.errors import CorruptLog
from littlebigcluster.store import ObjectInfo, Store

FANOUT = 64
"""So many epochs make a merged object, and so many of these the next larger one."""

LEVELS = 3
"""The largest hold 64**3 epochs, three days of one each second; more are too few to matter."""


class Span(NamedTuple):
    """Epochs in a row, from the first to the last: one, or those that a merged object holds."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Of the object."""
        return names.merged(*self) if self.first < self.last else names.wal(self.first)

    @property
    def is_smallest(self) -> bool:
        """Whether its parts are epochs."""
        return self.last - self.first < FANOUT

    @property
    def parts(self) -> list[Span]:
        """What it is made of, oldest first."""
        width = (self.last - self.first + 1) // FANOUT
        return [Span(first, first + width - 1) for first in range(self.first, self.last + 1, width)]


def span_of(info: ObjectInfo) -> Span:
    """The epochs in a merged object that was listed."""
    parsed = names.parse_merged(info.key)
    assert parsed is not None
    return Span(*parsed)


def complete(after: int, head: int) -> list[Span]:
    """What can be merged of the epochs up to `head`, but for what could be at `after`; parts before what they make."""
    found = []
    for last in range(after // FANOUT * FANOUT + FANOUT, head + 1, FANOUT):
        widths = [FANOUT**level for level in range(1, LEVELS + 1)]
        found += [Span(last - width + 1, last) for width in widths if last % width == 0]
    return found


def beginning(first: int) -> list[Span]:
    """What leaders merge from the epoch `first` on, the longest first."""
    widths = [FANOUT**level for level in range(LEVELS, 0, -1)]
    return [Span(first, first + width - 1) for width in widths if (first - 1) % width == 0]


def steps(merged: Iterable[Span], first: int, last: int) -> list[Span]:
    """The way over the epochs from `first` to `last`, with the longest of `merged` wherever one begins.

    The last step is always a single epoch: it proves that the log leads there.
    """
    ends: dict[int, int] = {}
    for span in merged:
        if ends.get(span.first, 0) < span.last < last:
            ends[span.first] = span.last
    way = []
    while first <= last:
        way.append(Span(first, ends.get(first, first)))
        first = way[-1].last + 1
    return way


async def read_merged(store: Store, span: Span, *, cluster_id: str) -> Entry:
    """Merged epochs that lead to where the epoch after them begins. Raises CorruptLog, FormatTooNew,
    StoreUnavailable."""
    after = names.wal(span.last + 1)
    entry, metadata = await asyncio.gather(
        fetch_merged(store, span, cluster_id=cluster_id), read_metadata(store, after)
    )
    if entry is None:
        raise CorruptLog(span.name, "an object, found none")
    expected, found = metadata.previous_sha256, end_of(entry).sha256
    if expected != found:
        raise CorruptLog(
            span.name, f"an end at the object with SHA-256 {expected}, as {after} says, found one at {found}"
        )
    return entry


async def fetch_merged(store: Store, span: Span, *, cluster_id: str) -> Entry | None:
    """Merged epochs, checked against their own hashes. Raises CorruptLog, FormatTooNew, StoreUnavailable."""
    body = await store.get(span.name)
    if body is None:
        return None
    entry = codec.decode(body, name=span.name)
    check_merged(entry, span, cluster_id=cluster_id)
    return entry


def check_merged(entry: Entry, span: Span, *, cluster_id: str) -> None:
    """Raises CorruptLog unless `entry` says that it holds these epochs of this cluster."""
    metadata = entry.metadata
    if not isinstance(metadata, MergedMetadata):
        raise CorruptLog(span.name, f'merged epochs, found "{metadata.kind}"')
    if metadata.cluster_id != cluster_id:
        raise CorruptLog(span.name, f'epochs of cluster "{cluster_id}", found some of "{metadata.cluster_id}"')
    if (metadata.first_epoch, metadata.epoch) != span:
        raise CorruptLog(
            span.name, f"epochs {span.first} to {span.last}, found {metadata.first_epoch} to {metadata.epoch}"
        )


def end_of(entry: Entry) -> Position:
    """Where in the log one is after `entry`, an epoch or merged ones."""
    metadata = entry.metadata
    sha256 = metadata.last_sha256 if isinstance(metadata, MergedMetadata) else entry.sha256
    return Position(metadata.epoch, metadata.term, sha256)
