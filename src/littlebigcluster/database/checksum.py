"""The state checksum: lets each node prove after each epoch that its copy equals the leader's.

It is the XOR over all pages of xxh3_64(content, seed=page number). So it can be kept up to date for the cost
of the changed pages: take the old hash of a page out, put the new one in.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
from xxhash import xxh3_64_intdigest

from littlebigcluster.database.wal import Wal

LOCK_BYTE: Final = 1 << 30
"""SQLite locks by bytes from here on and never writes the page that contains this byte."""


def lock_page(page_size: int) -> int:
    """The number of the page that is left out, in databases that are so large (1 GiB)."""
    return LOCK_BYTE // page_size + 1


class StateChecksum:
    """The checksum of a database and the hashes of its pages, 8 bytes a page.

    Begins with an empty database; `feed` it all pages in order.
    """

    # Invariant: value == XOR of _hashes; _hashes[n - 1] is the hash of page n, 0 for the lock-byte page.

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.value = 0
        self._hashes = array("Q")
        self._lock_page = lock_page(page_size)
        self._change: tuple[Wal, _Change] | None = None

    @property
    def database_pages(self) -> int:
        """The number of pages."""
        return len(self._hashes)

    def feed(self, chunk: bytes | memoryview) -> None:
        """Add the pages that follow; `chunk` holds whole pages, else ValueError."""
        if len(chunk) % self.page_size:
            raise ValueError(f"{len(chunk)} bytes are not whole pages of {self.page_size}")
        self._change = None
        view, size = memoryview(chunk), self.page_size
        first = len(self._hashes) + 1
        for number, at in enumerate(range(0, len(chunk), size), first):
            self._hashes.append(self._hash(number, view[at : at + size]))
        self.value ^= _xor(self._hashes[first - 1 :])

    def after(self, wal: Wal) -> int:
        """What the value will be after `wal`. Changes nothing."""
        return self._changed_by(wal).value

    def advance(self, wal: Wal) -> None:
        """Go on to the state after `wal`."""
        change, hashes = self._changed_by(wal), self._hashes
        del hashes[wal.database_pages :]
        hashes.extend(change.unwritten)
        for number, value in zip(wal.page_numbers, change.written, strict=True):
            hashes[number - 1] = value
        self.value = change.value
        self._change = None

    def unwritten(self, wal: Wal) -> list[int]:
        """The pages by which `wal` lets the database grow without a frame for them, so that they are zeros.

        The lock-byte page not counted. SQLite is not seen to do that, but its formats allow it.
        """
        before, after = len(self._hashes), wal.database_pages
        if after <= before:
            return []
        written = [number for number in wal.page_numbers if number > before]
        left_out = before < self._lock_page <= after
        if len(written) + left_out == after - before:
            return []
        return sorted(set(range(before + 1, after + 1)).difference(written, (self._lock_page,)))

    def _changed_by(self, wal: Wal) -> _Change:
        """Computed once, for a leader asks before the epoch is durable and again when it applies it."""
        if self._change is None or self._change[0] is not wal:
            self._change = (wal, self._compute(wal))
        return self._change[1]

    def _compute(self, wal: Wal) -> _Change:
        if wal.page_size != self.page_size:
            raise ValueError(f"a WAL with pages of {wal.page_size} bytes, a database with {self.page_size}")
        hashes, before = self._hashes, len(self._hashes)
        value = self.value
        written = [self._hash(number, page) for number, page in _pages(wal)]
        for number, new in zip(wal.page_numbers, written, strict=True):
            value ^= new ^ hashes[number - 1] if number <= before else new
        if wal.database_pages < before:
            value ^= _xor(hashes[wal.database_pages :])
        unwritten = array("Q", bytes(8 * max(0, wal.database_pages - before)))
        for number in self.unwritten(wal):
            unwritten[number - before - 1] = zeros = self._hash(number, _zeros(self.page_size))
            value ^= zeros
        return _Change(value, written, unwritten)

    def _hash(self, number: int, page: bytes | memoryview) -> int:
        return xxh3_64_intdigest(page, seed=number) if number != self._lock_page else 0


class _Change:
    """What a WAL does to a checksum: the value after it, the hashes of its frames, and those of the pages past
    the end so far (0 where a frame follows)."""

    __slots__ = ("unwritten", "value", "written")

    def __init__(self, value: int, written: list[int], unwritten: array[int]) -> None:
        self.value, self.written, self.unwritten = value, written, unwritten


def _pages(wal: Wal) -> Iterator[tuple[int, memoryview]]:
    for index, number in enumerate(wal.page_numbers):
        yield number, wal.page(index)


def _xor(hashes: array[int]) -> int:
    return int(np.bitwise_xor.reduce(np.frombuffer(hashes, np.uint64))) if hashes else 0


@lru_cache(maxsize=1)
def _zeros(page_size: int) -> bytes:
    return bytes(page_size)
