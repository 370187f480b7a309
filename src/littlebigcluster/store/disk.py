"""Blocking file operations under the directory store. Every function may raise OSError."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from littlebigcluster.clock import Clock

from .base import ObjectInfo
from .keys import is_key

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

SWEEP_AFTER_SECONDS = 3600.0


def open_new(path: Path) -> BinaryIO:
    """A new file, locked for as long as this process lives and has it open, so that a sweeper can tell."""
    file = path.open("xb")
    if fcntl is not None:
        with contextlib.suppress(OSError):  # file systems without locks: the age alone protects it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def discard(file: BinaryIO) -> None:
    """Close the temporary file and remove its name, if they are still there."""
    with contextlib.suppress(OSError):
        file.close()
    with contextlib.suppress(OSError):
        Path(file.name).unlink()


def size_of(path: Path) -> int | None:
    """The size in bytes, None if there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def sync_file(file: BinaryIO) -> None:
    """Bring the content to the disk itself; fsync on macOS stops at the drive's cache."""
    file.flush()
    if fcntl is not None and hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
            return
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Bring the names in `directory` to the disk. Windows cannot open a directory, and journals its names."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: Path, clock: Clock) -> None:
    """Remove the temporary files whose writers are surely dead: untouched for an hour and locked by nobody."""
    now = clock.now().timestamp()
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > SWEEP_AFTER_SECONDS and not _is_locked(path):
                path.unlink()
                log.info("removed %s, left behind by a writer that died", path)


def _is_locked(path: Path) -> bool:
    if fcntl is None:
        return False  # Windows refuses to remove a file that somebody has open
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove(paths: Iterable[Path]) -> None:
    """Remove the files, if they are there. Emptied directories stay: another writer may be about to use them."""
    parents = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            parents.add(path.parent)
    for parent in parents:
        sync_directory(parent)


def prune(root: Path) -> None:
    """Remove `root` and the directories below it, as far as they are empty."""
    for directory, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()


def walk(root: Path, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
    """The objects below `root`, unsorted; see `Store.list`."""
    pending = [prefix.rpartition("/")[0]]
    while pending:
        directory = pending.pop()
        inside = directory + "/" if directory else ""
        try:
            entries = list(os.scandir(root / directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            key = inside + entry.name
            if not is_key(key):  # temporary files, and what others have put there
                continue
            if entry.is_dir(follow_symlinks=False):
                if _may_hold(key + "/", prefix, start_after):
                    pending.append(key)
            elif key.startswith(prefix) and key > start_after:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found = entry.stat()
                    yield ObjectInfo(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _may_hold(inside: str, prefix: str, start_after: str) -> bool:
    """Whether a key that starts with `inside` can be listed at all."""
    if not (inside.startswith(prefix) or prefix.startswith(inside)):
        return False
    return inside > start_after or start_after.startswith(inside)
