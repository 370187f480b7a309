"""Snapshots: the whole database at an epoch, as one object, up and down in bounded memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import xxhash

from littlebigcluster.epochs import codec, names
from littlebigcluster.epochs.lane import Lane
from littlebigcluster.epochs.log import Position
from littlebigcluster.epochs.metadata import Metadata
from littlebigcluster.epochs.prefetch import in_order
from littlebigcluster.errors import CorruptLog
from littlebigcluster.store import ObjectInfo, Store
from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

CHUNK_BYTES = 4 << 20
_WINDOW = 4
_BATCH_BYTES = 4 << 20
_BATCH = _BATCH_BYTES // codec.PIECE_BYTES
"""Pieces that are decompressed at a time."""
_AHEAD = 2
"""Batches that are decompressed and not yet hashed, or not yet written."""
_ATTEMPTS = 3
"""So often a snapshot is sent that the store does not give back as it was."""


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


OnBytes = Callable[[int, int], None]
"""Told how many bytes have been moved so far, and how many are to be moved in all."""


async def upload(store: Store, packed: Packed, *, on_bytes: OnBytes = lambda done, total: None) -> None:
    """Make the snapshot visible, whole; read it back; then move the marker. `on_bytes` counts both ways.

    Running twice is harmless, and so is a late one: the content of an epoch is the same whoever packs it, and
    the marker is a hint that a listing corrects. One that is there already and sound is left as it is: the whole log
    may rest on it. For the same reason none is ever deleted here: what is not sound is overwritten.

    Raises StoreUnavailable, FormatTooNew, and CorruptLog when the store goes on giving back something else than was
    sent. Then no marker was moved, and whoever reads what is there finds out, too.
    """
    epoch, progress = packed.metadata.epoch, _Progress(2 * packed.size_bytes, on_bytes)
    if not await _is_there(store, packed):
        for attempt in range(1, _ATTEMPTS + 1):
            progress.begin()
            async with aclosing(_object(packed, progress)) as chunks:  # else a failed upload leaves the file open
                await store.put_stream(names.snapshot(epoch), chunks)
            try:
                await _read_back(store, packed, progress)
                break
            except CorruptLog as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.error("the store gives back another snapshot than was sent, sending it again: %s", error)
    await _move_marker(store, epoch)


class _Progress:
    """Counts for an `OnBytes`."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        self._total, self._on_bytes = total, on_bytes
        self._done = 0

    def begin(self) -> None:
        self._done = 0

    def add(self, size_bytes: int) -> None:
        self._done += size_bytes
        self._on_bytes(self._done, self._total)


async def _object(packed: Packed, progress: _Progress) -> AsyncGenerator[bytes, None]:
    header = codec.encode_header(packed.metadata)
    yield header
    progress.add(len(header))
    with packed.path.open("rb") as file:
        while chunk := await in_thread(file.read, CHUNK_BYTES):
            yield chunk
            progress.add(len(chunk))


async def _is_there(store: Store, packed: Packed) -> bool:
    """Whether somebody, maybe this node, has stored a sound snapshot of this state already."""
    if await store.get_range(names.snapshot(packed.metadata.epoch), 0, 1) is None:
        return False
    try:
        await _read_back(store, packed, _Progress(0, lambda done, total: None))
    except CorruptLog as error:
        logger.error("overwriting a damaged snapshot: %s", error)
        return False
    return True


async def _read_back(store: Store, packed: Packed, progress: _Progress) -> None:
    """Raises CorruptLog unless the object is a whole snapshot of the same state, by this node or another one."""
    name = names.snapshot(packed.metadata.epoch)
    metadata: Metadata | None = None
    stored = xxhash.xxh3_64()
    async with aclosing(in_order(_ranges(store, name), window=_WINDOW)) as pieces:
        async for piece in pieces:
            if piece is None:
                raise CorruptLog(name, "the snapshot that was sent, found none")
            start = 0
            if metadata is None:
                metadata, start = codec.decode_header(piece, name=name)
            stored.update(memoryview(piece)[start:])
            progress.add(len(piece))
            if len(piece) < CHUNK_BYTES:
                break
    assert metadata is not None
    check_snapshot(metadata, name)
    if _content(metadata) != _content(packed.metadata):
        raise CorruptLog(name, f"a snapshot of the state {_content(packed.metadata)}, found {_content(metadata)}")
    if stored.hexdigest() != metadata.stored_xxh3:
        raise CorruptLog(name, f"stored content with XXH3 {metadata.stored_xxh3}, found {stored.hexdigest()}")


def _ranges(store: Store, name: str) -> Iterator[Coroutine[Any, Any, bytes | None]]:
    """Without end, for nobody has said how large the object is: the first short one is the last."""
    return (store.get_range(name, start, CHUNK_BYTES) for start in count(0, CHUNK_BYTES))


def _content(metadata: Metadata) -> tuple[object, ...]:
    """What is the same whoever packs the snapshot: not the date and the nonce, nor how it is compressed."""
    return (
        metadata.cluster_id,
        metadata.term,
        metadata.previous_sha256,
        metadata.state_checksum,
        metadata.raw_size_bytes,
        metadata.raw_sha256,
    )


async def _move_marker(store: Store, epoch: int) -> None:
    """To the newest: an upload may have taken so long that others were faster with a newer one."""
    marked = names.parse_marker(await store.get(names.LAST_SNAPSHOT))
    newer = marked is not None and marked > epoch
    if not newer or await store.get_range(names.snapshot(marked or 0), 0, 1) is None:
        await store.put(names.LAST_SNAPSHOT, names.marker(epoch))


async def download(
    store: Store,
    info: ObjectInfo,
    sink: Callable[[Iterable[bytes]], None],
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> tuple[Metadata, Position]:
    """Fetch a snapshot by a few range reads at a time and hand its raw pieces, in order, to `sink` in a thread.
    Returns its metadata, and where the log goes on from it.

    `sink` gets a few pieces at a time, while these are hashed in a second thread, and the next ones decompressed in a
    third; `on_bytes` is told how many more bytes of the object have been read. Only when this returns all of it is
    known to be good. When it ends, in whatever way, `sink` does nothing any more.
    Raises CorruptLog, FormatTooNew, StoreUnavailable, and what `sink` raises.
    """
    name = info.key
    size = info.size_bytes
    reads = (_read(store, name, start, min(CHUNK_BYTES, size - start)) for start in range(0, size, CHUNK_BYTES))
    decompressor: codec.Decompressor | None = None
    whole = hashlib.sha256()
    async with _lane() as hashing, _lane() as restoring:
        async with aclosing(in_order(reads, window=_WINDOW)) as pieces:
            async for piece in pieces:
                start = 0
                if decompressor is None:
                    metadata, start = codec.decode_header(piece, name=name)
                    check_snapshot(metadata, name)
                    decompressor = codec.Decompressor(metadata, name=name, offset=start)
                if not metadata.epoch:
                    await hashing.put(partial(whole.update, piece))
                raws = decompressor.unhashed(piece[start:])
                while batch := await in_thread(lambda raws=raws: list(islice(raws, _BATCH))):
                    await hashing.put(partial(decompressor.hash, batch))
                    await restoring.put(partial(sink, batch))
                on_bytes(len(piece))
        await hashing.drain()
        await restoring.drain()
    if decompressor is None:
        raise CorruptLog(name, "the metadata of a snapshot, found nothing")
    decompressor.finish()
    return metadata, _position(metadata, whole)


def _lane() -> Lane:
    return Lane(name="lbc-restoring", ahead=_AHEAD)


async def position_of(store: Store, metadata: Metadata) -> Position:
    """Where the log goes on from the snapshot with this metadata, without a look at its content if that can be told.
    Raises StoreUnavailable."""
    whole = hashlib.sha256()
    if not metadata.epoch:
        async with aclosing(in_order(_ranges(store, names.snapshot(0)), window=_WINDOW)) as pieces:
            async for piece in pieces:
                await in_thread(whole.update, piece or b"")
                if piece is None or len(piece) < CHUNK_BYTES:
                    break
    return _position(metadata, whole)


def _position(metadata: Metadata, whole: hashlib._Hash) -> Position:
    """Only before the first epoch there is no epoch's object: the log goes on from `whole`, the snapshot's own hash."""
    sha256 = metadata.previous_sha256 if metadata.epoch else whole.hexdigest()
    return Position(metadata.epoch, metadata.term, sha256)


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
