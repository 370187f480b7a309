"""A log to test with: objects made by hand, valid in format and chain."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import Log, Metadata, Position, codec, names
from littlebigcluster.store import Store

START = Position(0, 0, "00" * 32)


def epoch_object(after: Position, *, term: int = 1, content: bytes = b"content", **changes: Any) -> bytes:
    """An object that follows `after`; `changes` overrides its metadata."""
    compressor = codec.Compressor("zstd")
    stored = b"".join(compressor.feed([content]))
    fields: dict[str, Any] = {
        "kind": "wal", "cluster_id": "lol", "epoch": after.epoch + 1, "term": term, "leader": None,
        "created_at": datetime(2026, 11, 22, tzinfo=UTC), "nonce": Clock().token().hex(), "transactions": 1,
        "pages": 1, "page_size": 4096, "database_pages": 1, "raw_size_bytes": compressor.raw_size_bytes,
        "raw_sha256": compressor.raw_sha256, "stored_xxh3": compressor.stored_xxh3,
        "previous_sha256": after.sha256, "state_checksum": "0" * 16, "min_sqlite_version": "3.35.0",
        "compression": "zstd",
    } | changes  # fmt: skip
    return codec.encode_header(Metadata(**fields)) + stored


def position_of(body: bytes, epoch: int, term: int = 1) -> Position:
    return Position(epoch, term, hashlib.sha256(body).hexdigest())


async def fill(store: Store, count: int, *, after: Position = START) -> list[Position]:
    """Create `count` epochs; the positions of `after` and all of them."""
    positions = [after]
    for _ in range(count):
        body = epoch_object(positions[-1])
        await store.put(names.wal(positions[-1].epoch + 1), body)
        positions.append(position_of(body, positions[-1].epoch + 1))
    return positions


async def retire(store: Store, positions: list[Position], *, keep_from: int) -> None:
    """What retention does: raise the marker, then delete everything below."""
    await store.put(names.LAST_RETAINED, names.marker(keep_from))
    await store.delete([names.wal(at.epoch) for at in positions if 0 < at.epoch < keep_from])


def log_at(store: Store, position: Position, clock: Clock, *, validity: float = 60.0) -> Log:
    return Log(
        store, cluster_id="lol", position=position, confirmed_at=clock.boottime(), validity=validity, clock=clock
    )
