"""Epochs that say what they should, and hold something else."""

from __future__ import annotations

from dataclasses import replace

from littlebigcluster.database import parse
from littlebigcluster.database.wal import to_wal
from littlebigcluster.epochs import codec


def forged(body: bytes, name: str) -> bytes | None:
    """The object, with another page that it should not write; None when there is none in the database."""
    entry = codec.decode(body, name=name)
    wal = parse(entry.raw)
    pages = {number: bytes(wal.page(index)) for index, number in enumerate(wal.page_numbers)}
    others = range(wal.database_pages, 1, -1)
    number = next((number for number in others if number not in pages), None)
    if number is None:
        return None
    pages[number] = b"?" * wal.page_size
    raw = to_wal(sorted(pages.items()), page_size=wal.page_size, database_pages=wal.database_pages, salt=wal.salt)
    compressor = codec.Compressor(entry.metadata.compression)
    stored = b"".join(compressor.feed([raw]))
    metadata = replace(
        entry.metadata,
        pages=len(pages),
        raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256,
        stored_xxh3=compressor.stored_xxh3,
    )
    return codec.encode_header(metadata) + stored
