"""The local directory of a node: its own, and nobody else's while it runs."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

from littlebigcluster.errors import DirectoryInUse

_LEFTOVERS = ("primary-*", "snapshot-*", "past-*")
"""What a node that crashed may have left, and no other one can use."""


class NodeDirectory:
    """A given directory is kept; without one a temporary one is made, and removed at the end.

    The lock is SQLite's own, on a file of its own: it holds between processes and within one, on every system,
    and ends with the process.
    """

    def __init__(self, given: Path | None) -> None:
        self._temporary = given is None
        self.path = Path(tempfile.mkdtemp(prefix="lbc-")) if given is None else given
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = sqlite3.connect(self.path / "lock.db", timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:  # its disk is full, say
                raise
            raise DirectoryInUse(
                f"another node works in {self.path}; give each node a directory of its own, or none"
            ) from None
        for leftover in [each for kind in _LEFTOVERS for each in self.path.glob(kind)]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def close(self) -> None:
        self._lock.close()
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)
