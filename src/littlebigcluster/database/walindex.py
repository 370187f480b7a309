"""The wal-index, SQLite's shared memory beside the WAL (`-shm`): its header and its hash tables.

The format is section 2 of https://sqlite.org/walformat.html. All numbers are in the byte order of the machine:

    blocks of 32768 bytes    the first   0 header (48 bytes)     48 the header again
                                        96 frames checkpointed  100 marks and locks of readers and writers
                                       136 page numbers of the first 4062 frames (4 bytes each)
                             the others  0 page numbers of 4096 more frames
                             all     16384 hash table: 8192 numbers (2 bytes each) of frames in the block, from 1,
                                           0 where free; page p is at or right after slot (p * 383) mod 8192

Closing *any* descriptor of a file drops all POSIX locks that this process holds on it, SQLite's own too. So a
`WalIndex` opens the file once, and is closed only after the last connection to the database; that goes for
each `mmap` as well, which keeps a duplicate of the descriptor.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from littlebigcluster.database.wal import VERSION, Checksum, header_checksum

BLOCK_BYTES = 32768
HEADER_BYTES = 48
FRAMES_A_BLOCK = 4096
FRAMES_IN_FIRST = 4062

_HEADER = struct.Struct("=I4xIBBHIIII8s")
_CHECKSUM = struct.Struct("=II")
_NUMBER = struct.Struct("=I")
_FRAMES_AT, _BACKFILLED_AT, _HASH_AT = 16, 96, 16384
_SLOTS = 8192
_HASH_FACTOR = 383
_BIG_ENDIAN = sys.byteorder == "big"
_MAP_BYTES = max(BLOCK_BYTES, mmap.ALLOCATIONGRANULARITY)


class WalIndexError(Exception):
    """The wal-index is not what this module knows how to write; SQLite may have changed it."""


@dataclass(frozen=True, slots=True)
class WalIndexHeader:
    """What a committed state of the WAL looks like."""

    change: int  # counts the transactions
    big_endian: bool  # byte order of the checksums in the WAL
    page_size: int
    frame_count: int  # committed frames in the WAL ("mxFrame")
    database_pages: int
    checksum: Checksum  # of the last of these frames
    salt: bytes

    def pack(self) -> bytes:
        """The 48 bytes."""
        size = 1 if self.page_size == 65536 else self.page_size
        data = _HEADER.pack(
            VERSION,
            self.change & 0xFFFFFFFF,
            1,
            self.big_endian,
            size,
            self.frame_count,
            self.database_pages,
            *self.checksum,
            self.salt,
        )
        return data + _CHECKSUM.pack(*header_checksum(data, big_endian=_BIG_ENDIAN))


def unpack(raw: bytes) -> WalIndexHeader:
    """Raises WalIndexError unless `raw` is a valid header of the version that we know."""
    version, change, ready, big_endian, size, frames, pages, s0, s1, salt = _HEADER.unpack_from(raw)
    if version != VERSION or ready != 1 or big_endian > 1:
        raise WalIndexError(f"header of version {version}, {ready=}, {big_endian=}; we know {VERSION}, 1, 0 or 1")
    if header_checksum(raw[:40], big_endian=_BIG_ENDIAN) != _CHECKSUM.unpack_from(raw, 40):
        raise WalIndexError("the header has a wrong checksum")
    return WalIndexHeader(change, bool(big_endian), 65536 if size == 1 else size, frames, pages, (s0, s1), salt)


class WalIndex:
    """The wal-index of an open database. Only the holder of SQLite's write lock may call what writes.

    Opens the file, which must be there: some connection to the database has begun a transaction already.
    Raises OSError.
    """

    def __init__(self, database: Path) -> None:
        self._descriptor = os.open(f"{database}-shm", os.O_RDWR)
        self._maps: list[mmap.mmap] = []
        self._blocks: list[memoryview] = []
        self._fence = threading.Lock()
        self._fence.acquire()
        try:
            self._block(0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def frame_count(self) -> int:
        """How many frames of the WAL are committed ("mxFrame")."""
        count: int = _NUMBER.unpack_from(self._block(0), _FRAMES_AT)[0]
        return count

    def backfilled(self) -> int:
        """How many frames of the WAL are in the database file already ("nBackfill")."""
        count: int = _NUMBER.unpack_from(self._block(0), _BACKFILLED_AT)[0]
        return count

    def header(self) -> WalIndexHeader:
        """The committed state. To be called in a transaction, when SQLite has seen to it that it is valid.
        Raises WalIndexError when it is not as SQLite 3.7.0 and later write it."""
        raw = bytes(self._block(0)[: 2 * HEADER_BYTES])
        if raw[:HEADER_BYTES] != raw[HEADER_BYTES:]:
            raise WalIndexError("the two copies of the header differ")
        return unpack(raw[:HEADER_BYTES])

    def page_numbers(self, frame_count: int) -> npt.NDArray[np.uint32]:
        """The page numbers of the first `frame_count` frames."""
        out = np.empty(frame_count, np.uint32)
        done = 0
        while done < frame_count:
            number, zero, capacity = _place(done)
            count = min(frame_count, zero + capacity) - done
            pages = np.frombuffer(_page_numbers(self._block(number), capacity), np.uint32)
            out[done : done + count] = pages[:count]
            done += count
        return out

    def add(self, frame_count: int, page_numbers: Sequence[int]) -> None:
        """Enter the pages of the frames that follow the first `frame_count`, which are the committed ones.

        Nobody sees them before `publish`; what a half done call has left behind, the next one cleans away.
        """
        done = 0
        while done < len(page_numbers):
            number, zero, capacity = _place(frame_count + done)
            used = frame_count + done - zero
            part = page_numbers[done : done + capacity - used]
            _add(self._block(number), capacity, used, part)
            done += len(part)

    def publish(self, header: WalIndexHeader) -> None:
        """Make `header` the committed state: from its last byte on, new readers see the frames added.

        The second copy first: readers take the first, then the second, and believe them when both agree.
        """
        raw, block = header.pack(), self._block(0)
        self._barrier()
        block[HEADER_BYTES : 2 * HEADER_BYTES] = raw
        self._barrier()
        block[:HEADER_BYTES] = raw
        self._barrier()

    def check(self) -> None:
        """Raise WalIndexError unless all is, bit by bit, as `add` and `publish` would have written it.

        Holds only where nothing was ever rolled back or left half done.
        """
        header = self.header()
        if header.pack() != self._block(0)[:HEADER_BYTES]:
            raise WalIndexError("the header has fields we do not know")
        page_numbers = self.page_numbers(header.frame_count).tolist()
        done = 0
        while done < len(page_numbers):
            number, zero, capacity = _place(done)
            part = page_numbers[zero : zero + capacity]
            ours = memoryview(bytearray(BLOCK_BYTES))
            _add(ours, capacity, 0, part)
            start = _HASH_AT - 4 * capacity
            if ours[start:] != self._block(number)[start:]:
                raise WalIndexError(f"block {number} of the hash tables is not as expected")
            done += len(part)

    def close(self) -> None:
        """To be called after the last connection of this process to the database is closed, not before."""
        for block in self._blocks:
            block.release()
        for mapped in self._maps:
            mapped.close()
        os.close(self._descriptor)

    def _block(self, number: int) -> memoryview:
        while number >= len(self._blocks):
            start = len(self._maps) * _MAP_BYTES
            size = os.fstat(self._descriptor).st_size
            if size < start + _MAP_BYTES:
                # Written, not only extended: on a full disk that fails here, and not as SIGBUS at the first use.
                os.pwrite(self._descriptor, bytes(start + _MAP_BYTES - size), size)
            mapped = mmap.mmap(self._descriptor, _MAP_BYTES, offset=start)
            self._maps.append(mapped)
            view = memoryview(mapped)
            self._blocks += (view[at : at + BLOCK_BYTES] for at in range(0, _MAP_BYTES, BLOCK_BYTES))
        return self._blocks[number]

    def _barrier(self) -> None:
        """Let no processor (ARM would) put a write behind this before one that stands in front of it.

        Python offers nothing but locks. The release orders what came before, the acquire what comes after; in
        this order they make a full barrier, the other way round both could move inside.
        """
        self._fence.release()
        self._fence.acquire()


def _place(frames_before: int) -> tuple[int, int, int]:
    """For the frame that follows so many: the number of its block, the frames in earlier blocks, its capacity."""
    if frames_before < FRAMES_IN_FIRST:
        return 0, 0, FRAMES_IN_FIRST
    later, _ = divmod(frames_before - FRAMES_IN_FIRST, FRAMES_A_BLOCK)
    return later + 1, FRAMES_IN_FIRST + later * FRAMES_A_BLOCK, FRAMES_A_BLOCK


def _page_numbers(block: memoryview, capacity: int) -> memoryview:
    return block[_HASH_AT - 4 * capacity : _HASH_AT].cast("I")


def _add(block: memoryview, capacity: int, used: int, new: Sequence[int]) -> None:
    numbers, slots = _page_numbers(block, capacity), block[_HASH_AT:].cast("H")
    if not used:
        block[_HASH_AT - 4 * capacity :] = bytes(BLOCK_BYTES - _HASH_AT + 4 * capacity)
    elif used < capacity and numbers[used]:
        _clean(numbers, slots, used)
    # Page numbers first: a number where none should be is how the next append notices the remnants of this one.
    numbers[used : used + len(new)] = array("I", new)
    for index, page in enumerate(new, used + 1):
        slot = page * _HASH_FACTOR % _SLOTS
        while slots[slot]:
            slot = (slot + 1) % _SLOTS
        slots[slot] = index


def _clean(numbers: memoryview, slots: memoryview, used: int) -> None:
    """Take back what an append that failed or died half way has left behind the first `used` frames."""
    table = np.frombuffer(slots, np.uint16)
    table[table > used] = 0
    numbers[used:] = array("I", bytes(4 * (len(numbers) - used)))
