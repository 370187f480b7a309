"""An epoch as it goes into the log: what a leader makes of a batch, and a repair of a restored state."""

from __future__ import annotations

from littlebigcluster.clock import Clock
from littlebigcluster.database import Replica, Wal, parse
from littlebigcluster.epochs import Identity, Leader, Metadata, Position, codec


def encode_epoch(
    raw: bytes | bytearray,
    replica: Replica,
    at: Position,
    identity: Identity,
    *,
    term: int,
    leader: Leader | None,
    transactions: int,
    min_sqlite_version: str,
    clock: Clock,
) -> tuple[Wal, Metadata, bytes]:
    """The WAL `raw`, the metadata and the object of the epoch after `at`, where `replica` is too."""
    wal = parse(raw, page_size=replica.page_size)
    compression = identity.settings.compression
    compressor = codec.Compressor(compression)
    stored = b"".join(compressor.feed([raw]))
    metadata = Metadata(
        kind="wal",
        cluster_id=identity.cluster_id,
        epoch=at.epoch + 1,
        term=term,
        leader=leader,
        created_at=clock.now(),
        nonce=clock.token().hex(),
        transactions=transactions,
        pages=wal.frames,
        page_size=wal.page_size,
        database_pages=wal.database_pages,
        raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256,
        stored_xxh3=compressor.stored_xxh3,
        previous_sha256=at.sha256,
        state_checksum=f"{replica.checksum_after(wal):016x}",
        min_sqlite_version=min_sqlite_version,
        compression=compression,
    )
    return wal, metadata, codec.encode_header(metadata) + stored
