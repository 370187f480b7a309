"""Which tree each page belongs to, through random histories, compared with what SQLite says where it can (`dbstat`);
and every page of the file is accounted for exactly once."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from history import PAGE_SIZES, History, create_database
from sqlite_files import Leader

from littlebigcluster.clock import Clock
from littlebigcluster.database.btree import Forest, Read, _varint
from littlebigcluster.database.checksum import lock_page
from littlebigcluster.database.primary import Primary
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.touched import Touched
from littlebigcluster.database.wal import parse

MAX_EPOCH_BYTES = 16 << 20


@pytest.mark.parametrize("part", range(3))
def test_every_page_is_in_its_tree_after_any_history(part: int, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(part * 10, part * 10 + 6):
        directory = tmp_path / str(seed)
        directory.mkdir()
        try:
            live(directory, Random(seed), counts)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert counts["checked"] > 40


def live(directory: Path, random: Random, counts: Counter[str]) -> None:
    create_database(str(directory / "replica.db"), random)
    clock = Clock()
    replica = Replica.open(directory / "replica.db", clock=clock)
    with replica.pages() as pages:
        primary = Primary.create(directory / "primary.db", pages, clock=clock, max_epoch_bytes=MAX_EPOCH_BYTES)
    history = History(random, counts)
    touched = Touched(replica)
    with closing(replica.connect()) as db:
        rows = contents(db)
        for epoch in range(random.randrange(15, 25)):
            history.batch(primary)
            primary.system(epoch=epoch)
            if (raw := primary.take()) is None:
                continue
            wal = parse(raw)
            replica.apply(wal, expected_checksum=None)
            found = touched.after(wal)
            check(touched._forest, replica, db)
            before, rows = rows, contents(db)
            changed = {name for name in before.keys() | rows.keys() if before.get(name) != rows.get(name)}
            assert changed <= set(found)
            counts["checked"] += 1
    primary.discard()
    replica.close()


def contents(db: sqlite3.Connection) -> dict[str, int]:
    """By table, without the library's own and those in which virtual tables keep what they hold."""
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {
        name: hash(tuple(db.execute(f"SELECT * FROM {name}")))
        for name in tables
        if not name.startswith(("_lbc", "sqlite_", "ft_", "rt_")) and not (name.startswith("v") and "_" in name)
    }


def check(forest: Forest, replica: Replica, db: sqlite3.Connection) -> None:
    roots = dict(db.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage"))
    roots["sqlite_schema"] = 1
    try:
        pages = dict(db.execute("SELECT pageno, name FROM dbstat"))
    except sqlite3.OperationalError:  # not in this SQLite
        pass
    else:
        assert forest.owner == {page: roots[name] for page, name in pages.items()}
    assert set(forest.owner.values()) == set(roots.values())
    with replica.pages() as source:
        others = list(outside(lambda number: source.read(number, 1), source.page_size, source.page_count))
        assert sorted([*forest.owner, *others]) == list(range(1, source.page_count + 1))


def outside(read: Read, page_size: int, count: int) -> Iterator[int]:
    """The pages of the freelist, pointer maps, and the page for locks: sections 1.5, 1.8 and 1.3 of the format."""
    first = read(1)
    if lock_page(page_size) <= count:
        yield lock_page(page_size)
    if number(first, 52):
        yield from range(2, count + 1, (page_size - first[20]) // 5 + 1)
    trunk = number(first, 32)
    while trunk:
        yield trunk
        page = read(trunk)
        yield from (number(page, 8 + 4 * leaf) for leaf in range(number(page, 4)))
        trunk = number(page, 0)


def number(page: bytes | memoryview, at: int) -> int:
    return int.from_bytes(page[at : at + 4], "big")


@pytest.mark.parametrize("page_size", sorted(set(PAGE_SIZES)))
@pytest.mark.parametrize("sizes", ["at every edge", "long"])
def test_payloads_around_the_size_of_a_page_are_followed(page_size: int, sizes: str, tmp_path: Path) -> None:
    leader = Leader(tmp_path / "leader.db", page_size=page_size, schema="CREATE TABLE t(a PRIMARY KEY) WITHOUT ROWID")
    leader.execute("CREATE TABLE u(b)")
    edges = (page_size - 35, (page_size - 12) * 64 // 255 - 23, (page_size - 12) * 32 // 255 - 23, 2 * page_size)
    lengths = [edge + by for edge in edges for by in range(-8, 9)] if sizes == "at every edge" else [300_000, 5]
    for place, length in enumerate(lengths):
        content = place.to_bytes(2, "big") + bytes(max(0, length - 2))
        leader.execute("INSERT INTO t VALUES (?)", content)
        leader.execute("INSERT INTO u VALUES (?)", content)
    leader.take()
    replica = Replica.open(leader.path, clock=Clock())
    with closing(replica.connect()) as db:
        check(Touched(replica)._forest, replica, db)
    replica.close()
    leader.close()


def test_numbers_of_any_length_are_read() -> None:
    for size, expected in [(b"\x7f", 127), (b"\x81\x00", 128), (b"\xff" * 9, (1 << 64) - 1), (b"\x82\x80\x01", 32769)]:
        assert _varint(b"x" + size + b"rest", 1) == (expected, 1 + len(size))


def test_damaged_pages_lead_nowhere() -> None:
    random = Random(5)
    for _ in range(300):
        pages = {page: random.randbytes(512) for page in range(1, 9)}
        for page in pages:
            start = 100 if page == 1 else 0
            kind = random.choice((2, 5, 10, 13))
            pages[page] = pages[page][:start] + bytes((kind, 0, 0, 0, random.randrange(9))) + pages[page][start + 5 :]
        pages[2] = pages[2][:8] + (2).to_bytes(4, "big") + pages[2][12:]  # its own child
        forest = Forest()
        forest.update([1, 2], (), lambda page, pages=pages: pages.get(page, b""))  # type: ignore[misc]
        assert forest.owner[2] in (1, 2)
