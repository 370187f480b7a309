"""The local copy of a node: its replica, the readers on it, and its place in the log. It may be replaced whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.database import PageSource, Readers, Replica, Wal
from littlebigcluster.epochs import Entry, Identity, Log, MergedMetadata, Metadata, Position, end_of
from littlebigcluster.roles.catch_up import Restored, SinceSnapshot, apply_entry
from littlebigcluster.roles.restore import DROPPED, restore
from littlebigcluster.settings import NodeSettings, seconds
from littlebigcluster.store import Store
from littlebigcluster.temporary import remove_tree
from littlebigcluster.threads import carried_through
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_SECONDS = 5.0


class LocalCopy:
    """Invariant: `epoch.value == log.position.epoch ==` the epoch that new reads see."""

    def __init__(
        self, store: Store, identity: Identity, directory: Path, settings: NodeSettings, *, clock: Clock
    ) -> None:
        self._store, self._identity, self._directory = store, identity, directory
        self._settings, self._clock = settings, clock
        self.cluster_id = identity.cluster_id
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lbc-apply")
        self.epoch: Watch[int] = Watch(-1)
        self.replica: Replica
        self.readers: Readers
        self.log: Log
        self.metadata: Metadata
        self.since_snapshot: SinceSnapshot
        self.advanced_at = float("-inf")
        """When the last epoch was applied, by the monotonic clock."""

    async def start(self) -> None:
        """Restore to the head of the log. Raises what `restore` raises."""
        self._adopt(await restore(self._store, self._identity, self._directory, clock=self._clock))

    async def replace(self) -> None:
        """Restore afresh and drop the present copy; reads go on meanwhile. Raises what `restore` raises."""
        old_replica, old_readers = self.replica, self.readers
        # Nothing of the present copy is reused, nor at the next start: it is in doubt, or far behind.
        old_replica.path.with_name(DROPPED).touch()
        restored = await restore(self._store, self._identity, self._directory, clock=self._clock, afresh=True)
        self._adopt(restored)
        try:
            await old_readers.close(timeout=_CLOSE_SECONDS)
        finally:
            await carried_through(self.run(old_replica.close))
        await remove_tree(old_replica.path.parent)

    def _adopt(self, restored: Restored) -> None:
        settings = self._settings
        self.replica = restored.replica
        self.readers = Readers(
            restored.replica.connect_as,
            threads=settings.readers,
            max_read_age=seconds(settings.max_read_age),
            clock=self._clock,
        )
        self.log = Log(
            self._store,
            cluster_id=self._identity.cluster_id,
            position=restored.position,
            confirmed_at=restored.confirmed_at,
            validity=seconds(settings.fence_validity),
            clock=self._clock,
        )
        self.metadata, self.since_snapshot = restored.metadata, restored.since_snapshot
        # As one, for the other thread.
        self._applied = restored.replica, restored.metadata, restored.position
        self.epoch._set(restored.position.epoch)

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn` on the one thread that touches the replica."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, fn, *args)

    async def apply_entry(self, entry: Entry) -> None:
        """Apply the next epoch, or the next ones, read from the log. Raises CorruptLog, StateMismatch, FormatTooNew."""
        metadata = entry.metadata
        if isinstance(metadata, MergedMetadata):
            metadata = metadata.as_epoch()
        await self._apply(lambda: apply_entry(self.replica, entry), metadata, end_of(entry), entry.size_bytes)

    async def apply_own(self, wal: Wal, metadata: Metadata, position: Position, size_bytes: int) -> None:
        """Apply the epoch that this node has just appended."""
        checksum = int(metadata.state_checksum, 16)
        await self._apply(lambda: self.replica.apply(wal, expected_checksum=checksum), metadata, position, size_bytes)

    async def _apply(
        self, apply: Callable[[], object], metadata: Metadata, position: Position, size_bytes: int
    ) -> None:
        def on_thread() -> None:
            apply()
            self._applied = self.replica, metadata, position

        # Shielded: what has begun is carried through, so that the place in the log never lags behind the replica.
        work = asyncio.ensure_future(self.run(on_thread))
        work.add_done_callback(lambda done: self._advance(done, metadata, position, size_bytes))
        await asyncio.shield(work)

    def _advance(self, done: asyncio.Future[None], metadata: Metadata, position: Position, size_bytes: int) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        epochs = position.epoch - self.log.position.epoch
        self.log.advance(position)
        self.advanced_at = self._clock.monotonic()
        self.metadata = metadata
        self.since_snapshot.add(size_bytes, metadata.created_at, epochs)
        self.epoch._set(position.epoch)

    async def image(self) -> tuple[PageSource, Metadata, Position]:
        """The raw pages of the database at one epoch, and which epoch that is. To be closed by the caller."""

        def on_thread() -> tuple[PageSource, Metadata, Position]:
            replica, metadata, position = self._applied
            return replica.pages(), metadata, position

        return await carried_through(self.run(on_thread), undo=lambda made: made[0].close())

    async def close(self) -> None:
        if hasattr(self, "readers"):
            try:
                await self.readers.close(timeout=_CLOSE_SECONDS)
            finally:
                await carried_through(self.run(self.replica.close))
        self._thread.shutdown(wait=False)
