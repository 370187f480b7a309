"""The small protocol behind which every object store lies, and the three outcomes of a conditional create."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Created:
    """This very request has created the object."""


@dataclass(frozen=True, slots=True)
class Exists:
    """The store says that the key is taken. Never a proof by itself: an earlier attempt of ours may have taken
    it, or (HTTP 409) nothing may be there at all. Always read back; see `once.put_if_absent`."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Time-out, reset or server error: the create may have taken effect, may not, or may do so later."""

    cause: BaseException


CreateOutcome = Created | Exists | Unknown


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One row of a listing."""

    key: str
    size_bytes: int
    last_modified: datetime
    """When the object was written (UTC), by the clock of the store; that of no node, unless the store is a directory.
    Often in whole seconds, and where several machines are the store their clocks may differ a little."""


@runtime_checkable
class Store(Protocol):
    """An object store. Keys are relative, `/`-separated, without a leading slash.

    Every method ends within a time-out of its own. An absent object is a result (None), a store that fails is
    an exception. All methods may be cancelled; a cancelled write may still take effect, even much later.
    """

    @property
    def url(self) -> str:
        """Where this is, for people; never with credentials."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The whole object, None if there is none. Retried. Raises StoreUnavailable."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """At most `length` > 0 bytes from byte `start` >= 0; shorter, maybe empty, where the object ends before;
        None if there is no object. Retried. Raises StoreUnavailable."""
        ...

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        """Create the object if the key is free: one request, never retried, never multipart.

        Raises StoreUnavailable (transient=False) only when the store has certainly refused it (no permission,
        no bucket); everything else that fails is an `Unknown` outcome.
        """
        ...

    async def put(self, key: str, body: bytes) -> None:
        """Create or overwrite. Retried, so only for objects where a late duplicate is harmless.
        Raises StoreUnavailable."""
        ...

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Create or overwrite with bounded memory (multipart where the store has it); visible only when whole.
        Not retried. When `chunks` raises, nothing becomes visible and its exception comes out.
        Raises StoreUnavailable."""
        ...

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        """All objects whose key starts with the string `prefix` and is greater than `start_after`, sorted by key
        (by Unicode code point). Retried. Raises StoreUnavailable."""
        ...

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete; absent keys are no error. Retried. Raises StoreUnavailable."""
        ...

    async def close(self) -> None:
        """Release what is held. The store is not used afterwards."""
        ...
