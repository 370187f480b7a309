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

from littlebigcluster.epochs import (
    Span,
    Survey,
    complete,
    epoch_of,
    in_order,
    merged,
    span_of,
    survey_after,
)
from littlebigcluster.errors import CorruptLog, FormatTooNew, StoreUnavailable
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.roles.merger import MAX_MERGED_BYTES, Merger, NotMerged
from littlebigcluster.settings import Compression
from littlebigcluster.store import Store
from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

_WINDOW = 4
_BATCH_BYTES = 1 << 20
"""For a thread at once: most epochs are far too small for one each."""
_RETRY_SECONDS = 30.0


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
        except NotMerged as reason:
            logger.debug("epochs %d to %d are not merged: %s", span.first, span.last, reason)
            return
        except (CorruptLog, FormatTooNew) as error:
            logger.error("epochs %d to %d cannot be merged: %s", span.first, span.last, error)
            return
        await self._store.put(span.name, body)
        logger.debug("merged epochs %d to %d: %d bytes", span.first, span.last, len(body))

    async def _merged(self, span: Span) -> bytes:
        """The merged object. Reads the parts, the last one first, until they are too large."""
        cluster_id, page_size = self._local.cluster_id, self._local.metadata.page_size
        merger = Merger(span, cluster_id=cluster_id, page_size=page_size)
        parts = span.parts[::-1]
        batch: list[tuple[Span, bytes | None]] = []
        reads = in_order((self._store.get(part.name) for part in parts), window=_WINDOW)
        async with contextlib.aclosing(reads) as bodies:
            for part in parts:
                batch.append((part, await anext(bodies)))
                if part == parts[-1] or sum(len(body or b"") for _, body in batch) >= _BATCH_BYTES:
                    await in_thread(_take, merger, batch)
                    batch = []
        return await in_thread(merger.encode, self._compression)


def _take(merger: Merger, batch: list[tuple[Span, bytes | None]]) -> None:
    for part, body in batch:
        merger.take(part, body)


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
