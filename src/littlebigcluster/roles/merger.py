"""From the objects of many epochs to one: no I/O, so for a thread of its own."""

from __future__ import annotations

from dataclasses import replace

from littlebigcluster.database import Merging, WalError, parse
from littlebigcluster.epochs import (
    Entry,
    MergedMetadata,
    Position,
    Span,
    check_follows,
    check_link,
    check_merged,
    codec,
    end_of,
)
from littlebigcluster.errors import CorruptLog
from littlebigcluster.settings import Compression

MAX_MERGED_BYTES = 16 << 20
"""Of pages in a merged object, and of the epochs, as they are stored, that make a smallest one. What is larger is not
merged: to read such epochs one by one is no burden, and readers hold several merged objects in memory."""


class NotMerged(Exception):
    """There is nothing to be gained, or parts are not there."""


class Merger:
    """Takes the parts of a span, the last one first, and makes the object. Holds the pages of that and no more."""

    def __init__(self, span: Span, *, cluster_id: str, page_size: int) -> None:
        self._span, self._cluster_id, self._page_size = span, cluster_id, page_size
        self._merging: Merging | None = None
        self._entries: list[Entry] = []
        """Without their content, the last one first."""

    def take(self, part: Span, body: bytes | None) -> None:
        """The part before those so far. Raises CorruptLog, FormatTooNew, NotMerged."""
        if body is None:
            if self._span.is_smallest:
                raise CorruptLog(part.name, "an object, found none: the log has a hole")
            raise NotMerged(f"{part.name} is not there")
        entry = codec.decode(body, name=part.name)
        self._check(part, entry)
        try:
            wal = parse(entry.raw, page_size=self._page_size)
        except WalError as error:
            raise CorruptLog(part.name, f"{error.expected} (in its content, at byte {error.offset})") from error
        if self._merging is None:
            self._merging = Merging(wal)
        else:
            self._merging.add(wal)
        self._entries.append(replace(entry, raw=b""))
        stored_bytes = sum(entry.size_bytes for entry in self._entries) if self._span.is_smallest else 0
        if max(self._merging.size_bytes, stored_bytes) > MAX_MERGED_BYTES:
            raise NotMerged("they are too large")

    def _check(self, part: Span, entry: Entry) -> None:
        if part.first < part.last:
            check_merged(entry, part, cluster_id=self._cluster_id)
        else:
            at = Position(part.first - 1, 0, entry.metadata.previous_sha256)
            check_follows(entry, at, cluster_id=self._cluster_id)
        if self._entries:
            after = self._entries[-1].metadata
            check_link(after, end_of(entry), name=after.name)

    def encode(self, compression: Compression) -> bytes:
        """The object, when all parts are taken. Nothing in it but the compression depends on who makes it, or when."""
        assert self._merging is not None
        first, last = self._entries[-1].metadata, self._entries[0].metadata
        last_sha256 = end_of(self._entries[0]).sha256
        raw = self._merging.result(salt=bytes.fromhex(last_sha256)[:8])
        compressor = codec.Compressor(compression)
        stored = b"".join(compressor.feed([raw]))
        versions = [each.metadata.min_sqlite_version for each in self._entries]
        metadata = MergedMetadata(
            kind="merged",
            cluster_id=last.cluster_id,
            epoch=last.epoch,
            term=last.term,
            leader=last.leader,
            created_at=last.created_at,
            nonce=last_sha256[:32],
            transactions=sum(each.metadata.transactions for each in self._entries),
            pages=parse(raw).frames,
            page_size=last.page_size,
            database_pages=last.database_pages,
            raw_size_bytes=compressor.raw_size_bytes,
            raw_sha256=compressor.raw_sha256,
            stored_xxh3=compressor.stored_xxh3,
            previous_sha256=first.previous_sha256,
            state_checksum=last.state_checksum,
            min_sqlite_version=max(versions, key=lambda version: tuple(map(int, version.split(".")))),
            compression=compression,
            first_epoch=self._span.first,
            last_sha256=last_sha256,
        )
        return codec.encode_header(metadata) + stored
