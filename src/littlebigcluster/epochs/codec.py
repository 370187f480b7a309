"""One object of the log as bytes: a skippable zstd frame with the metadata, then the content.

0   4   0x184D2A50, little-endian: a skippable frame (RFC 8878, 3.1.2); every zstd decoder passes over it
4   4   size of the metadata in bytes, little-endian
8   n   metadata: one JSON object whose last member, "check", is the XXH3-64 of what stands before it
8+n     the content, a zstd frame; or, with compression "none", as it is
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from littlebigcluster.epochs.metadata import MergedMetadata, Metadata
from littlebigcluster.errors import CorruptLog
from littlebigcluster.settings import Compression

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

SKIPPABLE_MAGIC = 0x184D2A50
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LEVEL = 1
HEADER = struct.Struct("<II")
MAX_METADATA_BYTES = 1 << 16
"""A sane bound: real ones are below 1 KiB."""
PIECE_BYTES = 1 << 18
"""So much is decompressed at a time."""

_CHECK_BYTES = len(b',"check":"0123456789abcdef"}')


@dataclass(frozen=True, slots=True)
class Entry:
    """A decoded object of the log."""

    metadata: Metadata
    raw: bytes
    sha256: str
    """Of the whole object: the link of the chain."""
    size_bytes: int
    """Of the whole object, as it is stored."""


def compress(raw: bytes, compression: Compression) -> bytes:
    """The content as it is stored: a zstd frame with a checksum, or the very same bytes."""
    return raw if compression == "none" else b"".join(Compressor(compression).feed([raw]))


class Compressor:
    """The streaming form of `compress`, with the hashes that the metadata wants."""

    def __init__(self, compression: Compression) -> None:
        self._zstd: zstd.ZstdCompressor | None = None
        if compression == "zstd":
            parameter = zstd.CompressionParameter
            self._zstd = zstd.ZstdCompressor(options={parameter.compression_level: LEVEL, parameter.checksum_flag: 1})
        self._raw = hashlib.sha256()
        self._stored = xxhash.xxh3_64()
        self.raw_size_bytes = 0

    def feed(self, chunks: Iterable[bytes | bytearray]) -> Iterator[bytes]:
        """What is to be stored for all of `chunks`, which are the whole content."""
        for chunk in chunks:
            self._raw.update(chunk)
            self.raw_size_bytes += len(chunk)
            yield from self._out(self._zstd.compress(chunk) if self._zstd else bytes(chunk))
        if self._zstd:
            yield from self._out(self._zstd.flush())

    def _out(self, piece: bytes) -> Iterator[bytes]:
        if piece:
            self._stored.update(piece)
            yield piece

    @property
    def raw_sha256(self) -> str:
        return self._raw.hexdigest()

    @property
    def stored_xxh3(self) -> str:
        return self._stored.hexdigest()


def encode_header(metadata: Metadata) -> bytes:
    """The skippable frame."""
    text = json.dumps(metadata.to_json(), separators=(",", ":"), ensure_ascii=False).encode()[:-1]
    text += b',"check":"%s"}' % xxhash.xxh3_64_hexdigest(text).encode()
    return HEADER.pack(SKIPPABLE_MAGIC, len(text)) + text


def header_size(prefix: bytes, *, name: str) -> int:
    """How many bytes the skippable frame takes, from the first 8 of the object. Raises CorruptLog."""
    if len(prefix) < HEADER.size:
        raise CorruptLog(name, f"at least {HEADER.size} bytes, found {len(prefix)}")
    magic, size = HEADER.unpack_from(prefix)
    if magic != SKIPPABLE_MAGIC:
        raise CorruptLog(name, f"a skippable zstd frame 0x{SKIPPABLE_MAGIC:08x}, found 0x{magic:08x}", offset=0)
    if not _CHECK_BYTES < size <= MAX_METADATA_BYTES:
        raise CorruptLog(name, f"a metadata size up to {MAX_METADATA_BYTES}, found {size}", offset=4)
    return HEADER.size + int(size)


def decode_header(prefix: bytes, *, name: str) -> tuple[Metadata, int]:
    """The metadata and the offset of the content. Raises CorruptLog, FormatTooNew."""
    end = header_size(prefix, name=name)
    if len(prefix) < end:
        raise CorruptLog(name, f"{end} bytes of metadata, found {len(prefix)}", offset=len(prefix))
    text = prefix[HEADER.size : end]
    check = b',"check":"%s"}' % xxhash.xxh3_64_hexdigest(text[:-_CHECK_BYTES]).encode()
    if text[-_CHECK_BYTES:] != check:
        raise CorruptLog(name, "metadata that matches its check", offset=HEADER.size)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CorruptLog(name, f"metadata in JSON ({error})", offset=HEADER.size) from error
    merged = isinstance(value, dict) and value.get("kind") == "merged"
    return (MergedMetadata if merged else Metadata).from_json(value, name=name), end


def decode(body: bytes, *, name: str) -> Entry:
    """The whole object, all of its hashes checked. Raises CorruptLog, FormatTooNew."""
    metadata, start = decode_header(body, name=name)
    pieces = list(Decompressor(metadata, name=name, offset=start).feed([body[start:]]))
    return Entry(metadata, b"".join(pieces), hashlib.sha256(body).hexdigest(), len(body))


class Decompressor:
    """Turns the stored content into the raw one, in bounded memory, and checks every hash at the end."""

    def __init__(self, metadata: Metadata, *, name: str, offset: int) -> None:
        self._metadata, self._name, self._offset = metadata, name, offset
        self._zstd = zstd.ZstdDecompressor() if metadata.compression == "zstd" else None
        self._raw = hashlib.sha256()
        self._stored = xxhash.xxh3_64()
        self._raw_size_bytes = 0

    def feed(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The raw content of all of `chunks`, which are the whole stored content, in pieces of at most
        `PIECE_BYTES` when compressed. Raises CorruptLog, at the end of the input at the latest."""
        for chunk in chunks:
            for raw in self.unhashed(chunk):
                self.hash([raw])
                yield raw
        self.finish()

    def hash(self, pieces: Iterable[bytes]) -> None:
        """All of the raw content has to come here, in order, before `finish`. May be another thread's work than
        `unhashed`."""
        for raw in pieces:
            self._raw.update(raw)

    def unhashed(self, chunk: bytes) -> Iterator[bytes]:
        """The raw content that `chunk` of the stored content yields."""
        self._stored.update(chunk)
        for raw in self._decompress(chunk) if self._zstd else [chunk]:
            self._raw_size_bytes += len(raw)
            if self._raw_size_bytes > self._metadata.raw_size_bytes:
                raise self._corrupt(f"{self._metadata.raw_size_bytes} bytes of content, found more")
            yield raw
        self._offset += len(chunk)

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        assert self._zstd is not None
        try:
            while True:
                if self._zstd.eof:
                    if chunk or self._zstd.unused_data:
                        raise self._corrupt("nothing after the zstd frame")
                    return
                raw = self._zstd.decompress(chunk, PIECE_BYTES)
                chunk = b""
                if raw:
                    yield raw
                if self._zstd.needs_input:
                    return
        except zstd.ZstdError as error:
            raise self._corrupt(f"a zstd frame ({error})") from error

    def finish(self) -> None:
        """Says that all was fed. Raises CorruptLog when it is not what the metadata promises."""
        metadata = self._metadata
        if self._zstd and not self._zstd.eof:
            raise self._corrupt("a complete zstd frame: the object is truncated")
        if self._raw_size_bytes != metadata.raw_size_bytes:
            raise self._corrupt(f"{metadata.raw_size_bytes} bytes of content, found {self._raw_size_bytes}")
        if self._stored.hexdigest() != metadata.stored_xxh3:
            raise self._corrupt(f"stored content with XXH3 {metadata.stored_xxh3}")
        if self._raw.hexdigest() != metadata.raw_sha256:
            raise self._corrupt(f"content with SHA-256 {metadata.raw_sha256}")

    def _corrupt(self, expected: str) -> CorruptLog:
        return CorruptLog(self._name, expected, offset=self._offset)
