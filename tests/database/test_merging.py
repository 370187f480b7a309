"""Many transactions as one lead to the same state, whatever they do to the size."""

from __future__ import annotations

from random import Random

import pytest

from littlebigcluster.database import Merging, StateChecksum, parse
from littlebigcluster.database.wal import Wal, to_wal

PAGE = 512


def wal(pages: dict[int, int], size: int) -> Wal:
    items = [(number, bytes([value]) * PAGE) for number, value in pages.items()]
    return parse(to_wal(items, page_size=PAGE, database_pages=size, salt=b"saltsalt"))


def state(pages: int) -> StateChecksum:
    checksum = StateChecksum(PAGE)
    for _ in range(pages):
        checksum.feed(b"\xff" * PAGE)
    return checksum


def merged(wals: list[Wal], salt: bytes = b"12345678") -> Wal:
    merging = Merging(wals[-1])
    for each in reversed(wals[:-1]):
        merging.add(each)
    return parse(merging.result(salt=salt))


def test_the_last_image_of_each_page_stays() -> None:
    one = merged([wal({1: 1, 2: 2, 3: 3}, 3), wal({2: 20}, 3), wal({1: 100}, 3)])
    assert {number: one.page(index)[0] for index, number in enumerate(one.page_numbers)} == {1: 100, 2: 20, 3: 3}
    assert (one.database_pages, one.salt) == (3, b"12345678")


def test_pages_past_the_final_size_are_dropped() -> None:
    assert merged([wal({1: 1, 9: 9}, 9), wal({1: 2}, 3)]).page_numbers == [1]


def test_pages_that_were_dropped_on_the_way_do_not_come_back() -> None:
    """The database shrinks and grows again; page 3 gets no frame then, and so it is zeros."""
    one = merged([wal({2: 1, 3: 3}, 4), wal({1: 2}, 2), wal({4: 4}, 4)])
    assert {number: one.page(index)[0] for index, number in enumerate(one.page_numbers)} == {1: 2, 2: 1, 3: 0, 4: 4}


def test_any_transactions_lead_to_the_same_state_as_one() -> None:
    for seed in range(300):
        random = Random(seed)
        begin, size = random.randrange(0, 9), 0
        wals = []
        for number in range(random.randrange(1, 9)):
            size = random.randrange(1, 12)
            pages = random.sample(range(1, size + 1), random.randrange(1, size + 1))
            wals.append(wal({page: (number * 20 + page) % 251 for page in pages}, size))
        expected, found = state(begin), state(begin)
        for each in wals:
            expected.advance(each)
        cut = random.randrange(1, len(wals) + 1)
        parts = [merged(wals[:cut]), *([merged(wals[cut:])] if wals[cut:] else [])]
        found.advance(merged(wals))
        assert found.value == expected.value, seed
        assert bytes(merged(parts).raw) == bytes(merged(wals).raw), f"{seed}: it matters in which steps"


def test_pages_of_another_size_are_refused() -> None:
    other = parse(to_wal([(1, bytes(1024))], page_size=1024, database_pages=1, salt=b"saltsalt"))
    with pytest.raises(ValueError, match="pages of 1024 bytes before pages of 512"):
        Merging(wal({1: 1}, 1)).add(other)
