"""Object stores of the cloud, and of memory, through the `obstore` library (one request each, no retries of its
own: it would report the success of its own first attempt as a conflict)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable

from .base import Created, CreateOutcome, Exists, ObjectInfo, Unknown
from .failures import FAILURES, MissingObject, OutOfRange, translated
from .keys import check_body, check_range, checked, is_key
from .retry import allowed_seconds, retried

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore as Client

T = TypeVar("T")
Listing = list[ObjectInfo]

PART_BYTES = 8 << 20
"""Size of a part of a multipart upload: 10,000 parts of it make 78 GiB."""

PARTS_AT_ONCE = 4
LIST_CHUNK = 1000
DELETE_BATCH = 256
"""Azure's limit for one request; S3 would take 1,000."""


class ObjectStore:
    """The `Store` over an obstore client that never retries (`open_store` sees to that)."""

    def __init__(
        self, client: Client, prefix: str = "", *, url: str, timeout_seconds: float = 10.0, clock: Clock
    ) -> None:
        self._client = client
        self._inside = checked(prefix) + "/" if prefix else ""
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    def __repr__(self) -> str:
        return f"ObjectStore({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    async def get(self, key: str) -> bytes | None:
        path = self._path(key)
        return await self._retried(lambda: self._get(path))

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        check_range(start, length)
        path = self._path(key)
        return await self._retried(lambda: self._get_range(path, start, length), length)

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        check_body(body)
        path = self._path(key)
        request = obstore.put_async(self._client, path, body, mode="create", use_multipart=False)
        try:
            await self._timed(f"create {path}", request, len(body))
        except (AlreadyExistsError, PreconditionError):
            return Exists()
        except StoreUnavailable as error:
            if not error.transient:
                raise
            return Unknown(error)
        return Created()

    async def put(self, key: str, body: bytes) -> None:
        check_body(body)
        path = self._path(key)

        async def request() -> None:
            sent = obstore.put_async(self._client, path, body, use_multipart=False)
            await self._timed(f"write {path}", sent, len(body))

        await self._retried(request, len(body))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._path(key)
        head, ended = await _first_part(chunks)
        if ended:
            request = obstore.put_async(self._client, path, head, use_multipart=False)
            await self._timed(f"write {path}", request, len(head))
        else:
            await self._put_parts(path, head, chunks)

    async def list(self, prefix: str, start_after: str = "") -> Listing:
        return await self._retried(lambda: self._list(prefix, start_after))

    async def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        if paths:
            await self._retried(lambda: self._delete(paths))

    async def close(self) -> None:
        """Nothing is held: obstore's connections go with the client."""

    def _path(self, key: str) -> str:
        return self._inside + checked(key)

    async def _retried(self, request: Callable[[], Awaitable[T]], size_bytes: int = 0) -> T:
        deadline_seconds = 2 * allowed_seconds(self._timeout_seconds, size_bytes)
        return await retried(request, clock=self._clock, deadline_seconds=deadline_seconds)

    async def _timed(self, what: str, request: Awaitable[T], size_bytes: int = 0) -> T:
        """The result of one request. Conflicts come out as they are, all else as `translated` says."""
        seconds = allowed_seconds(self._timeout_seconds, size_bytes)
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError as error:
            raise StoreUnavailable(f"cannot {what} at {self._url}: no answer in {seconds:.1f} s") from error
        except (AlreadyExistsError, PreconditionError):
            raise
        except FAILURES as error:
            raise translated(what, self._url, error) from None

    async def _put_parts(self, path: str, head: bytes, chunks: AsyncIterator[bytes]) -> None:
        """A multipart upload, with a time-out on its progress: the time `chunks` takes does not count."""
        step_seconds = allowed_seconds(self._timeout_seconds, (PARTS_AT_ONCE + 1) * PART_BYTES)
        what = f"write {path}"
        async with _Parts(head, chunks, step_seconds) as parts:
            try:
                async with parts.timeout:
                    await obstore.put_async(
                        self._client, path, parts, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
                    )
            except Exception as error:
                if parts.failure:
                    raise parts.failure from None
                if isinstance(error, TimeoutError):
                    message = f"cannot {what} at {self._url}: no progress in {step_seconds:.1f} s"
                    raise StoreUnavailable(message) from error
                if isinstance(error, FAILURES):
                    raise translated(what, self._url, error) from None
                raise

    async def _get(self, path: str) -> bytes | None:
        what = f"read {path}"
        try:
            result = await self._timed(what, obstore.get_async(self._client, path))
            return bytes(await self._timed(what, result.bytes_async(), result.meta["size"]))
        except MissingObject:
            return None

    async def _get_range(self, path: str, start: int, length: int) -> bytes | None:
        what = f"read {path}"
        options: GetOptions = {"range": (start, start + length)}
        try:
            result = await self._timed(what, obstore.get_async(self._client, path, options=options))
            return bytes(await self._timed(what, result.bytes_async(), length))
        except MissingObject:
            return None
        except OutOfRange:
            return b""

    async def _list(self, prefix: str, start_after: str) -> Listing:
        """Some stores ignore the offset or the order, and obstore's prefix means whole segments: so filter all."""
        whole = self._inside + prefix
        directory = whole.rpartition("/")[0]
        offset = self._inside + start_after if start_after else None
        stream = obstore.list(self._client, directory or None, offset=offset, chunk_size=LIST_CHUNK)
        found: Listing = []
        what = f"list {whole}*"
        while (chunk := await self._timed(what, _next(stream))) is not None:
            for meta in chunk:
                key = meta["path"].removeprefix(self._inside)
                if meta["path"].startswith(whole) and key > start_after and is_key(key):
                    found.append(ObjectInfo(key, meta["size"], meta["last_modified"]))
        return sorted(found, key=attrgetter("key"))

    async def _delete(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), DELETE_BATCH):
            batch = paths[start : start + DELETE_BATCH]
            try:
                await self._timed(f"delete {len(batch)} objects", obstore.delete_async(self._client, batch))
            except MissingObject:
                # Some stores stop at an absent key: then one by one.
                for path in batch:
                    with contextlib.suppress(MissingObject):
                        await self._timed(f"delete {path}", obstore.delete_async(self._client, path))


async def _next(stream: Any) -> Any:
    return await anext(stream, None)


async def _first_part(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """What a plain PUT can take, and whether that is all."""
    head = bytearray()
    async for chunk in chunks:
        check_body(chunk)
        head += chunk
        if len(head) >= PART_BYTES:
            return bytes(head), False
    return bytes(head), True


class _Parts(AsyncIterator[bytes]):
    """What obstore uploads: `head` and then `chunks`. While it waits for these, the time-out rests.

    obstore gives up in the middle when it is cancelled: it drops what `__anext__` has returned before awaiting it (so
    that is no coroutine, and this no generator, which Python would report as forgotten), or lets it run on. `async
    with` ends that, so that nobody is in `chunks` any more when the upload is over.
    """

    def __init__(self, head: bytes, chunks: AsyncIterator[bytes], step_seconds: float) -> None:
        self._head = head
        self._chunks = chunks
        self._step_seconds = step_seconds
        self._waiting: asyncio.Task[Any] | None = None
        self._over = False
        self._now = asyncio.get_running_loop().time
        self.timeout = asyncio.timeout(step_seconds)
        self.failure: Exception | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.cancel()
            await asyncio.wait([self._waiting])

    def __anext__(self) -> Awaitable[bytes]:
        return _Awaitable(self._next)

    async def _next(self) -> bytes:
        if self._ended():
            raise asyncio.CancelledError
        if self._head:
            head, self._head = self._head, b""
            return head
        self._waiting = asyncio.current_task()
        self.timeout.reschedule(None)
        try:
            chunk = await anext(self._chunks)
            check_body(chunk)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.failure = error
            raise
        finally:
            if not self._ended():
                self.timeout.reschedule(self._now() + self._step_seconds)
        return chunk

    def _ended(self) -> bool:
        return self._over or self.timeout.expired()


class _Awaitable(Awaitable[bytes]):
    def __init__(self, begin: Callable[[], Awaitable[bytes]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, Any, bytes]:
        return self._begin().__await__()
