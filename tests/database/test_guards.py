"""What user code may and may not do on the connections that it is handed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster.database.connections import SnapshotConnection, statements
from littlebigcluster.database.guards import read_guard
from littlebigcluster.database.primary import Primary
from littlebigcluster.errors import NotAllowed

SCHEMA = """
CREATE TABLE _lbc(key TEXT PRIMARY KEY, value ANY);
INSERT INTO _lbc VALUES ('epoch', 0);
CREATE TABLE t(id INTEGER PRIMARY KEY, v);
INSERT INTO t VALUES (1, 'one');
"""


class Image:
    """The bytes of a database file, as a source for a primary."""

    def __init__(self, path: Path, schema: str = SCHEMA) -> None:
        db = sqlite3.connect(path)
        db.executescript(schema)
        db.close()
        self.data = path.read_bytes()

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    primary = Primary.create(tmp_path / "primary.db", Image(tmp_path / "image.db"))
    yield primary
    primary.discard()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    Image(tmp_path / "read.db")
    connection = sqlite3.connect(
        f"file:{tmp_path / 'read.db'}?mode=ro", uri=True, factory=SnapshotConnection, isolation_level=None
    )
    connection.execute("PRAGMA query_only = ON")
    read_guard().install(connection)
    yield connection
    sqlite3.Connection.close(connection)


def rows(primary: Primary, sql: str) -> list[tuple[Any, ...]]:
    return primary.transaction(lambda db: db.execute(sql).fetchall())


REFUSED = [
    ("COMMIT", "COMMIT is not allowed"),
    ("END", "COMMIT is not allowed"),
    ("ROLLBACK", "ROLLBACK is not allowed"),
    ("BEGIN", "BEGIN is not allowed"),
    ("BEGIN EXCLUSIVE", "BEGIN is not allowed"),
    ("ATTACH ':memory:' AS other", "ATTACH"),
    ("DETACH main", "ATTACH and DETACH"),
    ("PRAGMA journal_mode = DELETE", "journal_mode cannot be changed"),
    ("PRAGMA main.journal_mode = OFF", "journal_mode cannot be changed"),
    ("PRAGMA synchronous = OFF", "synchronous"),
    ("PRAGMA page_size = 512", "page_size"),
    ("PRAGMA locking_mode = EXCLUSIVE", "locking_mode is not allowed"),
    ("PRAGMA writable_schema = ON", "writable_schema"),
    ("PRAGMA wal_checkpoint(TRUNCATE)", "wal_checkpoint"),
    ("PRAGMA wal_autocheckpoint = 1", "wal_autocheckpoint"),
    ("PRAGMA cache_spill = OFF", "cache_spill"),
    ("PRAGMA temp_store = MEMORY", "temp_store"),
    ("PRAGMA schema_version = 7", "schema_version"),
    ("PRAGMA case_sensitive_like = ON", "case_sensitive_like"),
    ("INSERT INTO _lbc VALUES ('x', 1)", "_lbc"),
    ("UPDATE _LBC SET value = 1", "_LBC|_lbc"),
    ("DELETE FROM _lbc", "_lbc"),
    ("DROP TABLE _lbc", "_lbc"),
    ("ALTER TABLE _lbc ADD COLUMN x", "_lbc"),
    ("ALTER TABLE _lbc RENAME TO x", "_lbc"),
    ("CREATE INDEX i ON _lbc(value)", "_lbc"),
    ("CREATE TRIGGER x AFTER UPDATE ON _lbc BEGIN SELECT 1; END", "_lbc"),
    ("CREATE TABLE _lbc_mine(a)", "_lbc_mine"),
    ("CREATE TABLE _LBC_mine(a)", "_LBC_mine"),
    ("CREATE VIEW _lbc_v AS SELECT 1", "_lbc_v"),
    ("CREATE INDEX _lbc_i ON t(v)", "_lbc_i"),
    ("CREATE VIRTUAL TABLE _lbc_f USING fts5(a)", "_lbc_f"),
    ("ALTER TABLE t RENAME TO _lbc_t", "_lbc_t"),
    ("ALTER TABLE t RENAME TO _LBC_t", "_LBC_t"),
    ("CREATE TEMP TABLE x(a)", "temporary"),
    ("CREATE TABLE temp.x(a)", "temporary"),
    ("CREATE TEMP VIEW x AS SELECT 1", "temporary"),
    ("CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END", "temporary"),
    ("CREATE TRIGGER temp.x AFTER INSERT ON t BEGIN SELECT 1; END", "temporary"),
    ("CREATE VIRTUAL TABLE temp.x USING fts5(a)", "temporary"),
    ("SELECT load_extension('x')", "load_extension"),
]


@pytest.mark.parametrize(("sql", "why"), REFUSED, ids=[sql for sql, _ in REFUSED])
def test_writers_are_refused_with_the_reason_and_nothing_is_kept(primary: Primary, sql: str, why: str) -> None:
    before = rows(primary, "SELECT * FROM sqlite_schema"), rows(primary, "SELECT * FROM _lbc")

    def refused(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t(v) VALUES ('gone')")
        db.execute(sql)

    for _ in range(2):  # the second time the statement may come from the cache
        with pytest.raises(NotAllowed, match=why):
            primary.transaction(refused)
    assert (rows(primary, "SELECT * FROM sqlite_schema"), rows(primary, "SELECT * FROM _lbc")) == before
    assert rows(primary, "SELECT count(*) FROM t") == [(1,)]
    assert primary.take() is None


ALLOWED = [
    "SAVEPOINT a; INSERT INTO t(v) VALUES (2); ROLLBACK TO a; RELEASE a",
    "PRAGMA user_version = 5",
    "PRAGMA user_version",
    "PRAGMA application_id = 5",
    "PRAGMA table_info(t)",
    "SELECT * FROM pragma_table_info('t')",
    "PRAGMA foreign_keys",
    "PRAGMA foreign_key_check",
    "PRAGMA integrity_check",
    "PRAGMA quick_check(1)",
    "PRAGMA page_count",
    "PRAGMA freelist_count",
    "PRAGMA incremental_vacuum(10)",
    "PRAGMA optimize",
    "PRAGMA defer_foreign_keys = ON",
    "ANALYZE",
    "REINDEX",
    "SELECT * FROM _lbc",
    "CREATE TABLE lbc(_lbc_column); UPDATE lbc SET _lbc_column = 1",
    "ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME COLUMN v TO w; ALTER TABLE u DROP COLUMN w",
    "CREATE VIRTUAL TABLE f USING fts5(a); INSERT INTO f VALUES ('hello'); SELECT * FROM f('hello')",
    "CREATE VIRTUAL TABLE r USING rtree(id, a, b); INSERT INTO r VALUES (1, 2, 3); DROP TABLE r",
    "CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET v = 1; UPDATE t SET v = 2; END; INSERT INTO t(v) VALUES (7)",
    "CREATE TABLE copy AS SELECT * FROM t; DROP TABLE copy",
]


@pytest.mark.parametrize("script", ALLOWED)
def test_writers_may_do_everything_else(primary: Primary, script: str) -> None:
    primary.transaction(lambda db: db.executescript(script).fetchall())


def test_a_trigger_cannot_write_the_system_table(primary: Primary) -> None:
    with pytest.raises(NotAllowed, match=r"_lbc.*in trigger or view g"):
        primary.transaction(
            lambda db: db.executescript(
                "CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM _lbc; END; INSERT INTO t(v) VALUES (7)"
            ).close()
        )


def test_the_name_check_is_what_stops_a_rename(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("littlebigcluster.database.primary.check_names", lambda objects: None)
    primary.transaction(lambda db: db.execute("ALTER TABLE t RENAME TO _lbc_t").close())
    assert rows(primary, "SELECT name FROM sqlite_schema WHERE name = '_lbc_t'")


def test_a_refusal_that_is_caught_leaves_the_transaction_as_it_was(primary: Primary) -> None:
    def careful(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t(v) VALUES ('kept')")
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            db.execute("COMMIT")

    primary.transaction(careful)
    assert rows(primary, "SELECT count(*) FROM t") == [(2,)]


def test_the_librarys_own_statements_are_not_in_the_cache_under_a_guessable_text(primary: Primary) -> None:
    primary.system(epoch=1)
    for sql in ("COMMIT", "ROLLBACK", "DELETE FROM _lbc WHERE key = ?"):
        parameters = ("epoch",) if "?" in sql else ()
        with pytest.raises(NotAllowed):
            primary.transaction(lambda db, sql=sql, parameters=parameters: db.execute(sql, parameters).close())
    assert rows(primary, "SELECT value FROM _lbc") == [(1,)]


CALLS: list[tuple[str, Callable[[sqlite3.Connection], Any]]] = [
    ("commit", lambda db: db.commit()),
    ("rollback", lambda db: db.rollback()),
    ("close", lambda db: db.close()),
    ("with", lambda db: db.__enter__()),
    ("interrupt", lambda db: db.interrupt()),
    ("set_authorizer", lambda db: db.set_authorizer(None)),
    ("set_progress_handler", lambda db: db.set_progress_handler(None, 0)),
    ("set_trace_callback", lambda db: db.set_trace_callback(print)),
    ("enable_load_extension", lambda db: db.enable_load_extension(True)),
    ("backup", lambda db: db.backup(db)),
    ("deserialize", lambda db: db.deserialize(b"")),
    ("isolation_level", lambda db: setattr(db, "isolation_level", "")),
    ("blobopen", lambda db: db.blobopen("_lbc", "value", 1)),
    # Past our methods the authorizer still stands.
    ("COMMIT", sqlite3.Connection.commit),
    ("ROLLBACK", sqlite3.Connection.rollback),
    ("COMMIT", lambda db: sqlite3.Cursor(db).executescript("SELECT 1")),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_methods_that_would_break_things_say_so(primary: Primary, name: str, call: Callable[..., Any]) -> None:
    with pytest.raises(NotAllowed, match=name):
        primary.transaction(call)
    assert rows(primary, "SELECT count(*) FROM t") == [(1,)]


def test_it_is_a_real_connection(primary: Primary) -> None:
    def check(db: sqlite3.Connection) -> None:
        assert isinstance(db, sqlite3.Connection)
        assert isinstance(db.cursor(), sqlite3.Cursor)
        assert db.in_transaction
        db.row_factory = sqlite3.Row
        assert db.execute("SELECT v FROM t").fetchone()["v"] == "one"

    primary.transaction(check)
    assert rows(primary, "SELECT v FROM t") == [("one",)]  # the row factory does not outlive its transaction


def test_scripts_are_split_into_statements() -> None:
    trigger = "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT ';'; SELECT 2; END;"
    script = f"SELECT ';\"'; -- a ; comment\n/* ; */ SELECT [a;b], `c;`;{trigger} SELECT 'it''s';\n SELECT 1 "
    assert [statement.strip() for statement in statements(script)] == [
        "SELECT ';\"';",
        "-- a ; comment\n/* ; */ SELECT [a;b], `c;`;",
        trigger,
        "SELECT 'it''s';",
        "SELECT 1",
    ]
    assert len(list(statements("SELECT '" + ";" * 1_000_000 + "';" + "SELECT 1;" * 10_000))) == 10_001


def test_a_failing_script_is_rolled_back_whole(primary: Primary) -> None:
    with pytest.raises(sqlite3.OperationalError, match="nope"):
        primary.transaction(lambda db: db.executescript("INSERT INTO t(v) VALUES (1); DELETE FROM nope;").close())
    assert rows(primary, "SELECT count(*) FROM t") == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN",
        "COMMIT",
        "SAVEPOINT a",
        "ATTACH ':memory:' AS other",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version = 1",
        "PRAGMA wal_checkpoint",
        "PRAGMA optimize",
        "VACUUM",
        "SELECT load_extension('x')",
    ],
)
def test_readers_are_refused(reader: sqlite3.Connection, sql: str) -> None:
    with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|authorization denied"):
        reader.execute(sql)


@pytest.mark.parametrize("sql", ["INSERT INTO t(v) VALUES (1)", "CREATE TABLE u(a)", "CREATE TEMP TABLE u(a)"])
def test_readers_cannot_write(reader: sqlite3.Connection, sql: str) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute(sql)


def test_readers_can_use_r_tree_and_full_text(tmp_path: Path) -> None:
    path = tmp_path / "virtual.db"
    Image(path, "CREATE VIRTUAL TABLE r USING rtree(id, a, b); INSERT INTO r VALUES (1, 2, 3);"
                "CREATE VIRTUAL TABLE f USING fts5(a); INSERT INTO f VALUES ('hello');")  # fmt: skip
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, factory=SnapshotConnection, isolation_level=None)
    reader.execute("PRAGMA query_only = ON")
    read_guard().install(reader)
    assert reader.execute("SELECT id FROM r WHERE a < 3").fetchall() == [(1,)]
    assert reader.execute("SELECT a FROM f('hello')").fetchall() == [("hello",)]
    sqlite3.Connection.close(reader)
