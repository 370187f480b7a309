"""The database as it was: as a file, or to be read in a temporary place. Nobody joins for that."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.inspect import State
from littlebigcluster.database import StateChecksum
from littlebigcluster.epochs import Identity, Metadata, Point, find_epoch, names, read_identity, retained
from littlebigcluster.errors import CorruptLog
from littlebigcluster.roles import OnBytes, Restored, restore_at
from littlebigcluster.store import Store
from littlebigcluster.temporary import temporary_directory
from littlebigcluster.threads import in_thread

_CHUNK_BYTES = 1 << 20
_SIDE_FILES = ("-wal", "-shm", "-journal")


def _quiet(done: int, total: int) -> None:
    """For those who do not want to know."""


def _as_it_is(path: Path) -> None:
    """For those who want no other file."""


@contextlib.asynccontextmanager
async def at(store: Store, point: Point, *, expected_id: str | None, clock: Clock) -> AsyncIterator[State]:
    """The database as it was at `point`, restored to a temporary directory. Raises as `find_epoch`; WrongCluster."""
    identity, _ = await read_identity(store, expected_id=expected_id)
    async with temporary_directory() as directory:
        restored = await _restore(store, identity, directory, point, clock=clock, on_bytes=_quiet)
        try:
            connection = restored.replica.connect()
            try:
                yield State(connection, identity, restored.metadata)
            finally:
                connection.close()
        finally:
            restored.replica.close()


async def restore_file(
    store: Store,
    path: Path,
    point: Point | None,
    *,
    overwrite: bool,
    expected_id: str | None,
    clock: Clock,
    on_bytes: OnBytes = _quiet,
    change: Callable[[Path], None] = _as_it_is,
) -> Metadata:
    """Write the database as it was at `point` (None: as it is now) to the file `path`, whole or not at all.

    All hashes, and at the end the state checksum of the file, are checked; then `change` may change the file, in a
    thread, before it gets its name. Raises as `at`; FileExistsError, OSError, and what `change` raises.
    """
    path = path.absolute()
    _check_free(path, overwrite=overwrite)
    identity, _ = await read_identity(store, expected_id=expected_id)
    # Beside the target, so that it can take its place in one step, and a full disk is noticed before.
    async with temporary_directory(beside=path.parent, prefix=".lbc-restore-") as directory:
        restored = await _restore(store, identity, directory, point, clock=clock, on_bytes=on_bytes)
        await in_thread(_finish, restored, path, change)
        return restored.metadata


async def _restore(
    store: Store, identity: Identity, directory: Path, point: Point | None, *, clock: Clock, on_bytes: OnBytes
) -> Restored:
    found = await retained(store)
    epoch = found.head if point is None else await find_epoch(store, found, point, clock=clock)
    return await restore_at(store, identity, directory, found, epoch, clock=clock, on_bytes=on_bytes)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name the file to write")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already, and is left as it is")
    for side in (path.with_name(path.name + ending) for ending in _SIDE_FILES):
        if side.exists():  # SQLite would take it for a part of the new database
            raise FileExistsError(f"{side} belongs to another database; end who uses that, or remove the file")


def fold(restored: Restored) -> Path:
    """Close the replica and make it one file, whose state checksum is computed from what is in it.

    Raises CorruptLog, OSError, sqlite3.Error (a full disk)."""
    made = _one_file(restored)
    _check(made, restored)
    return made


def _one_file(restored: Restored) -> Path:
    made = restored.replica.path
    restored.replica.close()
    connection = sqlite3.connect(made)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    finally:
        connection.close()
    return made


def _check(made: Path, restored: Restored) -> None:
    metadata = restored.metadata
    checksum = StateChecksum(restored.replica.page_size)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with made.open("rb") as file:
        while size_bytes := file.readinto(buffer):
            checksum.feed(buffer[:size_bytes])
    if f"{checksum.value:016x}" != metadata.state_checksum:
        raise CorruptLog(
            names.wal(metadata.epoch),
            f"a database with state checksum {metadata.state_checksum}, found {checksum.value:016x} in the file",
        )


def _finish(restored: Restored, path: Path, change: Callable[[Path], None]) -> None:
    """One file, checked and on the disk, under its name."""
    made = _one_file(restored)
    with ThreadPoolExecutor(1, thread_name_prefix="lbc-restoring") as thread:
        syncing = thread.submit(_sync, made)  # the disk writes while its content is checked
        _check(made, restored)
    syncing.result()
    change(made)
    _sync(made)
    made.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(made: Path) -> None:
    with made.open("r+b") as file:
        os.fsync(file.fileno())
