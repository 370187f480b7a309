"""The state checksum, kept up to date, equals the one made from all pages."""

from __future__ import annotations

from random import Random

import pytest
from xxhash import xxh3_64_intdigest

from littlebigcluster.database import checksum as checksum_module
from littlebigcluster.database.checksum import LOCK_BYTE, StateChecksum, lock_page
from littlebigcluster.database.wal import parse, to_wal


def state(content: bytes, page_size: int = 512) -> StateChecksum:
    checksum = StateChecksum(page_size)
    checksum.feed(content)
    return checksum


def test_it_is_the_xor_of_the_seeded_hashes_of_all_pages() -> None:
    content = Random(1).randbytes(3 * 512)
    expected = 0
    for number in (1, 2, 3):
        expected ^= xxh3_64_intdigest(content[(number - 1) * 512 : number * 512], seed=number)
    assert state(content).value == expected


def test_two_pages_that_change_places_change_it() -> None:
    a, b = b"a" * 512, b"b" * 512
    assert state(a + b).value != state(b + a).value


def test_it_can_be_fed_in_any_chunks_of_whole_pages() -> None:
    content = Random(1).randbytes(7 * 512)
    checksum = StateChecksum(512)
    for start, end in ((0, 1), (1, 1), (1, 5), (5, 7)):
        checksum.feed(content[start * 512 : end * 512])
    assert (checksum.value, checksum.database_pages) == (state(content).value, 7)
    with pytest.raises(ValueError, match="not whole pages"):
        checksum.feed(b"x")


@pytest.mark.parametrize("lock_byte", [LOCK_BYTE, 6 * 512])
def test_it_follows_growing_and_shrinking_databases(lock_byte: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_module, "LOCK_BYTE", lock_byte)
    random = Random(lock_byte)
    pages = [random.randbytes(512) for _ in range(5)]
    checksum = state(b"".join(pages))
    for _ in range(200):
        size = random.randrange(1, 20)
        pages = pages[:size] + [bytes(512)] * (size - len(pages))
        numbers = [number for number in range(1, size + 1) if number != lock_page(512)]
        changed = random.sample(numbers, random.randrange(1, len(numbers) + 1))
        for number in changed:
            pages[number - 1] = random.randbytes(512)
        frames = ((number, pages[number - 1]) for number in changed)
        wal = parse(to_wal(frames, page_size=512, database_pages=size, salt=b"saltsalt"))
        before = checksum.value
        after = checksum.after(wal)
        assert after == state(b"".join(pages)).value
        assert checksum.value == before
        missing = checksum.unwritten(wal)
        assert all(number > checksum.database_pages and number not in changed for number in missing)
        checksum.advance(wal)
        assert (checksum.value, checksum.database_pages) == (after, size)


def test_the_lock_byte_page_is_left_out() -> None:
    assert [lock_page(size) for size in (512, 4096, 65536)] == [2097153, 262145, 16385]


def test_another_page_size_is_refused() -> None:
    wal = parse(to_wal([(1, bytes(1024))], page_size=1024, database_pages=1, salt=b"saltsalt"))
    with pytest.raises(ValueError, match="pages of 1024 bytes, a database with 512"):
        state(bytes(512)).after(wal)
