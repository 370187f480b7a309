"""Are merged objects what the epochs in them say?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from littlebigcluster.database import Replica, WalError, parse
from littlebigcluster.epochs import Entry, Span, end_of, fetch_merged, in_order, span_of
from littlebigcluster.errors import CorruptLog, FormatTooNew
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.threads import in_thread

_WINDOW = 4


class MergedCheck:
    """What is known so far of the merged objects that a listing showed."""

    def __init__(
        self, store: Store, cluster_id: str, listed: list[ObjectInfo], *, count: Callable[[int], None]
    ) -> None:
        self._store, self._cluster_id, self._count = store, cluster_id, count
        self.bad: dict[Span, str] = {}
        """What is wrong with them."""
        self.too_new: FormatTooNew | None = None
        self._by_first: defaultdict[int, list[Span]] = defaultdict(list)
        for info in listed:
            span = span_of(info)
            self._by_first[span.first].append(span)
        self._follows: dict[int, str] = {}
        """What the first epochs follow, by the log."""
        self._ends: dict[int, tuple[str, str] | None] = {span.last: None for span in self._spans()}
        """The hash and the state checksum of the last epochs, by the log."""

    def saw(self, entry: Entry) -> None:
        """A sound epoch of the log."""
        metadata = entry.metadata
        if metadata.epoch in self._by_first:
            self._follows[metadata.epoch] = metadata.previous_sha256
        if metadata.epoch in self._ends:
            self._ends[metadata.epoch] = entry.sha256, metadata.state_checksum

    async def hashes(self) -> None:
        """Their own hashes, and that they begin and end as the log does."""
        async for span, entry in self._entries():
            if isinstance(entry, str):
                self.bad[span] = entry
            elif entry is not None:
                end = end_of(entry).sha256, entry.metadata.state_checksum
                if self._follows.get(span.first) not in (None, entry.metadata.previous_sha256):
                    self.bad[span] = f"it was made of another epoch {span.first} than the log has"
                elif self._ends[span.last] not in (None, end):
                    self.bad[span] = f"it was made of another epoch {span.last} than the log has"

    async def replay(self, replica: Replica, first: int) -> None:
        """Those that begin with the epoch `first`, the next one of the replica, lead to the state that they claim."""
        for span in self._by_first.get(first, ()):
            entry = None if span in self.bad else await self._entry(span)
            if isinstance(entry, str):
                self.bad[span] = entry
            elif entry is not None:
                wrong = await in_thread(_does_not_lead, replica, entry)
                if wrong:
                    self.bad[span] = wrong

    def sound(self) -> list[Span]:
        """Those that may be relied upon, as far as is known."""
        return [span for span in self._spans() if span not in self.bad]

    def _spans(self) -> list[Span]:
        return [span for spans in self._by_first.values() for span in spans]

    async def _entries(self) -> AsyncIterator[tuple[Span, Entry | str | None]]:
        spans = self._spans()
        turns = iter(spans)
        async for entry in in_order((self._entry(span) for span in spans), window=_WINDOW):
            yield next(turns), entry

    async def _entry(self, span: Span) -> Entry | str | None:
        """The entry, or what is wrong with it; None for one that retention has let go meanwhile."""
        try:
            entry = await fetch_merged(self._store, span, cluster_id=self._cluster_id)
        except (CorruptLog, FormatTooNew) as error:
            if isinstance(error, FormatTooNew):
                self.too_new = error
            return problem(error)
        if entry is not None:
            self._count(entry.size_bytes)
        return entry


def _does_not_lead(replica: Replica, entry: Entry) -> str | None:
    """What is wrong with the state that `entry` leads to."""
    try:
        wal = parse(entry.raw, page_size=replica.page_size)
    except WalError as error:
        return f"its content is no epoch: expected {error.expected}"
    found, expected = f"{replica.checksum_after(wal):016x}", entry.metadata.state_checksum
    return None if found == expected else f"it leads to state checksum {found}, and not to {expected}"


def problem(error: Exception) -> str:
    """What is wrong, without the name of the object."""
    if isinstance(error, CorruptLog):
        return f"expected {error.expected}" + (f" (at byte {error.offset})" if error.offset is not None else "")
    return str(error)
