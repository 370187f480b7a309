"""Makes snapshots, so that a join has little to fetch: in the background on the leader, on request on any node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.database import PageSource, StateChecksum, StateMismatch
from littlebigcluster.epochs import Metadata, Position, epoch_of, metadata_of, names, snapshots, survey
from littlebigcluster.errors import LbcError
from littlebigcluster.roles.catch_up import SinceSnapshot
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.settings import NodeSettings, seconds
from littlebigcluster.store import Store
from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

SMALLEST_GROWTH_BYTES = 1 << 20
_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot that is in the store, whole."""

    epoch: int
    size_bytes: int
    """As it is stored."""


def is_due(since: SinceSnapshot, settings: NodeSettings, now: datetime) -> bool:
    """Whether the log since the last snapshot has outgrown it, has too many epochs for a quick join, or is old."""
    if since.log_epochs >= settings.snapshot_epochs or age(since, now) >= seconds(settings.snapshot_age):
        return True
    return since.log_bytes >= max(SMALLEST_GROWTH_BYTES, settings.snapshot_growth * since.size_bytes)


def age(since: SinceSnapshot, now: datetime) -> float:
    """Seconds since the first epoch after the snapshot; 0 while there is none, or clocks disagree about it."""
    return max(0.0, (now - since.first_at).total_seconds()) if since.log_epochs and since.first_at else 0.0


class Snapshotter:
    """One for each node. Reads the replica, never the primary; writes go on meanwhile."""

    def __init__(self, store: Store, local: LocalCopy, settings: NodeSettings, *, scratch: Path, clock: Clock) -> None:
        self._store, self._local, self._settings = store, local, settings
        self._scratch, self._clock = scratch, clock
        self._making = asyncio.Lock()

    async def run(self) -> None:
        """While this node leads: make a snapshot whenever one is due, unless another node has just made one. A failed
        one is tried again; until it succeeds nothing changes."""
        pause = _RETRY_SECONDS
        while True:
            await self._until_due()
            try:
                await self.look()
                if self._is_due():
                    await self.make()
                pause = _RETRY_SECONDS
            except (LbcError, OSError, sqlite3.Error) as error:
                logger.warning("the snapshot failed and will be tried again: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    async def make(self) -> Made:
        """Make one now, of the newest epoch here. Raises StoreUnavailable, CorruptLog when the store does not give it
        back as it was sent, StateMismatch when the local copy is damaged, OSError (no space for the compressed copy),
        sqlite3.Error."""
        async with self._making:
            return await self._make()

    async def look(self) -> None:
        """Find out whether another node has made a newer snapshot than is known here: only what the marker names has
        been read back. Raises StoreUnavailable, CorruptLog, FormatTooNew."""
        known, head = self._local.since_snapshot, self._local.epoch.value
        before = replace(known)
        epoch = names.parse_marker(await self._store.get(names.LAST_SNAPSHOT)) or 0
        if not before.epoch < epoch <= head:
            return
        found = await survey(self._store)
        size = next((info.size_bytes for info in found.snapshots if epoch_of(info) == epoch), None)
        if size is None:
            return
        after = [info for info in found.epochs if epoch < epoch_of(info) <= head]
        first_at = (await metadata_of(self._store, epoch + 1)).created_at if after else None
        log_bytes = sum(info.size_bytes for info in after)
        made = SinceSnapshot(epoch, size, head - epoch, log_bytes, first_at)
        self._note(known, before, made)

    async def _until_due(self) -> None:
        while not self._is_due():
            left = seconds(self._settings.snapshot_age) - age(self._local.since_snapshot, self._clock.now())
            with contextlib.suppress(TimeoutError):
                await self._local.epoch.until(lambda _: self._is_due(), timeout=left)

    def _is_due(self) -> bool:
        return is_due(self._local.since_snapshot, self._settings, self._clock.now())

    async def _make(self) -> Made:
        local, known = self._local, self._local.since_snapshot
        image, metadata, position = await local.image()
        before, first_at = replace(known), self._clock.now()
        path = self._scratch / f"snapshot-{self._clock.token(8).hex()}"
        try:
            packed = await self._packed(image, self._metadata(image, metadata, position), path)
            await snapshots.upload(self._store, packed)
            size = packed.size_bytes
        finally:
            path.unlink(missing_ok=True)
        self._note(known, before, SinceSnapshot(metadata.epoch, size, first_at=first_at))
        logger.info("snapshot of epoch %d: %d bytes", metadata.epoch, size)
        return Made(metadata.epoch, size)

    def _note(self, known: SinceSnapshot, before: SinceSnapshot, made: SinceSnapshot) -> None:
        """Count from this snapshot on; what the log has grown since the count stood at `before` comes on top."""
        now = self._local.since_snapshot
        if now is known and made.epoch >= now.epoch:  # else the copy was replaced meanwhile, and counts anew
            self._local.since_snapshot = replace(
                made,
                log_epochs=made.log_epochs + now.log_epochs - before.log_epochs,
                log_bytes=made.log_bytes + now.log_bytes - before.log_bytes,
            )

    async def _packed(self, image: PageSource, metadata: Metadata, path: Path) -> snapshots.Packed:
        """In a thread, which stops soon when this is cancelled, and before it is over."""
        stop = threading.Event()
        return await in_thread(_pack, image, metadata, path, stop, stop=stop.set)

    def _metadata(self, image: PageSource, of: Metadata, position: Position) -> Metadata:
        return replace(
            of,
            kind="db",
            created_at=self._clock.now(),
            nonce=self._clock.token().hex(),
            transactions=0,
            pages=image.page_count,
            database_pages=image.page_count,
            previous_sha256=position.sha256 if position.epoch else "",
        )


def _pack(image: PageSource, metadata: Metadata, path: Path, stop: threading.Event) -> snapshots.Packed:
    """Raises StateMismatch when the pages are not those of the epoch: nobody could restore from them."""
    checksum = StateChecksum(image.page_size)

    def chunks() -> Iterator[bytes]:
        for chunk in image.chunks():
            if stop.is_set():
                raise InterruptedError("nobody waits for the snapshot any more")
            checksum.feed(chunk)
            yield chunk

    with image:
        packed = snapshots.pack(chunks(), metadata, path)
    found = f"{checksum.value:016x}"
    if found != metadata.state_checksum:
        raise StateMismatch(
            f"the local copy is damaged: at epoch {metadata.epoch} it should have the state checksum"
            f" {metadata.state_checksum}, and has {found}; restart this node"
        )
    return packed
