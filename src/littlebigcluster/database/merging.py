"""Many transactions as one."""

from __future__ import annotations

from littlebigcluster.database.checksum import lock_page
from littlebigcluster.database.wal import Wal, to_wal


class Merging:
    """One transaction that leads as far as several do. Takes the last one first, then always the one before it, so
    that it never holds more than what it makes."""

    # Invariant: _pages are the pages of the final state that the transactions so far write. Those after _smallest,
    # the smallest size of the database on the way, are new since: what older transactions wrote there is gone.

    def __init__(self, last: Wal) -> None:
        self._page_size, self._database_pages = last.page_size, last.database_pages
        self._smallest = last.database_pages
        self._pages: dict[int, bytes] = {}
        self.add(last)

    @property
    def size_bytes(self) -> int:
        """Of the pages so far."""
        return len(self._pages) * self._page_size

    def add(self, before: Wal) -> None:
        """Take the transaction before those so far. Raises ValueError when its pages are of another size."""
        if before.page_size != self._page_size:
            raise ValueError(f"pages of {before.page_size} bytes before pages of {self._page_size}")
        for index, number in enumerate(before.page_numbers):
            if number <= self._smallest and number not in self._pages:
                self._pages[number] = bytes(before.page(index))
        self._smallest = min(self._smallest, before.database_pages)

    def result(self, *, salt: bytes) -> bytes:
        """As a WAL file with one transaction, its pages in the order of their numbers."""
        # A page that is dropped on the way and back at the end without a frame (see `StateChecksum.unwritten`) is
        # zeros, whatever was there before.
        zeros = set(range(self._smallest + 1, self._database_pages + 1)) - self._pages.keys()
        zeros.discard(lock_page(self._page_size))
        pages = self._pages | dict.fromkeys(zeros, bytes(self._page_size))
        return to_wal(sorted(pages.items()), page_size=self._page_size, database_pages=self._database_pages, salt=salt)
