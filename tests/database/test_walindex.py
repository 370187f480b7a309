"""The wal-index, compared with what SQLite itself writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlite_files import Leader

from littlebigcluster.database import walindex
from littlebigcluster.database.walindex import BLOCK_BYTES, WalIndexError, unpack


@pytest.mark.parametrize("page_size", [512, 65536])
@pytest.mark.parametrize("frames", [0, 1, 4062, 4063, 8158, 8159])
def test_it_is_written_as_sqlite_does(tmp_path: Path, page_size: int, frames: int) -> None:
    if page_size == 65536 and frames > 1:
        frames //= 50
    leader = Leader(tmp_path / "leader.db", page_size=page_size)
    if frames:
        leader.execute("INSERT INTO t VALUES (1, zeroblob(?))", max(0, frames - 3) * (page_size - 4))
    while leader.index.frame_count() < frames:
        leader.execute("UPDATE t SET a = a + 1")
    leader.db.execute("BEGIN IMMEDIATE")
    header = leader.index.header()
    assert header.frame_count >= frames
    assert header.page_size == page_size
    assert unpack(header.pack()) == header
    leader.index.check()
    raw = leader.raw()
    at = range(32, len(raw), 24 + page_size)
    assert leader.index.page_numbers(header.frame_count).tolist() == [int.from_bytes(raw[i : i + 4]) for i in at]
    leader.db.execute("COMMIT")
    leader.close()


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    leader = Leader(tmp_path / "leader.db")
    leader.execute("INSERT INTO t VALUES (1, 2)")
    raw = leader.index.header().pack()
    for at in (0, 8, 12, 13, 16, 20, 24, 32, 40, 47):
        damaged = bytearray(raw)
        damaged[at] ^= 2
        with pytest.raises(WalIndexError):
            unpack(bytes(damaged))
    block = leader.index._block(0)
    block[16] ^= 2
    with pytest.raises(WalIndexError, match="two copies"):
        leader.index.header()
    block[16] ^= 2
    leader.close()


def test_a_block_is_zeroed_at_its_first_use_whatever_is_there() -> None:
    clean, dirty = memoryview(bytearray(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES))
    dirty[16384:] = b"\x07" * 16384  # the hash table only: no page number tells
    for block in (clean, dirty):
        walindex._add(block, 4096, 0, [5, 6, 5])
    assert clean == dirty
