"""The tables that each epoch touched: the database is restored as it was before, and goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.inspect import LogEntry
from littlebigcluster.database import Touched
from littlebigcluster.epochs import (
    Identity,
    check_follows,
    end_of,
    epoch_of,
    lost_is_told,
    read_identity,
    retained,
)
from littlebigcluster.errors import CorruptLog, NotRetained
from littlebigcluster.roles import Restored, StateMismatch, apply_entry, carried_through, read_epoch, restore_at
from littlebigcluster.store import Store


async def with_tables(
    store: Store, entries: AsyncGenerator[LogEntry, None], *, expected_id: str | None, clock: Clock
) -> AsyncGenerator[LogEntry, None]:
    """The same entries with their tables; None where the state before is not retained any more, or lost.

    Raises what `history` raises; CorruptLog, FormatTooNew, OSError.
    """
    identity, _ = await read_identity(store, expected_id=expected_id)
    with tempfile.TemporaryDirectory(prefix="lbc-") as directory:
        replay = _Replay(store, identity, Path(directory), clock)
        try:
            async with contextlib.aclosing(entries):
                async for entry in entries:
                    yield replace(entry, tables=await replay.tables(entry.metadata.epoch))
        finally:
            replay.close()
