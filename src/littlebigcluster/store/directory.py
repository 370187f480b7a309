"""A plain directory as an object store: durable, atomic, and safe for many processes at once.

An object gets its name only when its bytes are on the disk: temporary file, fsync, `link` (create) or `rename`
(put), fsync of the directory. `link` never replaces, which makes it the atomic conditional create.

The temporary name goes away last. So an object with two names is one whose writer may still be on the way to
the fsync of the directory, and `get` does that fsync itself before it hands out such bytes: nobody acts on an
object that a power cut could take back.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable

from . import disk
from .base import Created, CreateOutcome, Exists, ObjectInfo, Unknown
from .keys import TEMPORARY, check_body, check_range, checked
from .retry import allowed_seconds

T = TypeVar("T")

THREADS = 8
MAX_SETTLED = 10_000
"""So many directories are remembered as made; others are looked at again."""

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)
CONFLICTS = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EXDEV)


class DirectoryStore:
    """The `Store` in a directory, which is made on the first write. Blocking work runs on threads of its own."""

    def __init__(self, root: Path | str, *, timeout_seconds: float = 10.0, clock: Clock) -> None:
        self.root = Path(root).expanduser().absolute()
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lbc-directory")
        self._temporary = self.root / TEMPORARY
        # Directories whose own names are known to be on the disk.
        self._settled: set[Path] = set()

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self.root)!r})"

    @property
    def url(self) -> str:
        return self.root.as_uri()

    async def get(self, key: str) -> bytes | None:
        path = self._path(key)
        size_bytes = await self._run(f"read {key}", lambda: disk.size_of(path))
        if size_bytes is None:
            return None
        return await self._run(f"read {key}", lambda: self._read(path, 0, -1), size_bytes)

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        check_range(start, length)
        path = self._path(key)
        return await self._run(f"read {key}", lambda: self._read(path, start, length), length)

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        check_body(body)
        path = self._path(key)
        try:
            return await self._run(f"create {key}", lambda: self._create(path, body), len(body))
        except StoreUnavailable as error:
            if not error.transient:
                raise
            return Unknown(error)

    async def put(self, key: str, body: bytes) -> None:
        check_body(body)
        path = self._path(key)
        await self._run(f"write {key}", lambda: self._put(path, body), len(body))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._path(key)
        name = f"write {key}"
        opened: list[BinaryIO] = []
        over = threading.Event()

        def open_temporary() -> BinaryIO:
            opened.append(file := self._open_temporary())
            if over.is_set():  # given up meanwhile
                disk.discard(file)
            return file

        try:
            file = await self._run(name, open_temporary)
            async for chunk in chunks:
                check_body(chunk)
                await self._run(name, lambda chunk=chunk: file.write(chunk), len(chunk))  # type: ignore[misc]
            await self._run(name, lambda: self._publish(file, path))
        finally:
            # Not awaited: a cancelled caller goes at once, and a hung disk holds up a thread only.
            over.set()
            for file in opened:
                try:
                    self._pool.submit(disk.discard, file)
                except RuntimeError:  # the store was closed meanwhile
                    disk.discard(file)

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        return await self._run(
            f"list {prefix}*", lambda: sorted(disk.walk(self.root, prefix, start_after), key=attrgetter("key"))
        )

    async def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        if paths:
            await self._run(f"delete {len(paths)} objects", lambda: disk.remove(paths), len(paths) << 10)

    async def prune(self, prefix: str) -> None:
        """Remove the empty directories at and below `prefix`: for whoever made that prefix, and is alone there."""
        path = self._path(prefix)
        await self._run(f"prune {prefix}", lambda: disk.prune(path))

    async def close(self) -> None:
        # What waits is carried out: temporary files are closed and removed there too.
        self._pool.shutdown(wait=False)

    # What follows runs on the threads, but for `_path` and `_run`.

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    async def _run(self, what: str, work: Callable[[], T], size_bytes: int = 0) -> T:
        """`work` on a thread. One that is given up goes on there, as a request on its way to a server would."""
        seconds = allowed_seconds(self._timeout_seconds, size_bytes)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError as error:
            message = f"cannot {what} in {self.root}: no answer from the disk in {seconds:.1f} s"
            raise StoreUnavailable(message) from error
        except OSError as error:
            raise self._translated(what, error) from error

    def _translated(self, what: str, error: OSError) -> StoreUnavailable:
        reason, code = error.strerror or str(error), error.errno
        if code in REFUSALS:
            advice, transient = "; give this user the right to read and write there", False
        elif code in CONFLICTS:
            advice, transient = "; an object's name is also a directory there, or is too long for it", False
        elif code in (errno.ENOSPC, errno.EDQUOT):
            advice, transient = "; free some space", True
        else:
            advice, transient = "", True
        message = f"cannot {what} in {self.root}: {reason}{advice}"
        return StoreUnavailable(message, transient=transient)

    def _read(self, path: Path, start: int, length: int) -> bytes | None:
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_nlink > 1:
                    disk.sync_directory(path.parent)
                file.seek(start)
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _create(self, path: Path, body: bytes) -> CreateOutcome:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists():
            return Exists()  # only saves the work; `link` is the judge
        file = self._open_temporary()
        try:
            self._fill(file, path, body)
            try:
                os.link(file.name, path)
            except FileExistsError:
                return Exists()
            try:
                disk.sync_directory(path.parent)
            except OSError as error:
                return Unknown(error)
            return Created()
        finally:
            disk.discard(file)

    def _put(self, path: Path, body: bytes) -> None:
        file = self._open_temporary()
        try:
            file.write(body)
            self._publish(file, path)
        finally:
            disk.discard(file)

    def _publish(self, file: BinaryIO, path: Path) -> None:
        self._fill(file, path)
        Path(file.name).replace(path)
        disk.sync_directory(path.parent)

    def _fill(self, file: BinaryIO, path: Path, body: bytes = b"") -> None:
        """Bring the temporary file to the disk, and the directory it will go to."""
        file.write(body)
        disk.sync_file(file)
        file.close()
        self._settle(path.parent)

    def _open_temporary(self) -> BinaryIO:
        """A new temporary file. A sweeper that wrongly takes it away makes `link` or `rename` fail, no more."""
        if self._temporary not in self._settled:
            self._settle(self._temporary)
            disk.sweep(self._temporary, self._clock)
        name = f"{os.getpid()}-{self._clock.token(8).hex()}"
        try:
            return disk.open_new(self._temporary / name)
        except FileNotFoundError:
            # Somebody has removed the whole directory since.
            self._settle(self._temporary)
            return disk.open_new(self._temporary / name)

    def _settle(self, directory: Path) -> None:
        """Make `directory` exist, durably: its name, and those of its parents up to the root's."""
        if directory in self._settled and directory.is_dir():
            return
        directory.mkdir(parents=True, exist_ok=True)
        for child in (directory, *directory.parents):
            disk.sync_directory(child.parent)
            if child == self.root:
                break
        if len(self._settled) >= MAX_SETTLED:
            self._settled.clear()
        self._settled.add(directory)
