"""Makes snapshots in the background, so that a join has little to fetch."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.database import PageSource
from littlebigcluster.epochs import Metadata, Position, snapshots
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.roles.catch_up import SinceSnapshot
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Store

logger = logging.getLogger(__name__)

SMALLEST_GROWTH_BYTES = 1 << 20
_RETRY_SECONDS = 5.0


def is_due(since: SinceSnapshot, settings: NodeSettings) -> bool:
    """Whether the log since the last snapshot has outgrown it, or has too many epochs for a quick join."""
    if since.log_epochs >= settings.snapshot_epochs:
        return True
    return since.log_bytes >= max(SMALLEST_GROWTH_BYTES, settings.snapshot_growth * since.size_bytes)


class Snapshotter:
    """Runs on the leader. Reads the replica, never the primary; writes go on meanwhile."""

    def __init__(self, store: Store, local: LocalCopy, settings: NodeSettings, *, scratch: Path, clock: Clock) -> None:
        self._store, self._local, self._settings = store, local, settings
        self._scratch, self._clock = scratch, clock
        self._making = asyncio.Lock()

    async def run(self) -> None:
        """Make a snapshot whenever one is due. A failed one is tried again; until it succeeds nothing changes."""
        while True:
            await self._local.epoch.until(lambda _: is_due(self._local.since_snapshot, self._settings))
            try:
                await self.make()
            except (StoreUnavailable, OSError, sqlite3.Error) as error:
                logger.warning("the snapshot failed and will be tried again: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def make(self) -> int:
        """Make one now; returns its epoch. Raises StoreUnavailable, OSError (no space for the compressed copy),
        sqlite3.Error."""
        async with self._making:
            return await self._make()

    async def _make(self) -> int:
        local = self._local
        image, metadata, position = await local.image()
        before = replace(local.since_snapshot)
        path = self._scratch / f"snapshot-{self._clock.token(8).hex()}"
        try:
            packed = await asyncio.to_thread(_pack, image, self._metadata(image, metadata, position), path)
            await snapshots.upload(self._store, packed)
            size = packed.size_bytes
        finally:
            path.unlink(missing_ok=True)
        now = local.since_snapshot
        local.since_snapshot = SinceSnapshot(
            metadata.epoch, size, now.log_epochs - before.log_epochs, now.log_bytes - before.log_bytes
        )
        logger.info("snapshot of epoch %d: %d bytes", metadata.epoch, size)
        return metadata.epoch

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


def _pack(image: PageSource, metadata: Metadata, path: Path) -> snapshots.Packed:
    with image:
        return snapshots.pack(image.chunks(), metadata, path)
