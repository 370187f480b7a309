"""A consistent image of the replica's database, read page by page while applying goes on."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from littlebigcluster.database.wal import FRAME_HEADER_BYTES, HEADER_BYTES
from littlebigcluster.database.walindex import WalIndex


class PageSource:
    """The bytes that the database file would have after a full checkpoint, as of one epoch.

    A read transaction on a connection of its own keeps SQLite from overwriting what belongs to the image: the
    WAL is not reset, and a checkpoint moves only frames of the image to the file. So a page is its last frame
    in the WAL, as of the beginning, else the page in the file. An open image keeps the WAL growing; close it soon.

    `Replica.pages` makes it. Any thread may use it, one at a time.
    """

    def __init__(
        self, connection: sqlite3.Connection, index: WalIndex, *, database: int, wal: int, page_size: int
    ) -> None:
        """`database` and `wal` are descriptors that outlive this. Nobody commits to the WAL meanwhile."""
        self._connection = connection
        self._database, self._wal = database, wal
        self.page_size = page_size
        self._connection.execute("BEGIN")
        self.page_count: int = self._connection.execute("PRAGMA page_count").fetchone()[0]  # takes the snapshot
        frames = index.frame_count()
        if index.backfilled() >= frames:
            # All is in the file. This transaction may hold none of the WAL then, which may be reset under us.
            frames = 0
        self._pages, self._frames = _last_frames(index.page_numbers(frames))

    @property
    def size_bytes(self) -> int:
        """Of the whole image."""
        return self.page_count * self.page_size

    def chunks(self, size_bytes: int = 1 << 20) -> Iterator[bytes]:
        """All pages in order, in chunks of whole pages of about `size_bytes`. Raises OSError."""
        step = max(1, size_bytes // self.page_size)
        for first in range(1, self.page_count + 1, step):
            yield self.read(first, min(step, self.page_count + 1 - first))

    def read(self, first: int, count: int) -> bytes:
        """`count` pages from page number `first` on. Raises OSError."""
        size = self.page_size
        # A page that is neither in the WAL nor in the file has never been written and is zeros in the file to
        # be: SQLite's lock-byte page at 1 GiB, when it is beyond the end of the file so far.
        out = memoryview(bytearray(count * size))
        _read(self._database, out, (first - 1) * size)
        begin, end = np.searchsorted(self._pages, (first, first + count))
        for page, frame in zip(self._pages[begin:end].tolist(), self._frames[begin:end].tolist(), strict=True):
            at = (page - first) * size
            start = HEADER_BYTES + frame * (FRAME_HEADER_BYTES + size) + FRAME_HEADER_BYTES
            if _read(self._wal, out[at : at + size], start) != size:
                raise OSError(f"the WAL of the replica ends before the content of frame {frame + 1}")
        return bytes(out)

    def close(self) -> None:
        """Let go of the image."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _last_frames(page_numbers: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """The pages in the WAL, ascending, and for each the last frame that holds it, counted from 0."""
    pages, from_end = np.unique(page_numbers[::-1], return_index=True)
    return pages, len(page_numbers) - 1 - from_end


def _read(descriptor: int, out: memoryview, offset: int) -> int:
    """Fill `out` as far as the file goes; return how far."""
    done = 0
    while done < len(out):
        count = os.preadv(descriptor, [out[done:]], offset + done)
        if not count:
            break
        done += count
    return done
