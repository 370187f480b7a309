"""The leader's scratch copy: real transactions, their limits, and what is taken of them."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster.database.primary import Primary, PrimaryBroken
from littlebigcluster.database.wal import parse
from littlebigcluster.errors import DeadlineExceeded, EpochTooLarge, NotAllowed

MIB = 1 << 20
ROW_BYTES = 2900  # what a row of `fill` takes, with its index and half full pages
SCHEMA = """
CREATE TABLE _lbc(key TEXT PRIMARY KEY, value ANY);
CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE);
CREATE TABLE parent(id INTEGER PRIMARY KEY);
CREATE TABLE child(id REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED, note);
"""
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


class Image:
    """The bytes of a database file, as a source for a primary."""

    def __init__(self, path: Path, page_size: int = 4096) -> None:
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA page_size = {page_size}")
        db.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)
        db.close()
        self.data = path.read_bytes()

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "image.db")


@pytest.fixture
def primary(tmp_path: Path, image: Image) -> Iterator[Primary]:
    primary = Primary.create(tmp_path / "primary.db", image, max_epoch_bytes=2 * MIB, foreign_keys=True)
    yield primary
    primary.discard()


def insert(value: object) -> Callable[[sqlite3.Connection], Any]:
    return lambda db: db.execute("INSERT INTO t(v) VALUES (?)", (value,)).lastrowid


def values(primary: Primary) -> list[object]:
    return primary.transaction(lambda db: [v for (v,) in db.execute("SELECT v FROM t ORDER BY id")])


def fill(size_bytes: int) -> Callable[[sqlite3.Connection], Any]:
    return lambda db: db.executemany(
        "INSERT INTO t(v) VALUES (randomblob(?))", ((900,) for _ in range(size_bytes // ROW_BYTES))
    ).close()


def check_takes(primary: Primary, image: Image, tmp_path: Path) -> None:
    """What is taken, applied to the image by SQLite itself, gives the content of the primary."""
    raw = primary.take()
    assert raw is not None
    assert parse(raw).raw == raw
    copy = tmp_path / "copy.db"
    copy.write_bytes(image.data)
    Path(f"{copy}-wal").write_bytes(raw)
    db = sqlite3.connect(copy)
    assert [v for (v,) in db.execute("SELECT v FROM t ORDER BY id")] == values(primary)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_a_transaction_returns_what_its_function_returns(primary: Primary) -> None:
    assert primary.transaction(insert("a")) == 1
    assert values(primary) == ["a"]


def test_taken_is_one_transaction_with_all_that_was_committed(primary: Primary, image: Image, tmp_path: Path) -> None:
    assert primary.take() is None
    for i in range(50):
        primary.transaction(insert(i))
    unsquashed = primary.pending_bytes
    assert primary.squashed_bytes() < unsquashed
    check_takes(primary, image, tmp_path)
    assert primary.pending_bytes == 0
    assert primary.take() is None


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_all_page_sizes(tmp_path: Path, page_size: int) -> None:
    image = Image(tmp_path / "image.db", page_size)
    primary = Primary.create(tmp_path / "primary.db", image)
    primary.transaction(fill(200_000))
    check_takes(primary, image, tmp_path)
    primary.discard()


def test_reading_writes_nothing(primary: Primary) -> None:
    assert values(primary) == []
    assert primary.take() is None


def test_an_exception_rolls_back_and_comes_out_as_it_is(primary: Primary) -> None:
    error = RuntimeError("mine")

    def failing(db: sqlite3.Connection) -> None:
        insert("x")(db)
        raise error

    with pytest.raises(RuntimeError) as caught:
        primary.transaction(failing)
    assert caught.value is error
    assert values(primary) == []
    assert primary.take() is None


SELF_ROLLBACK = [
    "INSERT OR ROLLBACK INTO t(v) VALUES ('before')",
    "INSERT INTO guarded VALUES (1)",
]


@pytest.mark.parametrize("sql", SELF_ROLLBACK)
def test_a_rollback_by_sqlite_fails_that_transaction_alone(primary: Primary, sql: str) -> None:
    primary.transaction(lambda db: db.executescript(
        "CREATE TABLE guarded(a); CREATE TRIGGER g BEFORE INSERT ON guarded"
        " BEGIN SELECT RAISE(ROLLBACK, 'no'); END;").close())  # fmt: skip
    primary.transaction(insert("before"))

    def raising(db: sqlite3.Connection) -> None:
        insert("gone")(db)
        db.execute(sql)

    with pytest.raises(sqlite3.IntegrityError):
        primary.transaction(raising)

    def going_on(db: sqlite3.Connection) -> None:
        cursor = db.cursor()
        with pytest.raises(sqlite3.IntegrityError):
            raising(db)
        for more in (db.execute, cursor.execute):
            with pytest.raises(NotAllowed, match="rolled it back"):
                more("INSERT INTO t(v) VALUES ('outside')")

    with pytest.raises(NotAllowed, match="rolled it back"):
        primary.transaction(going_on)
    assert values(primary) == ["before"]


def test_a_deferred_foreign_key_fails_at_commit(primary: Primary) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        primary.transaction(lambda db: db.execute("INSERT INTO child(id) VALUES (7)").close())
    assert primary.transaction(lambda db: db.execute("SELECT count(*) FROM child").fetchone()) == (0,)
    assert primary.take() is None


def test_a_statement_past_the_deadline_is_ended(primary: Primary) -> None:
    def endless(db: sqlite3.Connection) -> None:
        insert("gone")(db)
        db.execute(ENDLESS)

    with pytest.raises(DeadlineExceeded, match="not written"):
        primary.transaction(endless, deadline=time.monotonic() + 0.1)

    def swallowing(db: sqlite3.Connection) -> None:
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            endless(db)

    with pytest.raises(DeadlineExceeded):
        primary.transaction(swallowing, deadline=time.monotonic() + 0.1)

    def writing(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i % 1 FROM n"
                   " WHERE i % 1 <> 0")  # fmt: skip

    with pytest.raises(DeadlineExceeded):
        primary.transaction(writing, deadline=time.monotonic() + 0.1)
    assert values(primary) == []


def test_a_function_that_comes_back_too_late_is_rolled_back(primary: Primary) -> None:
    def slow(db: sqlite3.Connection) -> None:
        insert("late")(db)
        time.sleep(0.02)

    with pytest.raises(DeadlineExceeded):
        primary.transaction(slow, deadline=time.monotonic() + 0.01)
    assert values(primary) == []


def test_a_transaction_larger_than_an_epoch_is_refused_and_the_next_is_not(
    primary: Primary, image: Image, tmp_path: Path
) -> None:
    primary.transaction(insert("before"))
    with pytest.raises(EpochTooLarge, match=r"several smaller"):
        primary.transaction(fill(100 * MIB))
    wal = tmp_path / "primary.db-wal"
    assert wal.stat().st_size < MIB  # what it has spilled does not count for the next one
    primary.transaction(fill(MIB))
    assert len(values(primary)) == 1 + MIB // ROW_BYTES
    check_takes(primary, image, tmp_path)


def test_a_single_runaway_statement_is_stopped(primary: Primary, tmp_path: Path) -> None:
    with pytest.raises(EpochTooLarge):
        primary.transaction(
            lambda db: db.execute(
                "INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
                " SELECT randomblob(1000) FROM n"
            ).close()
        )
    assert (tmp_path / "primary.db-wal").stat().st_size < 5 * MIB
    assert values(primary) == []


def test_a_rolled_back_spill_is_not_taken(primary: Primary, image: Image, tmp_path: Path) -> None:
    def spilling(db: sqlite3.Connection) -> None:
        fill(int(1.5 * MIB))(db)
        assert (tmp_path / "primary.db-wal").stat().st_size > MIB // 2
        raise KeyError

    primary.transaction(insert("before"))
    for _ in range(3):
        with pytest.raises(KeyError):
            primary.transaction(spilling)
    primary.transaction(insert("after"))
    check_takes(primary, image, tmp_path)


def test_a_committed_spill_is_taken_whole(primary: Primary, image: Image, tmp_path: Path) -> None:
    primary.transaction(fill(int(1.5 * MIB)))
    primary.transaction(lambda db: db.execute("DELETE FROM t WHERE id % 2").close())
    check_takes(primary, image, tmp_path)


@pytest.mark.filterwarnings("error")
def test_what_has_not_run_yet_is_refused(primary: Primary) -> None:
    async def coroutine(db: sqlite3.Connection) -> None:
        await asyncio.sleep(0)

    def generator(db: sqlite3.Connection) -> Iterator[int]:
        insert("x")(db)
        yield 1

    for function in (coroutine, generator):
        with pytest.raises(TypeError, match="plain function"):
            primary.transaction(function)  # type: ignore[arg-type]
    assert values(primary) == []


def test_a_cursor_left_open_is_closed(primary: Primary, image: Image, tmp_path: Path) -> None:
    primary.transaction(lambda db: db.executemany("INSERT INTO t(v) VALUES (?)", [(1,), (2,), (3,)]).close())
    kept: list[sqlite3.Cursor] = []

    def leaving(db: sqlite3.Connection) -> sqlite3.Cursor:
        kept.append(db.execute("SELECT v FROM t"))
        assert kept[0].fetchone() == (1,)
        return db.execute("INSERT INTO t(v) VALUES (4), (5) RETURNING v")

    left = primary.transaction(leaving)
    for cursor in (left, kept[0]):
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            cursor.fetchone()
    assert values(primary) == [1, 2, 3, 4, 5]
    check_takes(primary, image, tmp_path)


def test_a_blob_left_open_is_closed(primary: Primary, image: Image, tmp_path: Path) -> None:
    primary.transaction(lambda db: db.execute("INSERT INTO child(note) VALUES (?)", (b"12345",)).close())
    kept: list[sqlite3.Blob] = []

    def leaving(db: sqlite3.Connection) -> None:
        kept.append(db.blobopen("child", "note", 1))
        kept[0].write(b"abc")

    primary.transaction(leaving)
    assert primary.transaction(lambda db: db.execute("SELECT note FROM child").fetchall()) == [(b"abc45",)]
    check_takes(primary, image, tmp_path)


def test_a_connection_kept_for_later_is_useless(primary: Primary) -> None:
    kept: list[Any] = []
    primary.transaction(lambda db: kept.extend((db, db.cursor())))
    db, cursor = kept
    with pytest.raises(NotAllowed, match="over"):
        db.execute("INSERT INTO t(v) VALUES (1)")
    with pytest.raises(NotAllowed, match="over"):
        cursor.execute("INSERT INTO t(v) VALUES (1)")
    errors: list[BaseException] = []

    def elsewhere(db: sqlite3.Connection) -> None:
        def use() -> None:
            try:
                db.execute("INSERT INTO t(v) VALUES (1)")
            except sqlite3.ProgrammingError as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    primary.transaction(elsewhere)
    assert "thread" in str(errors[0])
    assert values(primary) == []


def test_what_gets_past_all_guards_breaks_the_primary(primary: Primary) -> None:
    def hostile(db: sqlite3.Connection) -> None:
        insert("x")(db)
        primary._run("COMMIT")

    with pytest.raises(PrimaryBroken):
        primary.transaction(hostile)
    with pytest.raises(PrimaryBroken):
        primary.transaction(insert("y"))
    with pytest.raises(PrimaryBroken):
        primary.take()


def test_a_transaction_that_was_ended_and_begun_again_is_noticed(primary: Primary) -> None:
    def hostile(db: sqlite3.Connection) -> None:
        insert("x")(db)
        primary._run("COMMIT")
        primary._run("BEGIN")

    with pytest.raises(PrimaryBroken):
        primary.transaction(hostile)


def test_a_write_outside_of_a_transaction_is_noticed(primary: Primary) -> None:
    kept: list[sqlite3.Cursor] = []
    primary.transaction(lambda db: kept.append(sqlite3.Cursor(db)))
    kept[0].execute("INSERT INTO t(v) VALUES ('stray')")
    with pytest.raises(PrimaryBroken, match="outside"):
        primary.transaction(insert("y"))


def test_a_read_left_open_past_our_cursors_is_noticed(primary: Primary) -> None:
    kept: list[sqlite3.Cursor] = []
    primary.transaction(fill(10_000))
    primary.transaction(lambda db: kept.append(sqlite3.Cursor(db).execute("SELECT v FROM t")))
    with pytest.raises(PrimaryBroken, match="checkpoint"):
        primary.take()


def test_the_system_table(primary: Primary) -> None:
    primary.system(epoch=7, leader='{"uuid": "x"}')
    primary.system(epoch=8, leader=None)
    assert primary.transaction(lambda db: db.execute("SELECT * FROM _lbc").fetchall()) == [("epoch", 8)]
    assert primary.take() is not None


def test_vacuum(primary: Primary, image: Image, tmp_path: Path) -> None:
    primary.transaction(fill(MIB))
    primary.transaction(lambda db: db.execute("DELETE FROM t WHERE id > 100").close())
    primary.vacuum()
    assert primary.transaction(lambda db: db.execute("PRAGMA freelist_count").fetchone()) == (0,)
    check_takes(primary, image, tmp_path)


def test_vacuum_of_a_database_larger_than_an_epoch_is_refused(primary: Primary) -> None:
    for _ in range(2):
        primary.transaction(fill(int(1.5 * MIB)))
        primary.take()
    with pytest.raises(EpochTooLarge, match="incremental_vacuum"):
        primary.vacuum()
    assert primary.take() is None


def test_a_full_disk_fails_that_transaction_alone(primary: Primary, image: Image, tmp_path: Path) -> None:
    primary.transaction(insert("before"))
    primary._run("PRAGMA max_page_count = 30")  # SQLite's own way to SQLITE_FULL
    for function in (fill(MIB), insert(bytes(200_000))):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            primary.transaction(function)
    primary._run("PRAGMA max_page_count = 100000")
    primary.transaction(insert("after"))
    assert values(primary) == ["before", "after"]
    check_takes(primary, image, tmp_path)


def test_a_write_that_the_system_refuses_fails_that_transaction_alone(
    primary: Primary, image: Image, tmp_path: Path
) -> None:
    primary.transaction(insert("before"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        for function in (fill(MIB), insert(bytes(500_000))):  # in a spill, and at COMMIT
            with pytest.raises(sqlite3.OperationalError, match=r"full|disk I/O error"):
                primary.transaction(function)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    primary.transaction(insert("after"))
    assert values(primary) == ["before", "after"]
    check_takes(primary, image, tmp_path)


def test_abort_from_another_thread_ends_the_running_statement(primary: Primary) -> None:
    reason = RuntimeError("stop")
    timer = threading.Timer(0.05, primary.abort, (reason,))
    with pytest.raises(RuntimeError, match="stop"):
        primary.transaction(lambda db: (timer.start(), db.execute(ENDLESS).close()))
    timer.join()


def test_discard_deletes_the_files(tmp_path: Path, image: Image) -> None:
    primary = Primary.create(tmp_path / "scratch.db", image)
    primary.transaction(insert(1))
    primary.discard()
    assert not list(tmp_path.glob("scratch*"))


def free_descriptor() -> int:
    """The lowest one."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_primary_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader without room on its disk tries again and again."""

    def full(_: Primary) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Primary, "_read_schema", full)
    before = free_descriptor()
    with pytest.raises(OSError, match="No space"):
        Primary.create(tmp_path / "primary.db", image)
    assert list(tmp_path.glob("primary.db*")) == []
    assert free_descriptor() == before
