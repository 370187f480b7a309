"""A part of a store as a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from .base import CreateOutcome, ObjectInfo, Store
from .keys import checked


class Scoped:
    """The `Store` of all keys below `prefix` of another. Keys that start with `forbidden` are refused with
    ValueError and never listed. `close` leaves the other store open: it belongs to somebody else."""

    def __init__(self, store: Store, prefix: str = "", *, forbidden: str | None = None) -> None:
        self._store = store
        self._inside = checked(prefix.strip("/")) + "/" if prefix.strip("/") else ""
        self._forbidden = forbidden

    def __repr__(self) -> str:
        return f"Scoped({self.url!r})"

    @property
    def url(self) -> str:
        return f"{self._store.url.rstrip('/')}/{self._inside}".rstrip("/") if self._inside else self._store.url

    async def get(self, key: str) -> bytes | None:
        return await self._store.get(self._key(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        return await self._store.get_range(self._key(key), start, length)

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        return await self._store.create(self._key(key), body)

    async def put(self, key: str, body: bytes) -> None:
        await self._store.put(self._key(key), body)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await self._store.put_stream(self._key(key), chunks)

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        offset = self._inside + start_after if start_after else ""
        found = await self._store.list(self._inside + prefix, offset)
        start = len(self._inside)
        shown = (replace(info, key=info.key[start:]) for info in found)
        return [info for info in shown if not self._is_forbidden(info.key)]

    async def delete(self, keys: Iterable[str]) -> None:
        await self._store.delete([self._key(key) for key in keys])

    async def close(self) -> None:
        """Nothing is held."""

    def _is_forbidden(self, key: str) -> bool:
        return self._forbidden is not None and (key + "/").startswith(self._forbidden)

    def _key(self, key: str) -> str:
        if self._is_forbidden(checked(key)):
            raise ValueError(f"{key!r}: {self._forbidden} holds the cluster's own data; choose another name")
        return self._inside + key
