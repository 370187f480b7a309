"""Mutants of the path of a write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from littlebigcluster.database import Batch, Primary, parse, primary
from littlebigcluster.database.wal import to_wal
from littlebigcluster.epochs import Leader, Log
from littlebigcluster.errors import Fenced
from littlebigcluster.roles.leader import Leadership
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.roles.snapshotter import Snapshotter
from tests.simulation.mutants.lives import Stormy
from tests.simulation.mutants.mutant import Mutant


def acknowledged_before_durable() -> AbstractContextManager[Any]:
    commit = Leadership._commit

    async def broken(self: Any, batch: Batch, *, leader: Leader | None) -> bool:
        if batch.raw is not None:
            batch.acknowledge(self._local.epoch.value + 1)
        return await commit(self, batch, leader=leader)

    return patch.object(Leadership, "_commit", broken)


@contextmanager
def applied_before_durable() -> Iterator[None]:
    """The leader's own copy, from which all of its readers read, goes first."""
    encode, append = Leadership._encode, Log.append
    under_way: dict[int, Any] = {}

    def encoding(self: Any, batch: Batch, leader: Leader | None) -> Any:
        wal, metadata, body = encode(self, batch, leader)
        under_way[id(self._local.log)] = self._local, wal, metadata
        return wal, metadata, body

    async def appending(self: Log, body: bytes, *, term: int) -> Any:
        local, wal, metadata = under_way.pop(id(self))
        checksum = int(metadata.state_checksum, 16)
        await local.run(lambda: local.replica.apply(wal, expected_checksum=checksum))
        return await append(self, body, term=term)

    async def apply_own(self: Any, wal: Any, metadata: Any, position: Any, size_bytes: int) -> None:
        await self._apply(lambda: None, metadata, position, size_bytes)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Leadership, "_encode", encoding))
        stack.enter_context(patch.object(Log, "append", appending))
        stack.enter_context(patch.object(LocalCopy, "apply_own", apply_own))
        yield


def fenced_leader_acknowledges() -> AbstractContextManager[Any]:
    fail = Batch.fail

    def broken(self: Any, error_factory: Callable[[], Exception]) -> None:
        if isinstance(error_factory(), Fenced):
            self.acknowledge(self.epoch)
        else:
            fail(self, error_factory)

    return patch.object(Batch, "fail", broken)


def write_is_dropped() -> AbstractContextManager[Any]:
    transaction, count = Primary.transaction, 0

    def broken(self: Any, function: Any, *, deadline: float | None = None, key: str | None = None) -> Any:
        nonlocal count
        count += key is None
        return None if key is None and count % 9 == 0 else transaction(self, function, deadline=deadline, key=key)

    return patch.object(Primary, "transaction", broken)


def page_is_dropped() -> AbstractContextManager[Any]:
    squash = primary.squash

    def broken(raw: bytes | bytearray) -> bytes | bytearray:
        squashed = squash(raw)
        wal = parse(squashed)
        if squashed is raw or wal.frames < 2:
            return squashed
        pages = [(number, bytes(wal.page(index))) for index, number in enumerate(wal.page_numbers)]
        del pages[max(range(len(pages)), key=lambda index: pages[index][0])]
        return to_wal(pages, page_size=wal.page_size, database_pages=wal.database_pages, salt=wal.salt)

    return patch.object(primary, "squash", broken)


def snapshot_of_the_next_epoch() -> AbstractContextManager[Any]:
    metadata = Snapshotter._metadata

    def broken(self: Any, image: Any, of: Any, position: Any) -> Any:
        made = metadata(self, image, of, position)
        return replace(made, epoch=made.epoch + 1)

    return patch.object(Snapshotter, "_metadata", broken)


def done_again_for_the_same_key() -> AbstractContextManager[Any]:
    def broken(self: Any, key: str, function: Any) -> Any:
        return function(self._connection)

    return patch.object(Primary, "_once", broken)


MUTANTS = [
    Mutant("acknowledged before durable", "acknowledged means durable", acknowledged_before_durable),
    Mutant("applied before durable", "no reader sees what is not durable", applied_before_durable, 5),
    Mutant("fenced, and acknowledged", "a fenced leader acknowledges nothing", fenced_leader_acknowledges, 4, Stormy),
    Mutant("write dropped", "each acknowledged write is there", write_is_dropped),
    Mutant("page dropped", "an epoch holds the last image of each page", page_is_dropped),
    Mutant("snapshot one too high", "a snapshot is the state of its epoch", snapshot_of_the_next_epoch),
    Mutant("key ignored", "a write with a key is done once", done_again_for_the_same_key, life=Stormy),
]
