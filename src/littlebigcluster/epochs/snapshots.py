"""Snapshots: the whole database at an epoch, as one object, up and down in bounded memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from littlebigcluster.epochs import codec, names
from littlebigcluster.epochs.metadata import Metadata
from littlebigcluster.epochs.prefetch import in_order
from littlebigcluster.errors import CorruptLog
from littlebigcluster.store import ObjectInfo, Store

logger = logging.getLogger(__name__)

CHUNK_BYTES = 4 << 20
_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Packed:
    """A snapshot that lies compressed in a local file, ready to go up."""

    metadata: Metadata
    path: Path

    @property
    def size_bytes(self) -> int:
        return len(codec.encode_header(self.metadata)) + self.path.stat().st_size


def pack(chunks: Iterable[bytes], metadata: Metadata, path: Path) -> Packed:
    """Compress the database that `chunks` make up into the file `path`; slow, so for a thread of its own.

    `metadata` says all but the sizes and hashes of the content, which only exist once it is read.
    """
    compressor = codec.Compressor(metadata.compression)
    with path.open("wb") as file:
        for piece in compressor.feed(chunks):
            file.write(piece)
    metadata = replace(
        metadata,
        raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256,
        stored_xxh3=compressor.stored_xxh3,
    )
    return Packed(metadata, path)


async def upload(store: Store, packed: Packed) -> None:
    """Make the snapshot visible, whole; then move the marker. Raises StoreUnavailable, with no marker moved.

    Running twice is harmless, and so is a late one: the content of an epoch is the same whoever packs it, and
    the marker is a hint that a listing corrects.
    """
    epoch = packed.metadata.epoch
    await store.put_stream(names.snapshot(epoch), _object(packed))
    await store.put(names.LAST_SNAPSHOT, names.marker(epoch))


async def _object(packed: Packed) -> AsyncIterator[bytes]:
    yield codec.encode_header(packed.metadata)
    with packed.path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


async def download(
    store: Store,
    info: ObjectInfo,
    sink: Callable[[Iterable[bytes]], None],
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Metadata:
    """Fetch a snapshot by a few range reads at a time and hand its raw pieces, in order, to `sink` in a thread.

    `sink` gets each piece as soon as it is there, and `on_bytes` is told how many more bytes of the object have been
    read; only when this returns all of it is known to be good.
    Raises CorruptLog, FormatTooNew, StoreUnavailable, and what `sink` raises.
    """
    name = info.key
    size = info.size_bytes
    reads = (_read(store, name, start, min(CHUNK_BYTES, size - start)) for start in range(0, size, CHUNK_BYTES))
    pieces = in_order(reads, window=_WINDOW)
    try:
        first = await anext(pieces, b"")
        metadata, start = codec.decode_header(first, name=name)
        check_snapshot(metadata, name)
        decompressor = codec.Decompressor(metadata, name=name, offset=start)
        await asyncio.to_thread(lambda: sink(decompressor.piece(first[start:])))
        on_bytes(len(first))
        async for piece in pieces:
            await asyncio.to_thread(lambda piece=piece: sink(decompressor.piece(piece)))  # type: ignore[misc]
            on_bytes(len(piece))
        decompressor.finish()
        return metadata
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def _read(store: Store, name: str, start: int, length: int) -> bytes:
    piece = await store.get_range(name, start, length)
    if piece is None:
        raise CorruptLog(name, "an object, found none")
    if len(piece) != length:
        raise CorruptLog(name, f"{length} bytes, found {len(piece)}", offset=start)
    return piece


def check_snapshot(metadata: Metadata, name: str) -> None:
    """Raises CorruptLog unless the metadata is that of the snapshot of this name."""
    if metadata.kind != "db" or names.snapshot(metadata.epoch) != name:
        raise CorruptLog(name, f'the snapshot of this epoch, found "{metadata.kind}" of epoch {metadata.epoch}')
