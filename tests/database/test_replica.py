"""The replica: applying, readers beside it, checkpoints, failures, kills."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying_applier import STEPS
from sqlite_files import Leader
from test_replication_property import apply_and_die, hold

from littlebigcluster.clock import Clock
from littlebigcluster.database import replica as replica_module
from littlebigcluster.database import selfcheck, walindex
from littlebigcluster.database.checksum import StateChecksum
from littlebigcluster.database.replica import Replica, StateMismatch, write_database
from littlebigcluster.database.selfcheck import UnsuitableSqlite, check_sqlite
from littlebigcluster.database.wal import Wal, parse, to_wal


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Leader]:
    leader = Leader(tmp_path / "leader.db")
    yield leader
    leader.close()


@pytest.fixture
def path(tmp_path: Path, leader: Leader) -> Path:
    shutil.copy(leader.path, tmp_path / "replica.db")
    return tmp_path / "replica.db"


@pytest.fixture
def replica(path: Path) -> Iterator[Replica]:
    replica = Replica.open(path, clock=Clock())
    yield replica
    replica.close()


def image(replica: Replica) -> bytes:
    with replica.pages() as pages:
        return b"".join(pages.chunks())


def apply(replica: Replica, *wals: Wal) -> None:
    for wal in wals:
        replica.apply(wal, expected_checksum=None)


def test_an_epoch_is_visible_when_apply_returns(leader: Leader, replica: Replica) -> None:
    reader = replica.connect()
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, 'x')"))
    assert reader.execute("SELECT * FROM t").fetchall() == [(1, "x")]
    apply(replica, leader.epoch("CREATE TABLE u AS SELECT * FROM t"))
    assert reader.execute("SELECT * FROM u").fetchall() == [(1, "x")]
    assert image(replica) == leader.path.read_bytes()
    reader.close()


def test_a_wrong_state_checksum_is_refused_before_anything_is_touched(leader: Leader, replica: Replica) -> None:
    wal = leader.epoch("INSERT INTO t VALUES (1, 'x')")
    before = image(replica), replica.checksum, Path(f"{leader.path.parent}/replica.db-wal").stat().st_size
    with pytest.raises(StateMismatch, match="would have the state checksum"):
        replica.apply(wal, expected_checksum=replica.checksum_after(wal) ^ 1)
    assert (image(replica), replica.checksum, Path(f"{leader.path.parent}/replica.db-wal").stat().st_size) == before
    replica.apply(wal, expected_checksum=replica.checksum_after(wal))


def test_a_skipped_epoch_is_noticed(leader: Leader, replica: Replica) -> None:
    shutil.copy(leader.path, leader.path.with_name("copy.db"))
    other = Replica.open(leader.path.with_name("copy.db"), clock=Clock())
    for epoch in range(3):
        wal = leader.epoch("INSERT INTO t(b) VALUES (randomblob(9000))")
        expected = other.checksum_after(wal)
        other.apply(wal, expected_checksum=expected)
        if epoch != 1:
            if epoch:
                with pytest.raises(StateMismatch):
                    replica.apply(wal, expected_checksum=expected)
            else:
                replica.apply(wal, expected_checksum=expected)
    other.close()


def test_a_foreign_write_is_noticed(leader: Leader, path: Path, replica: Replica) -> None:
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, 'x')"))
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    apply(replica, leader.epoch("INSERT INTO t VALUES (2, 'x')"))
    foreign.execute("INSERT INTO t VALUES (3, 'foreign')")
    with pytest.raises(StateMismatch, match="somebody else has written"):
        apply(replica, leader.epoch("INSERT INTO t VALUES (4, 'x')"))
    foreign.close()


def test_readers_keep_their_snapshot_while_epochs_are_applied(
    leader: Leader, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "CHECKPOINT_FRAMES", 10)
    apply(replica, leader.epoch("INSERT INTO t VALUES (0, 'first')"))
    pinned = replica.connect()
    pinned.execute("BEGIN")
    assert pinned.execute("SELECT count(*) FROM t").fetchone() == (1,)
    fresh = replica.connect()
    for number in range(1, 60):
        apply(replica, leader.epoch("INSERT INTO t VALUES (?, randomblob(9000))", number))
        assert pinned.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert fresh.execute("SELECT count(*) FROM t").fetchone() == (number + 1,)
    pinned.execute("COMMIT")
    assert pinned.execute("SELECT count(*) FROM t").fetchone() == (60,)
    pinned.close()
    fresh.close()


def test_the_wal_is_emptied_when_it_is_large(leader: Leader, path: Path, replica: Replica) -> None:
    wal = Path(f"{path}-wal")
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, 'x')"))
    assert wal.stat().st_size > 0
    apply(replica, leader.epoch("INSERT INTO t VALUES (2, zeroblob(4500000))"))
    assert wal.stat().st_size == 0
    assert path.read_bytes() == leader.path.read_bytes()


def test_a_reader_delays_the_checkpoint_but_not_every_epoch(
    leader: Leader, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = replica._clock
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, zeroblob(10000000))"))
    apply(replica, leader.epoch("INSERT INTO t VALUES (2, 'x')"))
    pinned = replica.connect()
    pinned.execute("BEGIN")
    pinned.execute("SELECT count(*) FROM t").fetchone()
    started = clock.monotonic()
    apply(replica, leader.epoch("INSERT INTO t VALUES (3, zeroblob(10000000))"))
    waited = clock.monotonic() - started
    assert 0.35 < waited < 4.5  # and not for as long as any other lock
    small = [leader.epoch("INSERT INTO t VALUES (?, 'x')", number) for number in range(4, 40)]
    monkeypatch.setattr(replica_module, "_RETRY_SECONDS", 0.0)
    replica._checkpoint_at = 0.0
    started = clock.monotonic()
    apply(replica, *small)
    assert clock.monotonic() - started < len(small) * 0.35
    pinned.execute("COMMIT")
    replica._checkpoint_at = 0.0
    apply(replica, leader.epoch("INSERT INTO t VALUES (40, 'x')"))
    assert replica._files.index.frame_count() == 0
    pinned.close()


def test_a_failed_checkpoint_does_not_fail_the_epoch(
    leader: Leader, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(sqlite3.Connection):
        def execute(self, sql: str, *arguments: object) -> sqlite3.Cursor:  # type: ignore[override]
            if "checkpoint" in sql:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *arguments)  # type: ignore[arg-type]

    applier = replica._applier
    full = Full(replica._path, isolation_level=None)
    replica._applier = full
    with caplog.at_level(logging.WARNING):
        apply(replica, leader.epoch("INSERT INTO t VALUES (1, zeroblob(5000000))"))
    assert "cannot checkpoint replica.db" in caplog.text
    replica._applier = applier
    full.close()
    assert image(replica) == leader.path.read_bytes()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("held", [False, True])
def test_a_kill_in_mid_append_leaves_one_of_the_two_states(
    leader: Leader, path: Path, tmp_path: Path, step: str, held: bool
) -> None:
    first = leader.epoch("INSERT INTO t VALUES (1, randomblob(50000))")
    replica = Replica.open(path, clock=Clock())
    holder = hold(path) if held else None
    apply(replica, first)
    wal = leader.epoch("INSERT INTO t VALUES (2, randomblob(50000))")
    before, after = replica.checksum, replica.checksum_after(wal)
    replica.close()
    (tmp_path / "epoch").write_bytes(wal.raw)
    assert apply_and_die(path, tmp_path / "epoch", step) == -signal.SIGKILL
    replica = Replica.open(path, clock=Clock())
    assert replica.checksum in (before, after)
    if step != "half of the frames" and not held:
        assert replica.checksum == after  # recovered from the WAL, whose frames were whole
    if replica.checksum == before:
        replica.apply(wal, expected_checksum=after)
    replica.apply(leader.epoch("INSERT INTO t VALUES (3, randomblob(50000))"), expected_checksum=None)
    assert image(replica) == leader.path.read_bytes()
    replica.close()
    if holder is not None:
        holder.kill()
        holder.communicate()


def test_remnants_of_a_failed_append_are_cleaned_from_the_index(
    leader: Leader, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, 'x')"))

    def fail(*_: object) -> None:
        raise OSError("no more")

    large = leader.epoch("INSERT INTO t VALUES (2, randomblob(18000000))")  # 4400 frames: two blocks
    with monkeypatch.context() as patch:
        patch.setattr(walindex.WalIndex, "publish", fail)
        with pytest.raises(OSError, match="no more"):
            apply(replica, large)
    reader = replica.connect()
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    monkeypatch.setattr(replica_module, "CHECKPOINT_FRAMES", 1 << 30)
    apply(replica, large, leader.epoch("INSERT INTO t VALUES (3, 'x')"))
    replica._files.index.check()  # what remains is what would be there if nothing had failed
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (3,)
    reader.close()


def test_a_broken_publish_is_noticed_by_the_next_epoch(
    leader: Leader, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = leader.epoch("INSERT INTO t VALUES (1, 'x')")
    barriers = iter([None, OSError("broken off")])

    def barrier(_: walindex.WalIndex) -> None:
        if (error := next(barriers)) is not None:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(walindex.WalIndex, "_barrier", barrier)
        with pytest.raises(OSError, match="broken off"):
            apply(replica, wal)
    with pytest.raises(StateMismatch, match="somebody else"):
        apply(replica, wal)


def test_blocks_of_the_index_are_zeroed_at_their_first_use(
    leader: Leader, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, randomblob(18000000))"))  # fills two blocks, checkpoints
    assert replica._files.index.frame_count() == 0
    monkeypatch.setattr(replica_module, "CHECKPOINT_FRAMES", 1 << 30)
    apply(replica, leader.epoch("INSERT INTO t VALUES (2, randomblob(18000000))"))
    replica._files.index.check()


def test_pages_that_reappear_without_a_frame_are_zeros(leader: Leader, replica: Replica) -> None:
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, randomblob(40000))"))
    apply(replica, leader.epoch("DELETE FROM t"), leader.epoch("VACUUM"))
    reader = replica.connect()  # keeps the file from being truncated
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchone()
    page_one, size = image(replica)[:4096], replica.database_pages
    grown = size + 9
    new = page_one[:28] + grown.to_bytes(4, "big") + page_one[32:]
    wal = parse(to_wal([(1, new)], page_size=4096, database_pages=grown, salt=b"saltsalt"))
    expected = StateChecksum(4096)
    expected.feed((new + image(replica)[4096:]).ljust(grown * 4096, b"\0"))
    replica.apply(wal, expected_checksum=expected.value)
    assert image(replica)[size * 4096 :] == bytes(9 * 4096)
    reader.close()


def test_an_image_stays_as_it_is_while_epochs_are_applied(
    leader: Leader, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "CHECKPOINT_FRAMES", 5)
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, randomblob(400000))"))
    for number in range(2, 12):  # the WAL full, partly checkpointed or empty
        apply(replica, leader.epoch("INSERT INTO t VALUES (?, randomblob(20000))", number))
        want = leader.path.read_bytes()
        with replica.pages() as pages:
            assert pages.size_bytes == len(want)
            chunks = pages.chunks(10_000)
            got = [next(chunks)]
            for sql in ("UPDATE t SET b = randomblob(20000)", "DELETE FROM t WHERE a > 1", "VACUUM"):
                apply(replica, leader.epoch(sql))
            thread = threading.Thread(target=got.extend, args=(chunks,))
            thread.start()
            thread.join()
            assert b"".join(got) == want


def test_an_image_stays_as_it_is_when_the_wal_is_reset_under_it(leader: Leader, path: Path, replica: Replica) -> None:
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, randomblob(40000))"))
    foreign = sqlite3.connect(path, isolation_level=None)
    assert foreign.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
    want = leader.path.read_bytes()
    with replica.pages() as pages:  # all is in the file, so this holds none of the WAL
        assert foreign.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        apply(replica, leader.epoch("UPDATE t SET b = randomblob(40000)"))
        assert b"".join(pages.chunks()) == want
    foreign.close()


def test_another_process_reads_while_epochs_are_applied(leader: Leader, path: Path, replica: Replica) -> None:
    apply(
        replica,
        leader.epoch(
            "WITH c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 400) INSERT INTO t SELECT x, 0 FROM c"
        ),
    )
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "seen = set()\n"
        "print('ready', flush=True)\n"
        "while len(seen) < 20:\n"
        "    rows = c.execute('SELECT b, count(*) FROM t GROUP BY b').fetchall()\n"
        "    assert len(rows) == 1 and rows[0][1] == 400, rows\n"
        "    seen.add(rows[0][0])\n"
        "assert c.execute('PRAGMA integrity_check').fetchone() == ('ok',)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    number = 0
    while process.poll() is None and number < 5000:
        number += 1
        apply(replica, leader.epoch("UPDATE t SET b = ?", number))
    assert process.wait(10) == 0
    process.stdout.close()


def test_a_read_connection_cannot_write(replica: Replica) -> None:
    reader = replica.connect()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO t VALUES (1, 2)")
    reader.close()


@pytest.mark.parametrize("name", ["with space", "per%20cent", "quest?ion=1", "ha#sh", "ünï", "a'b\"c", "semi;colon"])
def test_odd_paths_work(leader: Leader, tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "replica.db"
    path.parent.mkdir()
    shutil.copy(leader.path, path)
    replica = Replica.open(path, clock=Clock())
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, 'x')"))
    reader = replica.connect()
    assert reader.execute("SELECT b FROM t").fetchone() == ("x",)
    reader.close()
    replica.close()
    assert sorted(path.parent.iterdir()) == [path]


def test_a_connection_may_outlive_the_replica(leader: Leader, replica: Replica) -> None:
    reader = replica.connect()
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, 'x')"))
    replica.close()
    replica.close()
    assert reader.execute("SELECT b FROM t").fetchone() == ("x",)
    index = reader.files.index  # type: ignore[attr-defined]
    assert index.frame_count() > 0
    reader.close()


def test_the_system_table_is_read(leader: Leader, replica: Replica) -> None:
    assert replica.system() == {}
    apply(replica, leader.epoch("INSERT INTO _lbc VALUES ('epoch', 1), ('cluster_id', '007')"))
    assert replica.system() == {"epoch": 1, "cluster_id": "007"}


def test_a_database_that_is_not_in_wal_mode_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "rollback.db")
    connection.execute("CREATE TABLE t(a)")
    connection.close()
    with pytest.raises(sqlite3.DatabaseError, match="journal mode delete"):
        Replica.open(tmp_path / "rollback.db", clock=Clock())
    (tmp_path / "noise.db").write_bytes(os.urandom(8192))
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        Replica.open(tmp_path / "noise.db", clock=Clock())
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        Replica.open(tmp_path / "absent.db", clock=Clock())


def test_a_database_is_written_and_hashed_in_one_pass(leader: Leader, replica: Replica, tmp_path: Path) -> None:
    apply(replica, leader.epoch("INSERT INTO t VALUES (1, randomblob(90000))"))
    path = tmp_path / "new.db"
    with replica.pages() as pages:
        checksum = write_database(path, pages.chunks(8192), page_size=pages.page_size)
    assert checksum.value == replica.checksum
    copy = Replica.open(path, clock=Clock(), checksum=checksum)
    apply(replica, wal := leader.epoch("DELETE FROM t"))
    copy.apply(wal, expected_checksum=replica.checksum)
    assert (copy.database_pages, copy.page_size, copy.size_bytes) == (
        replica.database_pages, 4096, len(leader.path.read_bytes())
    )  # fmt: skip
    copy.close()
    with pytest.raises(FileExistsError):
        write_database(path, [], page_size=4096)


def test_an_unsuitable_sqlite_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        check_sqlite.cache_clear()
        with pytest.raises(UnsuitableSqlite) as caught:
            check_sqlite()
        return str(caught.value)

    check_sqlite.cache_clear()
    check_sqlite()
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck.sqlite3, "sqlite_version_info", (3, 34, 1))
        assert "too old" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(walindex, "VERSION", 3008000)
        assert f"SQLite {sqlite3.sqlite_version}" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(walindex, "_HASH_FACTOR", 381)
        assert "hash tables" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck.sqlite3, "threadsafety", 0)
        assert "threads" in refused()
    check_sqlite.cache_clear()
