"""Logs of real epochs, written without a node, and what the database was at each of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from tests.database.history import History, create_database
from tests.epochs.logs import epoch_object, position_of

from littlebigcluster.clock import Clock
from littlebigcluster.database import Primary, StateChecksum, Wal, parse
from littlebigcluster.epochs import Identity, Position, Span, merged, names, retained, span_of, survey_all
from littlebigcluster.roles import Restored, restore, restore_at
from littlebigcluster.roles.compactor import Compactor
from littlebigcluster.settings import ClusterSettings
from littlebigcluster.store import Store, open_store
from littlebigcluster.watch import Watch

CLOCK = Clock()


class Image:
    """The bytes of a database, as a source for a primary."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()

    def chunks(self) -> Iterator[bytes]:
        yield self._data


class LongLog:
    """Random transactions of all kinds, as epochs in a store."""

    def __init__(self, directory: Path, seed: int, store: Store | None = None) -> None:
        self.store = store or open_store("memory://", clock=CLOCK)
        self.random = Random(seed)
        start = directory / f"start-{seed}.db"
        self.page_size = create_database(str(start), self.random)
        settings = ClusterSettings(page_size=self.page_size)
        self.identity = Identity("lol", datetime(2026, 11, 22, tzinfo=UTC), settings)
        self._path = directory / f"primary-{seed}.db"
        self._primary = Primary.create(self._path, Image(start), clock=CLOCK, max_epoch_bytes=8 << 20)
        self._history = History(self.random, Counter())
        self.states: list[str] = []
        """A hash of the whole database, by epoch."""
        self.positions: list[Position] = []
        self.epoch: Watch[int] = Watch(0)

    @property
    def local(self) -> Any:
        """What the loops of a leader want to know of its local copy."""
        metadata = SimpleNamespace(page_size=self.page_size)
        return SimpleNamespace(epoch=self.epoch, metadata=metadata, cluster_id="lol")

    @property
    def head(self) -> int:
        return self.epoch.value

    async def begin(self) -> LongLog:
        await self.store.put(names.CLUSTER, self.identity.encode())
        content = self._path.read_bytes()
        body = self._object(Position(-1, 0, ""), content, parse_as=None, kind="db", term=0)
        await self.store.put(names.snapshot(0), body)
        self._note(position_of(body, 0, 0), content)
        return self

    async def write(self, epochs: int) -> None:
        """Random ones."""
        for _ in range(epochs):
            self._history.batch(self._primary)
            self._primary.system(epoch=self.head + 1)
            raw = bytes(self._primary.take() or b"")
            await self.append(parse(raw))

    async def append(self, wal: Wal, content: bytes | None = None) -> None:
        """This one."""
        content = content or self._path.read_bytes()
        body = self._object(self.positions[-1], content, parse_as=wal, kind="wal", term=1)
        await self.store.put(names.wal(self.head + 1), body)
        self._note(position_of(body, self.head + 1), content)

    async def snapshot(self) -> None:
        """Of the newest epoch."""
        at = self.positions[-1]
        before = Position(at.epoch - 1, at.term, at.sha256)
        body = self._object(before, self._path.read_bytes(), parse_as=None, kind="db", term=at.term)
        await self.store.put(names.snapshot(at.epoch), body)

    def _object(self, after: Position, content: bytes, *, parse_as: Wal | None, kind: str, term: int) -> bytes:
        checksum = StateChecksum(self.page_size)
        checksum.feed(content)
        return epoch_object(
            after,
            content=content if parse_as is None else bytes(parse_as.raw),
            kind=kind,
            term=term,
            page_size=self.page_size,
            database_pages=len(content) // self.page_size,
            state_checksum=f"{checksum.value:016x}",
            created_at=self.identity.created_at + timedelta(seconds=after.epoch + 1),
        )

    def _note(self, position: Position, content: bytes) -> None:
        self.positions.append(position)
        self.states.append(hashlib.sha256(content).hexdigest())
        self.epoch._set(position.epoch)

    def compactor(self, store: Store | None = None, done: int = 0) -> Compactor:
        """What a leader runs that began to lead at epoch `done`."""
        made = Compactor(store or self.store, self.local, "zstd")
        made._done = done
        return made

    async def merged(self) -> list[Span]:
        return [span_of(info) for info in (await survey_all(self.store)).merged]

    async def restored(self, directory: Path, epoch: int | None = None, store: Store | None = None) -> str:
        """The hash of the database that is restored: of the head, or of `epoch`."""
        store = store or self.store
        if epoch is None:
            made = await restore(store, self.identity, directory, clock=CLOCK, afresh=True)
        else:
            found = await retained(store)
            made = await restore_at(store, self.identity, directory, found, epoch, clock=CLOCK)
        assert made.position == self.positions[self.head if epoch is None else epoch]
        return image_of(made)

    def close(self) -> None:
        self._primary.discard()


def image_of(restored: Restored) -> str:
    with closing(restored.replica), restored.replica.pages() as pages:
        return hashlib.sha256(b"".join(pages.chunks())).hexdigest()


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 epochs are merged, and 4 of these: 4, 16, 64."""
    monkeypatch.setattr(merged, "FANOUT", 4)
