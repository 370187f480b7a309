"""One submitted write, seen by the one who waits for it, and a batch of them, seen by the one who sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from littlebigcluster.database.primary import Transaction

if TYPE_CHECKING:
    from littlebigcluster.database.writer import Writer

T = TypeVar("T")
ErrorFactory = Callable[[], Exception]


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a transaction returned, and the epoch with which it became durable."""

    value: T
    epoch: int


class Pending(Generic[T]):
    """A submitted transaction. `await` it for its `Done`, once it is durable; `peek` for its value before that.

    Awaiting raises what the function raised, also only when everything executed before it is durable: it may have
    seen rows that were not yet. Cancelling the only one who waits removes the transaction if it has not begun.
    """

    # The writer's thread sets what is executed, the event loop what is settled; each only reads the other's.
    # Invariant: settled is `_epoch` or `_failure`, never both, and stays as it is.

    __slots__ = (
        "_batch",
        "_deadline",
        "_epoch",
        "_error",
        "_executed",
        "_failure",
        "_function",
        "_key",
        "_peeking",
        "_size_bytes",
        "_value",
        "_waiting",
        "_writer",
    )

    def __init__(
        self,
        writer: Writer,
        function: Transaction[T] | None,
        deadline: float,
        key: str | None = None,
        size_bytes: int = 0,
    ) -> None:
        self._writer = writer
        self._key = key
        self._size_bytes = size_bytes
        self._function = function
        self._deadline = deadline
        self._executed = False
        self._value: T
        self._error: BaseException | None = None
        self._batch: Batch | None = None
        self._epoch: int | None = None
        self._failure: Exception | None = None
        self._waiting: list[asyncio.Future[None]] | None = None
        self._peeking: list[asyncio.Future[None]] | None = None

    @property
    def settled(self) -> bool:
        """Its outcome is known, or given up on."""
        return self._epoch is not None or self._failure is not None

    def cancel(self) -> bool:
        """Remove it if it has not begun; True if so. It is certainly not written then."""
        return self._writer._remove(self)

    def __await__(self) -> Generator[Any, None, Done[T]]:
        if not self.settled:
            if self._waiting is None:
                self._waiting = []
            yield from self._wait(self._waiting).__await__()
        if self._failure is not None:
            raise self._failure
        assert self._epoch is not None
        return Done(self._executed_value(), self._epoch)

    async def peek(self) -> T:
        """The value as soon as the function has returned, before it is durable; never tell it to anybody who may
        outlive this leader. Raises what the function raised, at once."""
        if self._peeking is None:
            self._peeking = []
        if not self._executed and not self.settled:
            await self._wait(self._peeking)
        if not self._executed and self._failure is not None:
            raise self._failure
        return self._executed_value()

    def _executed_value(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value

    async def _wait(self, waiting: list[asyncio.Future[None]]) -> None:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        # The writer's thread sets _executed first and looks for peekers then, we the other way round.
        if waiting is self._peeking and self._executed:
            return
        try:
            await future
        except asyncio.CancelledError:
            waiting.remove(future)
            if not self._waiting and not self._peeking:
                self.cancel()
            raise

    def _settle(self, *, epoch: int | None = None, failure: Exception | None = None) -> None:
        if self.settled:
            return
        self._epoch, self._failure = epoch, failure
        _wake(self._waiting)
        self._wake_peeking()

    def _wake_peeking(self) -> None:
        _wake(self._peeking)


@dataclass(eq=False)
class Batch:
    """What was executed since the batch before: the next epoch, if anything has changed."""

    raw: bytes | bytearray | None
    """A WAL file with one transaction; None if nothing has changed."""
    transactions: int
    """So many transactions have changed something."""
    epoch: int | None
    """What the stamp said, or whoever sends it: the only epoch where it can be."""
    min_sqlite_version: str
    """The oldest SQLite that can read the schema after it."""
    pendings: list[Pending[Any]] = field(repr=False)
    _writer: Writer = field(repr=False)

    def acknowledge(self, epoch: int) -> None:
        """It is durable, as is everything before it. `epoch` is its own, or the last one if it has no raw."""
        for pending in self.pendings:
            pending._settle(epoch=epoch)
        self._writer._settled(self.pendings)

    def fail(self, error_factory: ErrorFactory) -> None:
        """It is not durable, or nobody knows; each of its transactions gets an error of its own."""
        for pending in self.pendings:
            if not pending.settled:
                pending._settle(failure=error_factory())
        self._writer._settled(self.pendings)


def _wake(waiting: list[asyncio.Future[None]] | None) -> None:
    for future in waiting or ():
        if not future.done():
            future.set_result(None)
