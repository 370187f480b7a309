"""The descriptors that a replica holds on its files, beside SQLite's own.

POSIX locks have a trap: closing any descriptor of a file drops all locks of this process on it. So nothing in
this process may open and close `replica.db` or its `-shm` but SQLite; the descriptors needed here stay open until
the last connection is gone. The `-wal` carries no locks.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path

from littlebigcluster.database.walindex import WalIndex


class Files:
    """The descriptors beside SQLite's own. Every connection holds on to them, so they are closed last."""

    def __init__(self, path: Path) -> None:
        self._open = ExitStack()
        self.index = WalIndex(path)
        self._open.callback(self.index.close)
        self.database = os.open(path, os.O_RDONLY)  # Python's descriptors are closed on exec by themselves
        self._open.callback(os.close, self.database)
        self.wal = os.open(f"{path}-wal", os.O_RDWR)
        self._open.callback(os.close, self.wal)

    def __del__(self) -> None:
        self._open.close()


class ReplicaConnection(sqlite3.Connection):
    """A connection with room for the descriptors that must outlive it."""

    files: Files


def write_at(descriptor: int, content: bytes | bytearray, offset: int) -> None:
    """Write all of `content`. Raises OSError, possibly after a part."""
    view, done = memoryview(content), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
