"""Temporary directories, and what dead processes have left of theirs: whoever makes one removes what lies beside it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from littlebigcluster.threads import in_thread

logger = logging.getLogger(__name__)

PREFIX = "lbc-"
LOCK = "lock.db"
_JOURNAL = f"{LOCK}-journal"
MARK = "temporary.txt"
"""Only a directory with a file of this name is ever removed because its owner is dead."""

_MOMENT_SECONDS, _MOMENTS = 0.01, 200

_MARK_TEXT = """\
A process of LittleBigCluster has made this directory for itself, and removes it at its end. If it is killed,
the next one of the same user that makes such a directory beside this one removes it. So may you, when nobody uses it.
"""


def lock(directory: Path, *, make: bool = True) -> sqlite3.Connection | None:
    """The lock on a directory, held until the connection is closed; None when somebody else holds it.

    It is SQLite's own, on a file of its own: it holds between processes (of any namespace) and within one, on every
    system, and ends with the process. Whoever opens that file by other means drops it. Raises sqlite3.OperationalError
    for a disk that fails, and, unless the file may be made, when there is none.
    """
    path = directory / LOCK
    where, uri = (str(path), False) if make else (f"file:{quote(os.fsencode(path))}?mode=rw", True)
    connection = sqlite3.connect(where, uri=uri, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:  # its disk is full, say
            raise
        return None
    return connection


class TemporaryDirectory:
    """One that says whose it is and whether that one lives, so that others can tell when to remove it."""

    # Invariant: the lock is held from before the mark is made until after it is gone. So nobody takes a directory that
    # is being made for one that was left behind, and what is left of one that was being removed keeps its mark.

    def __init__(self, beside: Path | None = None, prefix: str = PREFIX) -> None:
        """Raises OSError, sqlite3.OperationalError."""
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        self._lock: sqlite3.Connection | None = None
        try:
            self._lock = lock(self.path)
            if self._lock is not None:
                (self.path / MARK).write_text(_MARK_TEXT)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove it; what cannot be removed is left to others."""
        try:
            try:
                _clear(self.path)
                (self.path / MARK).unlink(missing_ok=True)
            finally:
                if self._lock is not None:
                    self._lock.close()
            shutil.rmtree(self.path, ignore_errors=True)  # what else somebody has written there meanwhile, too
            _drop(self.path)
        except OSError as error:
            logger.warning("cannot remove %s: %s", self.path, error)


async def remove_tree(directory: Path) -> None:
    """Remove a directory and all below it, as far as that can be done."""
    await in_thread(partial(shutil.rmtree, directory, ignore_errors=True))


@contextlib.asynccontextmanager
async def temporary_directory(*, beside: Path | None = None, prefix: str = PREFIX) -> AsyncIterator[Path]:
    """A new directory in `beside` (None: where temporary files go), which is removed at the end. Meanwhile what dead
    processes have left there is removed in a thread; also when this one fails, for want of room perhaps.

    Raises OSError, sqlite3.OperationalError.
    """
    sweeping = asyncio.create_task(in_thread(sweep, beside, prefix))
    try:
        made = await in_thread(TemporaryDirectory, beside, prefix, undo=TemporaryDirectory.close)
        try:
            yield made.path
        finally:
            await in_thread(made.close)
    finally:
        await sweeping


def sweep(directory: Path | None = None, prefix: str = PREFIX) -> None:
    """Remove the directories in `directory` that are certainly of dead processes of this user. Raises nothing."""
    if not shutil.rmtree.avoids_symlink_attacks:  # Windows, where there are no owners to go by, either
        return
    try:
        with os.scandir(directory or tempfile.gettempdir()) as entries:
            found = [Path(each.path) for each in entries if each.name.startswith(prefix)]
    except OSError as error:
        logger.debug("cannot look for what dead processes have left: %s", error)
        return
    for path in found:
        try:
            if _removed(path):
                logger.info("removed %s, left behind by a process that died", path)
        except FileNotFoundError:
            pass  # others have removed it
        except (OSError, sqlite3.Error) as error:
            logger.debug("leaving %s alone: %s", path, error)


def _removed(path: Path) -> bool:
    # Whatever the name leads to later, it is this directory that is looked at and emptied.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _is_marked(descriptor):
            return False
        held = lock(path, make=False)
        if held is None:
            return False
        try:
            if not _is_marked(descriptor):  # somebody else has removed it, or made it a directory to keep
                return False
            _clear(descriptor)
            os.unlink(MARK, dir_fd=descriptor)
        except OSError as error:
            logger.warning("cannot remove %s, left behind by a process that died: %s", path, error)
            return False
        finally:
            held.close()
    finally:
        os.close(descriptor)
    _drop(path)
    return True


def _drop(path: Path) -> None:
    """Remove a directory in which nothing is left but its lock. Raises OSError.

    Others may just try that lock, see that the mark is gone, and leave; for that moment SQLite has a journal there.
    """
    for _ in range(_MOMENTS):
        try:
            for name in (LOCK, _JOURNAL):
                (path / name).unlink(missing_ok=True)
            return path.rmdir()
        except FileNotFoundError:
            return None  # others have removed it
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        time.sleep(_MOMENT_SECONDS)
    raise OSError(errno.ENOTEMPTY, "somebody else writes there", str(path))


def _is_marked(descriptor: int) -> bool:
    """Whether a process of this user has made it as a temporary directory of its own, into which nobody else writes."""
    owner, found = os.geteuid(), os.fstat(descriptor)
    if found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o077:
        return False
    try:
        files = [os.stat(name, dir_fd=descriptor, follow_symlinks=False) for name in (MARK, LOCK)]
    except FileNotFoundError:
        return False
    return all(stat.S_ISREG(each.st_mode) and each.st_uid == owner for each in files)


def _clear(directory: Path | int) -> None:
    """Remove all but the lock and the mark, through the descriptor if it is one. Raises OSError."""
    inside = directory if isinstance(directory, int) else None
    with os.scandir(directory) as entries:
        for each in list(entries):
            if each.name == MARK or each.name.startswith(LOCK):  # SQLite has a journal beside it
                continue
            if each.is_dir(follow_symlinks=False):
                shutil.rmtree(each.path, dir_fd=inside)
            else:
                os.unlink(each.path, dir_fd=inside)
