"""The tables that one epoch touches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_files import Leader

from littlebigcluster.clock import Clock
from littlebigcluster.database.btree import Forest
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.touched import SCHEMA, Touched


class Pair:
    """A leader, and a replica that takes its epochs."""

    def __init__(self, directory: Path, *schema: str, auto_vacuum: int = 0) -> None:
        self.leader = Leader(directory / "leader.db", schema=f"PRAGMA auto_vacuum = {auto_vacuum}")
        if auto_vacuum:
            self.leader.execute("VACUUM")
        for statement in schema:
            self.leader.execute(statement)
        self.leader.take()
        (directory / "replica.db").write_bytes(self.leader.path.read_bytes())
        self.replica = Replica.open(directory / "replica.db", clock=Clock())
        self.touched = Touched(self.replica)

    def tables(self, *statements: str) -> tuple[str, ...]:
        for statement in statements:
            self.leader.execute(statement)
        return self.take()

    def take(self) -> tuple[str, ...]:
        wal = self.leader.take()
        self.replica.apply(wal, expected_checksum=None)
        return self.touched.after(wal)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(
        tmp_path,
        "CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v)",
        "CREATE TABLE b(v)",
        "CREATE INDEX b_v ON b(v)",
        "CREATE TABLE c(k PRIMARY KEY, v) WITHOUT ROWID",
        "CREATE VIRTUAL TABLE words USING fts5(x)",
        "CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1)",
    )
    yield made
    made.replica.close()
    made.leader.close()


def test_rows_touch_their_table_and_no_other(pair: Pair) -> None:
    assert pair.tables("INSERT INTO a(v) VALUES (1)") == ("a",)
    assert pair.tables("INSERT INTO b VALUES (1)", "INSERT INTO c VALUES (1, 2)") == ("b", "c")
    assert pair.tables("DELETE FROM c") == ("c",)
    assert pair.tables("INSERT INTO _lbc VALUES ('epoch', 1)") == ()


def test_tables_behind_virtual_tables_count_as_these(pair: Pair) -> None:
    assert pair.tables("INSERT INTO words VALUES ('hello')") == ("words",)
    assert pair.tables("INSERT INTO boxes VALUES (1, 2, 3)") == ("boxes",)
    assert pair.tables("DROP TABLE words") == (SCHEMA, "words")


def test_changes_of_the_schema_are_told_with_the_tables_they_concern(pair: Pair) -> None:
    assert pair.tables("CREATE TABLE d(x)") == (SCHEMA, "d")
    assert pair.tables("CREATE INDEX a_v ON a(v)") == (SCHEMA, "a")
    assert pair.tables("DROP INDEX a_v") == (SCHEMA, "a")
    assert pair.tables("ALTER TABLE d ADD COLUMN y DEFAULT 5") == (SCHEMA, "d")
    assert pair.tables("ALTER TABLE d RENAME TO e") == (SCHEMA, "d", "e")
    assert pair.tables("CREATE VIEW f AS SELECT 1") == (SCHEMA,)
    assert pair.tables("CREATE TABLE _lbc_own(x)") == ()
    assert pair.tables("INSERT INTO a(v) VALUES (1)", "INSERT INTO b VALUES (1)", "ANALYZE") == ("a", "b")


def test_a_dropped_table_counts_by_the_state_before_the_epoch(pair: Pair) -> None:
    pair.tables("CREATE TABLE d(x)", "CREATE TABLE e(x)", "CREATE TABLE f(x)")
    assert pair.tables("DROP TABLE d") == (SCHEMA, "d")
    assert pair.tables("DROP TABLE e") == (SCHEMA, "e")
    assert pair.tables("INSERT INTO f VALUES (1)", "DROP TABLE f") == (SCHEMA, "f")


def test_a_page_that_changes_hands_counts_for_both(pair: Pair) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)"
    assert pair.tables(f"INSERT INTO c {rows} SELECT i, zeroblob(3000) FROM n") == ("c",)
    assert pair.tables("DELETE FROM c", f"INSERT INTO b {rows} SELECT zeroblob(3000) FROM n") == ("b", "c")


def test_a_write_into_the_middle_of_a_blob_touches_its_table(pair: Pair) -> None:
    pair.tables("INSERT INTO a(v) VALUES (zeroblob(50000))", "INSERT INTO b VALUES (1)")
    with pair.leader.db.blobopen("a", "v", 1) as blob:
        blob.seek(30000)
        blob.write(b"changed")
    assert pair.take() == ("a",)


@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
def test_a_vacuum_touches_all_tables_and_not_the_schema(auto_vacuum: int, tmp_path: Path) -> None:
    pair = Pair(tmp_path, "CREATE TABLE a(v)", "CREATE TABLE b(v)", "INSERT INTO a VALUES (1)", auto_vacuum=auto_vacuum)
    assert pair.tables("VACUUM") == ("a", "b")
    assert pair.tables("INSERT INTO b VALUES (zeroblob(9000))") == ("b",)
    assert pair.tables("DELETE FROM b", "PRAGMA incremental_vacuum") == ("b",)
    pair.replica.close()
    pair.leader.close()


def test_only_trees_of_which_the_shape_changes_are_walked_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    pair.tables(f"INSERT INTO a(v) {rows} SELECT zeroblob(500) FROM n", "INSERT INTO b VALUES (1)")
    walked: list[int] = []
    walk = Forest._walk

    def seen(forest: Forest, root: int, *rest: Any) -> None:
        walked.append(root)
        walk(forest, root, *rest)

    monkeypatch.setattr(Forest, "_walk", seen)
    assert pair.tables("UPDATE a SET v = randomblob(500) WHERE id = 250") == ("a",)
    assert walked == []
    assert pair.tables("UPDATE a SET v = zeroblob(9000) WHERE id = 250") == ("a",)
    (root,) = pair.leader.db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'a'").fetchone()
    assert walked == [root]
