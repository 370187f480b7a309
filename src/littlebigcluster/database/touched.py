"""Which tables an epoch touches: those to which its pages belong, before it or after it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from functools import lru_cache

from littlebigcluster.database.btree import Forest, schema_cookie
from littlebigcluster.database.pages import PageSource
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.tables import SchemaObject, schema, trees
from littlebigcluster.database.wal import Wal

SCHEMA = "(schema)"
"""Stands among the tables when a table, index, view or trigger was created, altered or dropped."""

_BLOCK_BYTES = 1 << 18
_BLOCKS = 64


class Touched:
    """Goes along with a replica from one epoch to the next. All methods block."""

    # Invariant: all fields are as of the last epoch that was told of.

    def __init__(self, replica: Replica) -> None:
        """Reads the whole database once. Raises sqlite3.Error, OSError."""
        self._replica = replica
        self._forest = Forest()
        self._cookie = -1
        self._trees: dict[int, str] = {}
        self._schema: list[SchemaObject] = []
        self._update(())

    def after(self, wal: Wal) -> tuple[str, ...]:
        """The tables that `wal` touches, which the replica has just applied, and nothing after it; by name, SCHEMA
        first. Indexes count as their table. What is the library's own, or SQLite's, is left out.

        A table that was created, altered or dropped is among them, also when none of its pages was written. Raises
        sqlite3.Error, OSError.
        """
        former = set(self._schema)
        found = self._owners(wal.page_numbers)
        self._update(wal.page_numbers)
        found |= self._owners(wal.page_numbers)
        changed = former.symmetric_difference(self._schema)
        found |= {each.table for each in changed if each.type in ("table", "index")}
        return ((SCHEMA,) if changed else ()) + tuple(sorted(found - {""}))

    def _owners(self, pages: Collection[int]) -> set[str]:
        owner = self._forest.owner
        return {self._trees[owner[page]] for page in pages if page in owner}

    def _update(self, written: Collection[int]) -> None:
        with self._replica.pages() as source:
            read = _Reader(source)
            cookie = schema_cookie(read(1))
            if cookie != self._cookie:
                with closing(self._replica.connect()) as connection:
                    connection.text_factory = _text
                    self._trees, self._schema = trees(connection), schema(connection)
                self._cookie = cookie
            self._forest.update(self._trees, written, read)


class _Reader:
    """Reads blocks of pages: most of what is asked for lies side by side."""

    def __init__(self, source: PageSource) -> None:
        self._source = source
        self._step = max(1, _BLOCK_BYTES // source.page_size)
        self._block = lru_cache(_BLOCKS)(self._read_block)

    def __call__(self, number: int) -> memoryview:
        if not 1 <= number <= self._source.page_count:
            return memoryview(b"")
        block, at = divmod(number - 1, self._step)
        size = self._source.page_size
        return memoryview(self._block(block))[at * size : (at + 1) * size]

    def _read_block(self, block: int) -> bytes:
        first = block * self._step + 1
        return self._source.read(first, min(self._step, self._source.page_count + 1 - first))


def _text(raw: bytes) -> str:
    """Names are for people."""
    return raw.decode("utf-8", "replace")
