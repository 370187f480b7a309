"""Objects of the log: what goes in comes out, and nothing damaged does."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from littlebigcluster import CorruptLog, FormatTooNew
from littlebigcluster.epochs import Leader, Metadata, codec, names
from littlebigcluster.epochs.codec import Compressor, compress, decode, decode_header, encode_header

RAW = b"".join(bytes([n % 251]) * 37 for n in range(500))
LEADER = Leader(UUID("0192671a-1830-77f0-98d6-66847b348915"), "10.0.0.1:4000", "AZ0")


def make(raw: bytes = RAW, compression: str = "zstd", **changes: object) -> bytes:
    compressor = Compressor(compression)  # type: ignore[arg-type]
    stored = b"".join(compressor.feed([raw]))
    metadata = Metadata(
        kind="wal", cluster_id="lol", epoch=7, term=3, leader=LEADER,
        created_at=datetime(2026, 11, 22, 10, tzinfo=UTC), nonce="ab" * 16, transactions=2, pages=4,
        page_size=4096, database_pages=9, raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256, stored_xxh3=compressor.stored_xxh3, previous_sha256="cd" * 32,
        state_checksum="0123456789abcdef", min_sqlite_version="3.35.0", compression=compression,  # type: ignore[arg-type]
    )  # fmt: skip
    return encode_header(replace(metadata, **changes)) + stored  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("raw", [b"", b"x", RAW, RAW * 300], ids=["empty", "one", "small", "large"])
def test_an_object_comes_back_as_it_was(raw: bytes, compression: str) -> None:
    body = make(raw, compression)
    entry = decode(body, name="n")
    assert entry.raw == raw
    assert entry.metadata.leader == LEADER
    assert entry.metadata.epoch == 7
    assert entry.sha256 == hashlib.sha256(body).hexdigest()
    assert entry.size_bytes == len(body)


def test_the_metadata_is_found_in_the_first_bytes() -> None:
    metadata, start = decode_header(make()[:2048], name="n")
    assert (metadata.transactions, metadata.created_at.year) == (2, 2026)
    assert make()[start : start + 4] == codec.ZSTD_MAGIC


def test_the_zstd_tool_reads_an_object(tmp_path: Path) -> None:
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("the zstd tool is not installed; the library's own decoder is tested elsewhere")
    path = tmp_path / "1.wal"
    path.write_bytes(make())
    assert subprocess.run([tool, "-dc", path], capture_output=True, check=True).stdout == RAW


def test_the_one_shot_decoder_passes_over_the_metadata() -> None:
    assert codec.zstd.decompress(make()) == RAW


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_flipped_bit_is_noticed(compression: str) -> None:
    body = make(RAW[:600], compression)
    for position in range(len(body) * 8):
        damaged = bytearray(body)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises((CorruptLog, FormatTooNew)) as caught:
            decode(bytes(damaged), name="the-object")
        assert "the-object" in str(caught.value), position


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_truncation_and_any_tail_is_noticed(compression: str) -> None:
    body = make(RAW[:600], compression)
    for end in range(len(body)):
        with pytest.raises(CorruptLog):
            decode(body[:end], name="n")
    for tail in (b"x", body, codec.compress(b"more", "zstd")):
        with pytest.raises(CorruptLog):
            decode(body + tail, name="n")


def test_random_bytes_are_refused() -> None:
    rng = random.Random(1)
    for size in (0, 1, 7, 8, 9, 100, 5000):
        with pytest.raises(CorruptLog):
            decode(rng.randbytes(size), name="n")


def test_a_bomb_is_stopped_at_the_promised_size() -> None:
    bomb = compress(bytes(1 << 30), "zstd")
    header = make(b"", "zstd", raw_size_bytes=1000, stored_xxh3="0" * 16)
    _, start = decode_header(header, name="n")
    with pytest.raises(CorruptLog, match="found more"):
        decode(header[:start] + bomb, name="n")


def test_a_newer_format_says_upgrade() -> None:
    with pytest.raises(FormatTooNew, match="upgrade"):
        decode(make(format_version=2), name="n")


def test_an_object_without_compression_holds_the_raw_bytes() -> None:
    body = make(compression="none")
    _, start = decode_header(body, name="n")
    assert body[start:] == RAW


def test_names_are_twenty_digits_and_parse_back() -> None:
    assert names.wal(1) == ".lbc/00000000000000000001.wal"
    assert names.snapshot(20) == ".lbc/00000000000000000020.db"
    assert names.parse(names.wal(123)) == ("wal", 123)
    assert names.parse(names.snapshot(0)) == ("db", 0)
    for other in (".lbc/cluster.json", ".lbc/1.wal", "x/" + names.wal(1), names.wal(1) + "x", ".lbc/ca/" + "0" * 20):
        assert names.parse(other) is None
    for wrong in (-1, 10**19):
        with pytest.raises(ValueError):
            names.wal(wrong)


def test_merged_epochs_have_names_of_their_own_which_stand_where_the_first_one_begins() -> None:
    assert names.merged(65, 128) == ".lbc/00000000000000000065-00000000000000000128.wal"
    assert names.parse_merged(names.merged(65, 128)) == (65, 128)
    assert names.parse(names.merged(65, 128)) is None
    in_order = [names.wal(64), names.merged(65, 128), names.snapshot(65), names.wal(65), names.snapshot(66)]
    assert in_order == sorted(in_order)
    backwards = ".lbc/00000000000000000128-00000000000000000065.wal"
    for other in (names.wal(65), names.snapshot(65), names.merged(65, 128) + "x", "x/" + names.merged(1, 2), backwards):
        assert names.parse_merged(other) is None


def test_a_damaged_marker_is_no_marker() -> None:
    assert names.parse_marker(names.marker(42)) == 42
    assert names.parse_marker(names.marker(42) + b"\n") == 42
    for damaged in (None, b"", b"42", b"x" * 20, b"1" * 21):
        assert names.parse_marker(damaged) is None


def test_the_raw_content_of_an_epoch_is_a_wal_file_for_sqlite(tmp_path: Path) -> None:
    source = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    source.execute("PRAGMA journal_mode=WAL")
    source.execute("CREATE TABLE t(x)")
    source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(tmp_path / "a.db", tmp_path / "b.db")
    source.execute("INSERT INTO t VALUES (1)")
    raw = (tmp_path / "a.db-wal").read_bytes()
    source.close()
    (tmp_path / "b.db-wal").write_bytes(decode(make(raw), name="n").raw)
    copy = sqlite3.connect(tmp_path / "b.db")
    assert copy.execute("SELECT x FROM t").fetchall() == [(1,)]
    copy.close()
