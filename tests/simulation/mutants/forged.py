"""Epochs that say what they should, and hold something else."""

from __future__ import annotations

from dataclasses import replace

from littlebigcluster.database import parse
from littlebigcluster.database.wal import to_wal
from littlebigcluster.epochs import codec


def forged(body: bytes, name: str) -> bytes | None:
    """The object, with the rows of its last page in disorder; None when it has no page to spare."""
    entry = codec.decode(body, name=name)
    wal = parse(entry.raw)
    pages = [(number, bytearray(wal.page(index))) for index, number in enumerate(wal.page_numbers)]
    number, page = pages[-1]
    if number < 3:
        return None
    page[-8:] = bytes(8)
    raw = to_wal(
        [(number, bytes(page)) for number, page in pages],
        page_size=wal.page_size,
        database_pages=wal.database_pages,
        salt=wal.salt,
    )
    compressor = codec.Compressor(entry.metadata.compression)
    stored = b"".join(compressor.feed([raw]))
    metadata = replace(
        entry.metadata,
        raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256,
        stored_xxh3=compressor.stored_xxh3,
    )
    return codec.encode_header(metadata) + stored
