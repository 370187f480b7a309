"""Merges epochs in the background, on the leader, so that whoever has a long way to go has few objects to read.

Whenever the log has grown by 64 epochs these become one merged object, 64 of which become a larger one (`complete` in
`epochs/merged.py`). The content is a function of the epochs, and these are read back from the store and checked. So it
does no harm if an object is written twice, by two nodes, or long after this node has been deposed.

While the log does not grow by that much nothing is asked of the store. A leader that merges for the first time lists
what is there, and makes up for what its predecessors have left undone not long ago.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from littlebigcluster.database import Merging, WalError, parse
from littlebigcluster.epochs import (
    Entry,
    MergedMetadata,
    Position,
    Span,
    Survey,
    check_follows,
    check_link,
    codec,
    complete,
    end_of,
    epoch_of,
    fetch_merged,
    in_order,
    merged,
    span_of,
    survey_after,
)
from littlebigcluster.errors import CorruptLog, FormatTooNew, StoreUnavailable
from littlebigcluster.roles.catch_up import read_epoch
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.settings import Compression
from littlebigcluster.store import Store

logger = logging.getLogger(__name__)

MAX_MERGED_BYTES = 16 << 20
"""Of pages in a merged object, and of the epochs, as they are stored, that make a smallest one. What is larger is not
merged: to read such epochs one by one is no burden, and readers hold several merged objects in memory."""

_WINDOW = 4
_RETRY_SECONDS = 30.0


class _NotMerged(Exception):
    """There is nothing to be gained, or parts are not there."""


class Compactor:
    """Runs on the leader; each leadership has its own."""

    def __init__(self, store: Store, local: LocalCopy, compression: Compression) -> None:
        self._store, self._local, self._compression = store, local, compression
        self._done = local.epoch.value
        """What could be merged up to here has been, or is left for good, once this leader has looked back."""
        self._looked_back = False

    async def run(self) -> None:
        """Merge whenever there is something to merge. What fails is tried again; nothing else waits for it."""
        while True:
            await self._local.epoch.until(lambda head: head // merged.FANOUT > self._done // merged.FANOUT)
            try:
                await self.make_pass()
            except StoreUnavailable as error:
                logger.warning("epochs could not be merged, will try again: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def make_pass(self) -> None:
        """Merge what is due. Raises StoreUnavailable; then the next pass goes on from there."""
        head = self._local.epoch.value
        if not self._looked_back:
            # Not for ever back: what is missing there is missed by nobody but who travels in time.
            block = merged.FANOUT**2
            after = max(0, self._done // block - 1) * block
            for span in undone(await survey_after(self._store, after), after, self._done):
                await self._merge(span)
            self._looked_back = True
        for span in complete(self._done, head):
            self._done = span.last - 1
            await self._merge(span)
        self._done = head

    async def _merge(self, span: Span) -> None:
        """Write the merged object, unless there is nothing to be gained. Raises StoreUnavailable."""
        try:
            body = await self._merged(span)
        except _NotMerged as reason:
            logger.debug("epochs %d to %d are not merged: %s", span.first, span.last, reason)
            return
        except (CorruptLog, FormatTooNew) as error:
            logger.error("epochs %d to %d cannot be merged: %s", span.first, span.last, error)
            return
        await self._store.put(span.name, body)
        logger.debug("merged epochs %d to %d: %d bytes", span.first, span.last, len(body))

    async def _merged(self, span: Span) -> bytes:
        """The merged object. Reads the parts, the last one first, until it is too large."""
        reads = (self._read(part) for part in reversed(span.parts))
        merging: Merging | None = None
        entries: list[Entry] = []
        async with contextlib.aclosing(in_order(reads, window=_WINDOW)) as parts:  # type: ignore[type-var]
            async for entry in parts:
                if entries:
                    check_link(entries[-1].metadata, end_of(entry), name=entries[-1].metadata.name)
                merging = await asyncio.to_thread(self._take, merging, entry)
                entries.append(replace(entry, raw=b""))
                stored_bytes = sum(entry.size_bytes for entry in entries) if span.is_smallest else 0
                if max(merging.size_bytes, stored_bytes) > MAX_MERGED_BYTES:
                    raise _NotMerged("they are too large")
        assert merging is not None
        return await asyncio.to_thread(encode, merging, entries[::-1], self._compression)

    async def _read(self, part: Span) -> Entry:
        if part.first == part.last:
            entry = await read_epoch(self._store, part.first)
            at = Position(part.first - 1, 0, entry.metadata.previous_sha256)
            check_follows(entry, at, cluster_id=self._local.cluster_id)
            return entry
        found = await fetch_merged(self._store, part, cluster_id=self._local.cluster_id)
        if found is None:
            raise _NotMerged(f"{part.name} is not there")
        return found

    def _take(self, merging: Merging | None, entry: Entry) -> Merging:
        try:
            wal = parse(entry.raw, page_size=self._local.metadata.page_size)
        except WalError as error:
            raise CorruptLog(
                entry.metadata.name, f"{error.expected} (in its content, at byte {error.offset})"
            ) from error
        if merging is None:
            return Merging(wal)
        merging.add(wal)
        return merging


def undone(found: Survey, after: int, head: int) -> list[Span]:
    """What could be merged of the epochs after `after` up to `head`, and has not been, as `found` shows."""
    sizes = {epoch_of(info): info.size_bytes for info in found.epochs}
    there = {span_of(info) for info in found.merged}
    left = []
    for span in complete(after, head):
        if span in there or span.first <= after:
            continue
        if span.is_smallest:
            worthwhile = all(part.first in sizes for part in span.parts)
            worthwhile &= sum(sizes.get(part.first, 0) for part in span.parts) <= MAX_MERGED_BYTES
        else:
            worthwhile = there.issuperset(span.parts)
        if worthwhile:
            left.append(span)
            there.add(span)
    return left


def encode(merging: Merging, entries: list[Entry], compression: Compression) -> bytes:
    """The object that holds these `entries`, which are merged in `merging`. Nothing in it but the compression depends
    on who makes it, or when."""
    first, last = entries[0].metadata, entries[-1].metadata
    last_sha256 = end_of(entries[-1]).sha256
    raw = merging.result(salt=bytes.fromhex(last_sha256)[:8])
    compressor = codec.Compressor(compression)
    stored = b"".join(compressor.feed([raw]))
    versions = [each.metadata.min_sqlite_version for each in entries]
    metadata = MergedMetadata(
        kind="merged",
        cluster_id=last.cluster_id,
        epoch=last.epoch,
        term=last.term,
        leader=last.leader,
        created_at=last.created_at,
        nonce=last_sha256[:32],
        transactions=sum(each.metadata.transactions for each in entries),
        pages=parse(raw).frames,
        page_size=last.page_size,
        database_pages=last.database_pages,
        raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256,
        stored_xxh3=compressor.stored_xxh3,
        previous_sha256=first.previous_sha256,
        state_checksum=last.state_checksum,
        min_sqlite_version=max(versions, key=lambda version: tuple(map(int, version.split(".")))),
        compression=compression,
        first_epoch=first.first_epoch if isinstance(first, MergedMetadata) else first.epoch,
        last_sha256=last_sha256,
    )
    return codec.encode_header(metadata) + stored
