"""SQLite's WAL file format: parse and verify, squash, re-chain.

The format is https://sqlite.org/walformat.html and section 4 of https://sqlite.org/fileformat2.html:

    file header, 32 bytes, big-endian     0 magic 0x377f0682 or ...83   4 version 3007000    8 page size
                                         12 checkpoint sequence       16 salt (8 bytes)   24 checksum (2 x 4)
    frame, 24 bytes and a page            0 page number               4 database size in pages after the
                                            commit, 0 if the frame commits nothing
                                          8 salt (8 bytes)           16 checksum (2 x 4)   24 the page

A checksum is a pair (s0, s1) that runs on from the file header over the first 8 bytes and the page of each
frame, taken as 32-bit words x0, x1 in the byte order that the last bit of the magic tells:

    s0 += x0 + s1;  s1 += x1 + s0     (mod 2**32)

That is linear. So a whole frame is `s' = M**n s + sum`, with two dot products of its words as the `sum`, which
does not depend on what came before, and `n` half the number of its words. numpy computes them at gigabytes a
second; a new salt or a new place in a file costs nothing but the recurrence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint32]
Checksum: TypeAlias = tuple[int, int]
Matrix: TypeAlias = tuple[int, int, int, int]

MAGIC = 0x377F0682  # with the lowest bit set, checksums are over big-endian words
VERSION = 3007000
HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
PAGE_SIZES = tuple(1 << bits for bits in range(9, 17))

_HEADER = struct.Struct(">IIII8sII")
_MASK = 0xFFFFFFFF
_BLOCK_BYTES = 1 << 20  # work on what fits into a processor's cache

# Columns of a frame, as words.
_PAGE, _COMMIT, _SALT, _CHECKSUM, _CONTENT = 0, 1, slice(2, 4), slice(4, 6), slice(6, None)


class WalError(ValueError):
    """Not the WAL that it should be: at byte `offset` stands something else than `expected`."""

    def __init__(self, offset: int, expected: str) -> None:
        super().__init__(f"WAL, byte {offset}: expected {expected}")
        self.offset = offset
        self.expected = expected


@dataclass(frozen=True, slots=True, eq=False)
class Wal:
    """One transaction as a verified WAL file: what an epoch holds."""

    raw: bytes | bytearray
    page_size: int
    salt: bytes
    big_endian: bool  # the byte order of the checksums
    page_numbers: list[int]  # Invariant: each once, from 1 to database_pages
    database_pages: int  # the size of the database after this transaction
    words: Words  # raw without its header, one row a frame, as little-endian words
    sums: Words  # what each frame adds to the checksum, one row (s0, s1) a frame
    checksum: Checksum  # of the last frame

    @property
    def frames(self) -> int:
        """The number of frames, one a page."""
        return len(self.page_numbers)

    def page(self, index: int) -> memoryview:
        """The page in frame `index`, counted from 0."""
        start = HEADER_BYTES + index * (FRAME_HEADER_BYTES + self.page_size) + FRAME_HEADER_BYTES
        return memoryview(self.raw)[start : start + self.page_size]


@dataclass(frozen=True, slots=True)
class _Header:
    big_endian: bool
    page_size: int
    salt: bytes
    checksum: Checksum


def parse(raw: bytes | bytearray, *, page_size: int | None = None) -> Wal:
    """Verify every bit of `raw` as a WAL file with exactly one transaction that names each page once.

    Raises WalError where it is anything else, also where its pages are not of `page_size` bytes if that is given.
    """
    header = _parse_header(raw, page_size)
    words = _frames(raw, header.page_size)
    page_numbers = words[:, _PAGE].byteswap().tolist()
    _verify_transaction(page_numbers, words, header)
    sums = _sums(words, header.page_size, big_endian=header.big_endian)
    return Wal(
        raw=raw,
        page_size=header.page_size,
        salt=header.salt,
        big_endian=header.big_endian,
        page_numbers=page_numbers,
        database_pages=int(words[-1, _COMMIT].byteswap()),
        words=words,
        sums=sums,
        checksum=_verify_checksums(sums, words, header),
    )


def squash(raw: bytes | bytearray) -> bytes | bytearray:
    """Make one transaction of the one or more that `raw` holds, the committed part of the WAL of an open database.

    Keeps the last image of each page, drops pages past the final size. Page numbers, sizes and pages are believed;
    salts and checksums are not: after a spill and a ROLLBACK TO, SQLite (seen with 3.40.1) may leave zeros there,
    which `walEncodeFrame` has put in for later, because `walRewriteChecksums` begins too late. Raises WalError if
    `raw` does not end in a commit.
    """
    header = _parse_header(raw, None)
    words = _frames(raw, header.page_size)
    size = int(words[-1, _COMMIT].byteswap())
    if not size:
        raise WalError(len(raw) - words.shape[1] * 4, "a commit frame at the end")
    salt = np.frombuffer(header.salt, "<u4")
    chosen = _last_images(words[:, _PAGE].byteswap(), size)
    one = len(chosen) == len(words) and np.count_nonzero(words[:, _COMMIT]) == 1
    if one and (words[:, _SALT] == salt).all():
        return raw
    out = bytearray(HEADER_BYTES + len(chosen) * words.shape[1] * 4)
    out[:HEADER_BYTES] = raw[:HEADER_BYTES]
    frames = _frames(out, header.page_size)
    np.take(words, chosen, axis=0, out=frames)
    frames[:, _COMMIT] = 0
    frames[-1, _COMMIT] = _swapped(size)
    frames[:, _SALT] = salt
    sums = _sums(frames, header.page_size, big_endian=header.big_endian)
    chain(frames, sums, header.page_size, header.checksum)
    return out


def to_wal(
    pages: Iterable[tuple[int, bytes | memoryview]],
    *,
    page_size: int,
    database_pages: int,
    salt: bytes,
    big_endian: bool = False,
) -> bytes:
    """A WAL file with one transaction that writes `pages`, pairs of page number and content.

    Raises ValueError if there are none, or one is not of `page_size` bytes.
    """
    head = _HEADER.pack(MAGIC | big_endian, VERSION, page_size, 0, salt, 0, 0)[:24]
    start = header_checksum(head, big_endian=big_endian)
    parts = [head, struct.pack(">II", *start)]
    for number, page in pages:
        if len(page) != page_size:
            raise ValueError(f"page {number} has {len(page)} bytes, not {page_size}")
        parts += (struct.pack(">II8s8x", number, 0, salt), bytes(page))
    if len(parts) == 2:
        raise ValueError("a transaction has at least one page")
    out = bytearray().join(parts)
    frames = _frames(out, page_size)
    frames[-1, _COMMIT] = _swapped(database_pages)
    chain(frames, _sums(frames, page_size, big_endian=big_endian), page_size, start)
    return bytes(out)


def rechain(wal: Wal, *, salt: bytes, start: Checksum, big_endian: bool) -> tuple[bytearray, Checksum]:
    """The frames of `wal`, without file header, as they must stand in a live WAL file with another `salt` and
    byte order of checksums, behind a frame with the checksum `start`. Also the checksum of the last one."""
    out = bytearray(memoryview(wal.raw)[HEADER_BYTES:])
    frames = np.frombuffer(out, "<u4").reshape(wal.words.shape)
    frames[:, _SALT] = np.frombuffer(salt, "<u4")
    same = wal.big_endian == big_endian
    sums = wal.sums if same else _sums(frames, wal.page_size, big_endian=big_endian)
    return out, chain(frames, sums, wal.page_size, start)


def chain(frames: Words, sums: Words, page_size: int, start: Checksum) -> Checksum:
    """Write the checksums into `frames`, which stand behind a frame with the checksum `start`; return the last."""
    checksums = _run_on(sums, page_size, start)
    frames[:, _CHECKSUM] = np.array(checksums, np.uint32).byteswap().reshape(-1, 2)
    return checksums[-2], checksums[-1]


def header_checksum(data: bytes, *, big_endian: bool, start: Checksum = (0, 0)) -> Checksum:
    """SQLite's checksum of a few words, as its own loop does it; for headers."""
    s0, s1 = start
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & _MASK
        s1 = (s1 + x1 + s0) & _MASK
    return s0, s1


def _parse_header(raw: bytes | bytearray, page_size: int | None) -> _Header:
    if len(raw) < HEADER_BYTES:
        raise WalError(len(raw), "a header of 32 bytes")
    magic, version, size, _, salt, s0, s1 = _HEADER.unpack_from(raw)
    if magic & ~1 != MAGIC:
        raise WalError(0, "the magic number of a WAL file")
    if version != VERSION:
        raise WalError(4, f"format version {VERSION}")
    if size not in PAGE_SIZES or page_size not in (None, size):
        raise WalError(8, f"page size {page_size or 'a power of two from 512 to 65536'}")
    big_endian = bool(magic & 1)
    if header_checksum(bytes(raw[:24]), big_endian=big_endian) != (s0, s1):
        raise WalError(24, "the checksum of the header")
    return _Header(big_endian, size, salt, (s0, s1))


def _frames(raw: bytes | bytearray, page_size: int) -> Words:
    frame_bytes = FRAME_HEADER_BYTES + page_size
    count, rest = divmod(len(raw) - HEADER_BYTES, frame_bytes)
    if rest or not count:
        raise WalError(len(raw), f"a whole number, at least one, of frames of {frame_bytes} bytes")
    return np.frombuffer(raw, "<u4", offset=HEADER_BYTES).reshape(count, frame_bytes // 4)


def _verify_transaction(page_numbers: list[int], words: Words, header: _Header) -> None:
    """Everything but the checksums. Lists, not numpy: most epochs are small. The place is looked for on failure."""
    commits = words[:, _COMMIT].byteswap().tolist()
    size, last = commits[-1], len(commits) - 1
    if not (words[:, _SALT] == np.frombuffer(header.salt, "<u4")).all():
        salts = (words[frame, _SALT].tobytes() for frame in range(last + 1))
        raise _located((salt != header.salt for salt in salts), header, 8, "the header's salt")
    if not size or any(commits[:-1]):
        wrong = (bool(commit) != (frame == last) for frame, commit in enumerate(commits))
        raise _located(wrong, header, 4, "exactly one transaction, its last frame the commit frame")
    if min(page_numbers) < 1 or max(page_numbers) > size:
        wrong = (not 1 <= number <= size for number in page_numbers)
        raise _located(wrong, header, 0, f"a page number from 1 to {size}")
    if len(set(page_numbers)) != len(page_numbers):
        first: dict[int, int] = {}
        wrong = (first.setdefault(number, frame) != frame for frame, number in enumerate(page_numbers))
        raise _located(wrong, header, 0, "each page once")


def _verify_checksums(sums: Words, words: Words, header: _Header) -> Checksum:
    stored = words[:, _CHECKSUM].byteswap().ravel().tolist()
    computed = _run_on(sums, header.page_size, header.checksum)
    if stored != computed:
        wrong = (stored[at : at + 2] != computed[at : at + 2] for at in range(0, len(stored), 2))
        raise _located(wrong, header, 16, "the checksum of the frame")
    return computed[-2], computed[-1]


def _run_on(sums: Words, page_size: int, start: Checksum) -> list[int]:
    """The checksums, s0 and s1 by turns, of frames that stand behind one with the checksum `start`."""
    a, b, c, d = _coefficients(page_size)[1]
    s0, s1 = start
    out: list[int] = []
    for x0, x1 in zip(sums[:, 0].tolist(), sums[:, 1].tolist(), strict=True):
        s0, s1 = (a * s0 + b * s1 + x0) & _MASK, (c * s0 + d * s1 + x1) & _MASK
        out += (s0, s1)
    return out


def _located(wrong: Iterable[bool], header: _Header, offset: int, expected: str) -> WalError:
    """The error for the first frame that is wrong, at `offset` in its header."""
    frame = next(number for number, is_wrong in enumerate(wrong) if is_wrong)
    return WalError(HEADER_BYTES + frame * (FRAME_HEADER_BYTES + header.page_size) + offset, expected)


def _last_images(numbers: Words, size: int) -> npt.NDArray[np.intp]:
    """Indexes of the last frames of the pages up to `size`, in the order of the file."""
    pages, from_end = np.unique(numbers[::-1], return_index=True)
    return np.sort(len(numbers) - 1 - from_end[pages <= size])


def _sums(words: Words, page_size: int, *, big_endian: bool) -> Words:
    """What each frame adds to the checksum: the dot products of its words."""
    coefficients = _coefficients(page_size)[0]
    out = np.empty((len(words), 2), np.uint32)
    step = max(1, _BLOCK_BYTES // (words.shape[1] * 4))
    for at in range(0, len(words), step):
        block = words[at : at + step]
        np.einsum("ij,kj->ik", block.byteswap() if big_endian else block, coefficients, out=out[at : at + step])
    return out


@lru_cache(maxsize=len(PAGE_SIZES))
def _coefficients(page_size: int) -> tuple[Words, Matrix]:
    """For frames of this page size: what each word counts in (s0, s1), two rows, and M**n.

    One step, two words, is s' = M s + B x with M = (1 1, 1 2) and B = (1 0, 1 1); so the words of step k of n
    count M**(n-1-k) B. Salts and checksum of a frame are not summed: their columns are zero.
    """
    columns: list[tuple[int, int]] = []
    a, b, c, d = 1, 0, 0, 1  # M**0, then each power to come
    for _ in range((8 + page_size) // 8):
        columns += (b, d), ((a + b) & _MASK, (c + d) & _MASK)
        a, b, c, d = (a + b) & _MASK, (a + 2 * b) & _MASK, (c + d) & _MASK, (c + 2 * d) & _MASK
    summed = np.array(columns[::-1], np.uint32).T
    out = np.zeros((2, (FRAME_HEADER_BYTES + page_size) // 4), np.uint32)
    out[:, :2], out[:, _CONTENT] = summed[:, :2], summed[:, 2:]
    return out, (a, b, c, d)


def _swapped(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "big"), "little")
