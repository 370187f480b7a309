"""An application's file becomes a cluster's database, and a plain file again; or it is refused, and why."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.scenarios.applications import content, content_of, make_application

from littlebigcluster.database import copy_plain, make_plain, plain, write_initial_database
from littlebigcluster.errors import NotAllowed

SEEDS = range(12)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "application.db"


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies it, and returns where to."""

    def copied(*, page_size: int = 4096, foreign_keys: bool = False) -> Path:
        target = tmp_path / "copy.db"
        target.unlink(missing_ok=True)
        copy_plain(source, target, page_size=page_size, foreign_keys=foreign_keys)
        return target

    return copied


def sql(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_is_in_the_copy_and_the_source_is_only_read(seed: int, source: Path, copy: Callable[..., Path]) -> None:
    make_application(source, seed)
    expected, before = content(source), (source.read_bytes(), source.stat().st_mtime_ns)
    for page_size in (512, 4096, 65536):
        made = copy(page_size=page_size)
        assert content(made) == expected
        with closing(sqlite3.connect(made)) as db:
            assert db.execute("PRAGMA page_size").fetchone() == (page_size,)
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_s_database_becomes_plain_again(seed: int, source: Path, copy: Callable[..., Path]) -> None:
    make_application(source, seed)
    expected, made = content(source), copy()
    write_initial_database(made, page_size=4096, system={"epoch": 0, "cluster_id": "secret identity"})
    assert made.read_bytes()[18:20] == b"\2\2", "in WAL mode"
    assert [each.name for each in made.parent.glob("copy.db*")] == ["copy.db"], "in one file"
    assert content(made) == expected
    make_plain(made)
    assert made.read_bytes()[18:20] == b"\1\1", "not in WAL mode"
    assert [each.name for each in made.parent.glob("copy.db*")] == ["copy.db"]
    with closing(sqlite3.connect(made)) as db:
        assert db.execute("SELECT name FROM sqlite_schema WHERE name GLOB '*_lbc*'").fetchall() == []
    assert content(made) == expected
    assert b"secret identity" not in made.read_bytes(), "nothing of the library stays, in free pages neither"


@pytest.mark.parametrize("page_size", [4096, 8192])
def test_what_only_the_wal_of_another_process_holds_is_copied(
    page_size: int, source: Path, copy: Callable[..., Path]
) -> None:
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("CREATE TABLE t(a)")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO t VALUES (2)")
        before = source.read_bytes(), source.with_name("application.db-wal").read_bytes()
        made = copy(page_size=page_size)
        assert (source.read_bytes(), source.with_name("application.db-wal").read_bytes()) == before
        with closing(sqlite3.connect(made)) as db:
            assert db.execute("SELECT * FROM t").fetchall() == [(1,)], "what is committed, and no more"
        writer.execute("COMMIT")


def test_a_wal_that_a_crash_has_left_is_copied(source: Path, copy: Callable[..., Path]) -> None:
    script = f"""
import os, sqlite3
db = sqlite3.connect({str(source)!r}, isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE t(a)")
db.execute("INSERT INTO t VALUES (1)")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    wal = source.with_name("application.db-wal")
    before = source.read_bytes(), wal.read_bytes()
    assert before[1]
    assert content(copy())["t"] == [(1, 1)]
    assert (source.read_bytes(), wal.read_bytes()) == before


@pytest.mark.parametrize("tables", [1, 2, 3])
def test_the_wal_of_another_database_is_noticed(
    tables: int, source: Path, tmp_path: Path, copy: Callable[..., Path]
) -> None:
    sql(source, "PRAGMA journal_mode = WAL; CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES (1), (2)")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        for number in range(tables):
            db.execute(f"CREATE TABLE u{number}(a)")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number in range(tables):
            db.execute(f"INSERT INTO u{number} VALUES (zeroblob(3000))")
        shutil.copy(f"{other}-wal", f"{source}-wal")
    with pytest.raises(ValueError, match="is damaged"):
        copy()


def test_a_restored_file_has_its_system_tables_replaced(source: Path, copy: Callable[..., Path]) -> None:
    sql(source, "CREATE TABLE t(a); INSERT INTO t VALUES (7)")
    write_initial_database(source, page_size=4096, system={"cluster_id": "former"})
    made = copy()
    with closing(sqlite3.connect(made)) as db:
        assert list(db.execute("SELECT name FROM sqlite_schema")) == [("t",)]
        assert content_of(db)["t"] == [(1, 7)]


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE _lbc(key, value)",
        "CREATE TABLE _LBC_mine(a)",
        "CREATE TABLE t(a); CREATE INDEX _lbc_i ON t(a)",
        "CREATE VIEW _lbc AS SELECT 1 AS key, 2 AS value",
        "CREATE TABLE _lbc(key TEXT PRIMARY KEY, value); CREATE INDEX i ON _lbc(value)",
        "CREATE TABLE _lbc(key TEXT PRIMARY KEY, value); CREATE TRIGGER r AFTER INSERT ON _lbc BEGIN SELECT 1; END",
    ],
)
def test_names_that_are_ours_are_refused(script: str, source: Path, copy: Callable[..., Path]) -> None:
    sql(source, script)
    with pytest.raises(NotAllowed, match="reserved"):
        copy()


def test_what_is_no_database_is_refused(source: Path, copy: Callable[..., Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"application\.db"):
        copy()
    source.touch()
    with pytest.raises(ValueError, match=r"is empty; .* made by init"):
        copy()
    source.write_bytes(os.urandom(8192))
    with pytest.raises(ValueError, match="not a SQLite database, or it is encrypted"):
        copy()
    source.unlink()
    source.mkdir()
    with pytest.raises(OSError, match="not a file"):
        copy()


@pytest.mark.parametrize("page_size", [4096, 8192])
def test_a_damaged_database_is_refused(page_size: int, source: Path, copy: Callable[..., Path]) -> None:
    sql(source, "CREATE TABLE t(a UNIQUE)")
    with closing(sqlite3.connect(source)) as db:
        db.executemany("INSERT INTO t VALUES (?)", [(f"{number} {'x' * 100}",) for number in range(500)])
        db.commit()
    body = bytearray(source.read_bytes())
    body[5 * 4096 : 5 * 4096 + 2000] = os.urandom(2000)
    source.write_bytes(body)
    with pytest.raises(ValueError, match="is damaged"):
        copy(page_size=page_size)
    source.write_bytes(body[: len(body) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        copy(page_size=page_size)


def test_an_index_that_does_not_fit_its_table_is_refused(source: Path, copy: Callable[..., Path]) -> None:
    sql(source, "CREATE TABLE t(a, b); CREATE INDEX i ON t(a); INSERT INTO t VALUES (1, 2), (3, 4)")
    script = "UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t(b)' WHERE name = 'i'"
    sql(source, f"PRAGMA writable_schema = ON; {script}")
    with pytest.raises(ValueError, match="is damaged: row 1 missing from index i"):
        copy()
    with pytest.raises(ValueError, match="is damaged: row 1 missing from index i"):
        copy(page_size=512)


def test_a_disk_that_is_full_at_the_last_step_is_noticed(source: Path) -> None:
    """The close of a connection would keep it to itself, and the system tables would be in a WAL that goes."""
    sql(source, "CREATE TABLE t(a); INSERT INTO t VALUES (zeroblob(200000))")
    script = f"""
import pathlib, resource, signal, sqlite3
from littlebigcluster.database import write_initial_database
path = pathlib.Path({str(source)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, -1))
try:
    write_initial_database(path, page_size=4096, system={{"epoch": 0}})
except sqlite3.OperationalError:
    print("noticed")
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "noticed\n", done.stderr


@pytest.mark.parametrize("page_size", [4096, 8192])
def test_a_locked_database_is_refused_after_a_while(
    page_size: int, source: Path, copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "_BUSY_SECONDS", 0.2)
    sql(source, "CREATE TABLE t(a)")
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="is locked by another process"):
            copy(page_size=page_size)
        writer.execute("ROLLBACK")
    copy(page_size=page_size)


def test_a_write_that_a_crash_has_broken_off_is_refused(source: Path, copy: Callable[..., Path]) -> None:
    script = f"""
import os, sqlite3
db = sqlite3.connect({str(source)!r}, isolation_level=None)
db.execute("CREATE TABLE t(a)")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 1000)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    before = source.read_bytes()
    with pytest.raises(sqlite3.OperationalError, match="the last write to it was broken off"):
        copy()
    assert source.read_bytes() == before
    sql(source, "SELECT * FROM t")
    assert content(copy())["t"] == []


@pytest.mark.parametrize("page_size", [4096, 8192])
def test_a_schema_that_this_sqlite_cannot_use_is_refused(
    page_size: int, source: Path, copy: Callable[..., Path]
) -> None:
    with closing(sqlite3.connect(source)) as db:
        db.create_function("twice", 1, lambda value: value * 2, deterministic=True)
        db.executescript("CREATE TABLE t(a); CREATE INDEX i ON t(twice(a)); INSERT INTO t VALUES (1)")
    with pytest.raises(ValueError, match=r"cannot use its schema: .*twice"):
        copy(page_size=page_size)
    source.unlink()
    with closing(sqlite3.connect(source)) as db:
        db.create_collation("spanish", lambda one, other: (one > other) - (one < other))
        db.executescript("CREATE TABLE t(a TEXT COLLATE spanish UNIQUE); INSERT INTO t VALUES ('a'), ('b')")
    with pytest.raises(ValueError, match=r"cannot use its schema: no such collation sequence: spanish"):
        copy(page_size=page_size)
    source.unlink()
    sql(
        source,
        "CREATE TABLE t(a); PRAGMA writable_schema = ON;"
        "INSERT INTO sqlite_schema"
        " VALUES ('table', 'v\"1', 'v\"1', 0, 'CREATE VIRTUAL TABLE \"v\"\"1\" USING nope(a)')",
    )
    with pytest.raises(ValueError, match=r"cannot use its schema: no such module: nope"):
        copy(page_size=page_size)


def test_violated_foreign_keys_are_refused_where_they_are_to_be_enforced(
    source: Path, copy: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    sql(source, "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p); INSERT INTO c VALUES (7), (8)")
    with pytest.raises(ValueError, match="2 rows violate foreign keys, the first in table c, which refers to p"):
        copy(foreign_keys=True)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert content(copy())["c"] == [(1, 7), (2, 8)]
    assert "2 rows violate foreign keys" in caplog.text
    sql(source, "CREATE TABLE q(a, b); CREATE TABLE d(q REFERENCES q(b)); INSERT INTO d VALUES (1)")
    with pytest.raises(ValueError, match="foreign key mismatch"):
        copy(foreign_keys=True)
    assert content(copy())["d"] == [(1, 1)]
