"""The local directory of a node: its own, and nobody else's while it runs."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from littlebigcluster.errors import DirectoryInUse
from littlebigcluster.temporary import MARK, lock, temporary_directory
from littlebigcluster.threads import in_thread

_LEFTOVERS = ("primary-*", "snapshot-*", "past-*", "rollback-*")
"""What a node that crashed may have left, and no other one can use."""


@contextlib.asynccontextmanager
async def node_directory(given: Path | None) -> AsyncIterator[Path]:
    """A given directory is kept; without one a temporary one is made, and removed at the end.

    Raises DirectoryInUse, OSError, sqlite3.OperationalError.
    """
    if given is None:
        async with temporary_directory() as made:
            yield made
        return
    held = await in_thread(_taken, given, undo=sqlite3.Connection.close)
    try:
        yield given
    finally:
        await in_thread(held.close)


def _taken(directory: Path) -> sqlite3.Connection:
    directory.mkdir(parents=True, exist_ok=True)
    held = lock(directory)
    if held is None:
        raise DirectoryInUse(f"another node works in {directory}; give each node a directory of its own, or none")
    try:
        (directory / MARK).unlink(missing_ok=True)  # it was left behind, and is kept from now on
        for leftover in [each for kind in _LEFTOVERS for each in directory.glob(kind)]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    except BaseException:
        held.close()
        raise
    return held
