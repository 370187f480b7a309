"""The tables that each epoch touched: the database is restored as it was before the first, and goes on from there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.inspect import LogEntry
from littlebigcluster.database import Touched
from littlebigcluster.epochs import Identity, epoch_of, lost_is_told, read_identity, retained
from littlebigcluster.errors import NotRetained
from littlebigcluster.roles import Restored, held, restore_at, take_next
from littlebigcluster.store import Store
from littlebigcluster.temporary import remove_tree, temporary_directory
from littlebigcluster.threads import in_thread


async def with_tables(
    store: Store, entries: AsyncGenerator[LogEntry, None], *, expected_id: str | None, clock: Clock
) -> AsyncGenerator[LogEntry, None]:
    """The entries, with the tables that each touched; None where the state before is not retained any more, or lost.

    Raises what `history` raises, OSError.
    """
    identity, _ = await read_identity(store, expected_id=expected_id)
    async with temporary_directory(prefix="lbc-log-") as directory:
        replay = _Replay(store, identity, directory, clock=clock)
        try:
            async with contextlib.aclosing(entries):
                async for entry in entries:
                    yield replace(entry, tables=await replay.tables(entry.metadata.epoch))
        finally:
            await replay.close()


class _Replay:
    """Goes along with the log, from any epoch on."""

    # Invariant: _touched is as of the epoch of _restored.

    def __init__(self, store: Store, identity: Identity, directory: Path, *, clock: Clock) -> None:
        self._store, self._identity, self._directory, self._clock = store, identity, directory, clock
        self._restored: Restored | None = None
        self._touched: Touched | None = None
        self._pin = contextlib.AsyncExitStack()
        self._head = 0

    async def tables(self, epoch: int) -> tuple[str, ...] | None:
        """Raises CorruptLog, FormatTooNew, StoreUnavailable, OSError."""
        try:
            async with lost_is_told(self._store, epoch):
                if self._restored is None or self._restored.position.epoch != epoch - 1:
                    await self._go_to(epoch - 1)
                return await self._next()
        except NotRetained:
            await self.close()
            return None

    async def _go_to(self, epoch: int) -> None:
        await self.close()
        found = await retained(self._store)
        if not found.snapshots or epoch < epoch_of(found.snapshots[-1]):
            raise NotRetained(f"epoch {epoch} is not kept any more")
        self._head = found.head
        # It keeps what comes after, too. What is still to come, retention is far from.
        await self._pin.enter_async_context(held(self._store, epoch, clock=self._clock))
        self._restored = await restore_at(self._store, self._identity, self._directory, found, epoch, clock=self._clock)
        self._touched = await in_thread(Touched, self._restored.replica)

    async def _next(self) -> tuple[str, ...]:
        restored, touched = self._restored, self._touched
        assert restored is not None
        assert touched is not None
        wal = await take_next(self._store, restored, cluster_id=self._identity.cluster_id)
        tables = await in_thread(touched.after, wal)
        if restored.position.epoch >= self._head:
            await self._pin.aclose()
        return tables

    async def close(self) -> None:
        """Remove what there is. May be used again."""
        restored, self._restored, self._touched = self._restored, None, None
        try:
            await self._pin.aclose()
        finally:
            if restored is not None:
                await in_thread(restored.replica.close)
                await remove_tree(restored.replica.path.parent)
