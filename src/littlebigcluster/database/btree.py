"""Which b-tree each page of a database belongs to, read from the pages alone.

The format is sections 1.2, 1.6 and 1.7 of https://sqlite.org/fileformat2.html; all numbers are big-endian:

    page 1        20 bytes unused at the end of each page    40 schema cookie (4)    100 a b-tree page, from here
    b-tree page    0 kind: 2 interior, 10 leaf of an index; 5 interior, 13 leaf of a table    3 number of cells (2)
                   8 right-most child (4), on interior pages only     8 or 12 offsets of the cells (2 each)
    cell           left child (4), on interior pages only; size of the payload (varint), not on interior pages of a
                   table; rowid (varint), in tables only; the payload; first overflow page (4), if it is not all here
    overflow page  0 next page of the chain (4), 0 at its end

Tables WITHOUT ROWID are indexes here. Pages of the freelist, pointer maps and the page at 1 GiB that only carries locks
belong to no tree, and nothing in a tree leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeAlias

Read: TypeAlias = Callable[[int], bytes | memoryview]
"""The content of a page, by its number. Empty for one that is not there."""

_References: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""What a b-tree page leads to: its children, and the first overflow pages of its cells."""

_NOTHING: _References = ((), ())
_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_KINDS = (_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF)
_FILE_HEADER_BYTES = 100
_MAX_VARINT_BYTES = 9


@dataclass(frozen=True, slots=True)
class _Tree:
    nodes: dict[int, _References] = field(default_factory=dict)
    overflow: dict[int, int] = field(default_factory=dict)
    """From each page to the next of its chain."""


class Forest:
    """All b-trees of a database. What a page leads to is remembered, and read again only after it was written."""

    # Invariant: owner[page] = root  <=>  page is in _trees[root].nodes or .overflow.

    def __init__(self) -> None:
        self._trees: dict[int, _Tree] = {}
        self.owner: dict[int, int] = {}
        """From each page of a tree to the root of the tree."""

    def update(self, roots: Collection[int], written: Collection[int], read: Read) -> None:
        """Look at the database as it is now: its trees have these roots, and none but the pages `written` have changed.

        Costs one look at each of these, and a walk over what is remembered of the trees of which the shape changed.
        A page that is not what leads to it says (the database is damaged) leads nowhere.
        """
        usable = len(first := read(1)) - first[20]
        gone = [root for root in self._trees if root not in roots]
        changed = {root for page in written if (root := self.owner.get(page)) is not None and root not in gone}
        stale = [root for root in changed if self._has_other_shape(root, written, read, usable)]
        former = {root: self._trees.pop(root) for root in (*gone, *stale)}
        for tree in former.values():
            for page in (*tree.nodes, *tree.overflow):
                del self.owner[page]
        for root in roots:
            if root not in self._trees:
                self._walk(root, former.get(root, _Tree()), frozenset(written), read, usable)

    def _has_other_shape(self, root: int, written: Collection[int], read: Read, usable: int) -> bool:
        tree = self._trees[root]
        for page in written:
            if page in tree.nodes and _references(page, read(page), usable) != tree.nodes[page]:
                return True
            if page in tree.overflow and _next(read(page)) != tree.overflow[page]:
                return True
        return False

    def _walk(self, root: int, former: _Tree, written: frozenset[int], read: Read, usable: int) -> None:
        tree = self._trees[root] = _Tree()
        rest, chains = [root], list[int]()
        while rest:
            page = rest.pop()
            if page in self.owner or not page:
                continue
            self.owner[page] = root
            known = former.nodes.get(page) if page not in written else None
            children, overflow = tree.nodes[page] = known or _references(page, read(page), usable)
            rest += reversed(children)  # so that pages are read about in the order of the file
            chains += overflow
        for page in chains:
            while page and page not in self.owner:
                self.owner[page] = root
                following = former.overflow.get(page) if page not in written else None
                tree.overflow[page] = _next(read(page)) if following is None else following
                page = tree.overflow[page]


def schema_cookie(first: bytes | memoryview) -> int:
    """From page 1: it is another one after each change of the schema."""
    return int.from_bytes(first[40:44], "big")


def _next(page: bytes | memoryview) -> int:
    return int.from_bytes(page[:4], "big")


def _references(number: int, page: bytes | memoryview, usable: int) -> _References:
    try:
        return _parse(page, _FILE_HEADER_BYTES if number == 1 else 0, usable)
    except IndexError:
        return _NOTHING


def _parse(page: bytes | memoryview, start: int, usable: int) -> _References:
    kind, count = page[start], int.from_bytes(page[start + 3 : start + 5], "big")
    if kind not in _KINDS:
        return _NOTHING
    interior = kind in (_INDEX_INTERIOR, _TABLE_INTERIOR)
    first = start + (12 if interior else 8)
    cells = [page[at] << 8 | page[at + 1] for at in range(first, first + 2 * count, 2)]
    children: list[int] = []
    if interior:
        children = [int.from_bytes(page[at : at + 4], "big") for at in cells]
        children.append(int.from_bytes(page[start + 8 : start + 12], "big"))
        if kind == _TABLE_INTERIOR:
            return tuple(children), ()
        cells = [at + 4 for at in cells]
    overflow: list[int] = []
    # Section 1.6: of a payload P of more than X bytes, K stay in the cell if K <= X, else M.
    most = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
    least = (usable - 12) * 32 // 255 - 23
    for at in cells:
        size = page[at]
        if size < 0x80 and size <= most:  # most cells of most pages
            continue
        size, at = _varint(page, at)
        if size > most:
            if kind == _TABLE_LEAF:
                _, at = _varint(page, at)
            local = least + (size - least) % (usable - 4)
            at += local if local <= most else least
            overflow.append(int.from_bytes(page[at : at + 4], "big"))
    return (tuple(children), tuple(overflow)) if children or overflow else _NOTHING


def _varint(page: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends: 7 bits a byte while the highest bit is set, and 8 of a ninth byte."""
    value = 0
    for last in range(at, at + _MAX_VARINT_BYTES - 1):
        byte = page[last]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, last + 1
    return value << 8 | page[at + 8], at + 9
