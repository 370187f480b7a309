"""The WAL format: only the very file that SQLite would write is accepted."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from sqlite_files import Leader

from littlebigcluster.database.wal import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    Wal,
    WalError,
    parse,
    rechain,
    squash,
    to_wal,
)

SALT = b"saltsalt"


@pytest.fixture(params=[512, 4096, 65536])
def leader(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Leader]:
    leader = Leader(tmp_path / "leader.db", page_size=request.param)
    yield leader
    leader.close()


def make(pages: dict[int, bytes], size: int, *, page_size: int = 512, big_endian: bool = False) -> bytes:
    filled = ((number, content.ljust(page_size, b".")) for number, content in pages.items())
    return to_wal(filled, page_size=page_size, database_pages=size, salt=SALT, big_endian=big_endian)


def pages(wal: Wal) -> dict[int, bytes]:
    return {number: bytes(wal.page(index)) for index, number in enumerate(wal.page_numbers)}


def test_what_sqlite_writes_is_parsed(leader: Leader) -> None:
    leader.execute("INSERT INTO t(b) VALUES (randomblob(100000))")
    raw = leader.raw()
    wal = parse(raw, page_size=leader.page_size)
    assert leader.take().raw == raw
    content = leader.path.read_bytes()
    assert wal.database_pages * wal.page_size == len(content)
    for number, page in pages(wal).items():
        assert content[(number - 1) * wal.page_size : number * wal.page_size] == page


@pytest.mark.parametrize("big_endian", [False, True])
def test_sqlite_reads_what_is_made_here(leader: Leader, tmp_path: Path, big_endian: bool) -> None:
    leader.execute("INSERT INTO t VALUES (1, 'x')")
    wal = leader.take()
    copy = tmp_path / "copy.db"
    Leader(copy, page_size=wal.page_size).close()
    made = to_wal(
        pages(wal).items(), page_size=wal.page_size, database_pages=wal.database_pages, salt=SALT, big_endian=big_endian
    )
    Path(f"{copy}-wal").write_bytes(made)
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT * FROM t").fetchall() == [(1, "x")]
    connection.close()


def test_every_flipped_bit_is_noticed_and_located() -> None:
    for big_endian in (False, True):
        raw = make({3: b"three", 1: b"one", 2: b"two"}, 3, big_endian=big_endian)
        for bit in range(len(raw) * 8):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(WalError) as caught:
                parse(damaged)
            frame, within = divmod(bit // 8 - HEADER_BYTES, FRAME_HEADER_BYTES + 512)
            if frame >= 0 and within >= 16:
                assert caught.value.offset == HEADER_BYTES + frame * (FRAME_HEADER_BYTES + 512) + 16


def test_every_truncation_is_noticed() -> None:
    raw = make({1: b"one", 2: b"two"}, 2)
    for length in range(len(raw)):
        with pytest.raises(WalError):
            parse(raw[:length])
    with pytest.raises(WalError, match=rf"byte {len(raw) + 1}: expected a whole number"):
        parse(raw + b"x")


def test_a_wal_without_frames_is_refused() -> None:
    with pytest.raises(WalError, match="at least one"):
        parse(make({1: b""}, 1)[:HEADER_BYTES])


def test_another_page_size_is_refused() -> None:
    with pytest.raises(WalError, match="byte 8: expected page size 4096"):
        parse(make({1: b""}, 1), page_size=4096)


@pytest.mark.parametrize(
    ("numbers", "size", "offset", "expected"),
    [
        ([1, 2, 1], 2, HEADER_BYTES + 2 * 536, "each page once"),
        ([1, 3], 2, HEADER_BYTES + 536, "a page number from 1 to 2"),
        ([0, 1], 2, HEADER_BYTES, "a page number from 1 to 2"),
        ([1, 2], 0, HEADER_BYTES + 536 + 4, "exactly one transaction"),
    ],
)
def test_wrong_frames_are_refused(numbers: list[int], size: int, offset: int, expected: str) -> None:
    raw = to_wal(((number, bytes(512)) for number in numbers), page_size=512, database_pages=size, salt=SALT)
    with pytest.raises(WalError, match=expected) as caught:
        parse(raw)
    assert caught.value.offset == offset


def test_two_transactions_are_refused(leader: Leader) -> None:
    leader.execute("INSERT INTO t VALUES (1, 'x')")
    leader.execute("INSERT INTO t VALUES (2, 'x')")
    with pytest.raises(WalError, match="exactly one transaction"):
        parse(leader.raw())


def test_frames_of_another_wal_are_refused() -> None:
    first = make({1: b"one"}, 0)
    other = to_wal([(2, bytes(512))], page_size=512, database_pages=2, salt=b"pepper..")
    with pytest.raises(WalError, match="the header's salt") as caught:
        parse(first + other[HEADER_BYTES:])
    assert caught.value.offset == len(first) + 8


def test_squash_keeps_last_images_and_the_final_size(leader: Leader) -> None:
    leader.execute("INSERT INTO t(b) VALUES (randomblob(300000))")
    leader.execute("DELETE FROM t")
    leader.execute("INSERT INTO t VALUES (5, 'last')")
    leader.execute("VACUUM")
    before = leader.raw()
    wal = leader.take()
    content = leader.path.read_bytes()
    assert wal.frames < (len(before) - HEADER_BYTES) / (FRAME_HEADER_BYTES + leader.page_size)
    assert wal.database_pages * wal.page_size == len(content)
    assert max(wal.page_numbers) <= wal.database_pages
    for number, page in pages(wal).items():
        assert content[(number - 1) * wal.page_size : number * wal.page_size] == page


def test_squash_repairs_salts_and_checksums_that_sqlite_left_out() -> None:
    raw = make({1: b"one", 2: b"two", 3: b"three"}, 3)
    damaged = bytearray(raw)
    damaged[HEADER_BYTES + 536 + 8 : HEADER_BYTES + 536 + 24] = bytes(16)
    assert squash(damaged) == raw


def test_squash_of_an_uncommitted_tail_is_refused() -> None:
    with pytest.raises(WalError, match="a commit frame at the end"):
        squash(make({1: b"one"}, 0))


def test_a_page_of_another_size_cannot_be_put_into_a_wal() -> None:
    with pytest.raises(ValueError, match="page 1 has 3 bytes"):
        to_wal([(1, b"abc")], page_size=512, database_pages=1, salt=SALT)
    with pytest.raises(ValueError, match="at least one page"):
        to_wal([], page_size=512, database_pages=1, salt=SALT)


@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
@pytest.mark.parametrize("big_endian", [False, True])
def test_checksums_are_those_of_the_loop_in_sqlites_documentation(page_size: int, big_endian: bool) -> None:
    random = Random(page_size)
    contents = [(number, random.randbytes(page_size)) for number in (7, 1, 3)]
    raw = to_wal(contents, page_size=page_size, database_pages=9, salt=SALT, big_endian=big_endian)
    s0 = s1 = 0

    def go_on(data: bytes) -> tuple[int, int]:
        nonlocal s0, s1
        words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
        for i in range(0, len(words), 2):
            s0 = (s0 + words[i] + s1) & 0xFFFFFFFF
            s1 = (s1 + words[i + 1] + s0) & 0xFFFFFFFF
        return s0, s1

    assert struct.unpack(">II", raw[24:32]) == go_on(raw[:24])
    for frame in range(3):
        at = HEADER_BYTES + frame * (FRAME_HEADER_BYTES + page_size)
        go_on(raw[at : at + 8])
        expected = go_on(raw[at + FRAME_HEADER_BYTES : at + FRAME_HEADER_BYTES + page_size])
        assert struct.unpack(">II", raw[at + 16 : at + 24]) == expected
    assert parse(raw).checksum == expected


@pytest.mark.parametrize("from_big", [False, True])
@pytest.mark.parametrize("to_big", [False, True])
def test_frames_can_go_on_behind_another_transaction(from_big: bool, to_big: bool) -> None:
    live = make({1: b"one", 2: b"two"}, 0, big_endian=to_big)
    start = struct.unpack(">II", live[-512 - 8 : -512])
    wal = parse(to_wal([(3, bytes(512))], page_size=512, database_pages=3, salt=b"pepper..", big_endian=from_big))
    frames, checksum = rechain(wal, salt=SALT, start=(start[0], start[1]), big_endian=to_big)
    both = parse(live + frames)
    assert both.page_numbers == [1, 2, 3]
    assert both.checksum == checksum
