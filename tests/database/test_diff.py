"""The difference of two states: against a model, and for all that SQLite can hold."""

from __future__ import annotations

import math
import random
import sqlite3
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from littlebigcluster.database.diff import Counts, Diff, TableDiff, diff
from littlebigcluster.database.tables import SchemaChange, describe, quoted, schema

Rows = list[tuple[Any, ...]]


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


_copies: list[sqlite3.Connection] = []


@pytest.fixture(autouse=True)
def _closed_copies() -> Iterator[None]:
    yield
    while _copies:
        _copies.pop().close()


def copied(db: sqlite3.Connection) -> sqlite3.Connection:
    """Open until the end of the test."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    _copies.append(copy)
    db.backup(copy)
    return copy


def changes(db: sqlite3.Connection, script: str, table: str | None = None) -> Diff:
    """What differs after `script`. The connections live as long as the result."""
    after = copied(db)
    after.executescript(script)
    return diff(db, after, table=table)


def only(found: Diff) -> TableDiff:
    (table,) = found.tables
    return table


def told(table: TableDiff) -> list[tuple[Any, ...]]:
    return [(change.kind, change.rowid, change.old, change.new) for change in table.rows()]


# -- the model ---------------------------------------------------------------------------------------------------

TABLES = {
    "plain": "(id INTEGER PRIMARY KEY, a, b)",
    "none": "(id, a, b)",
    "text": "(id TEXT PRIMARY KEY, a, b)",
    "nocase": "(id TEXT COLLATE NOCASE PRIMARY KEY, a, b)",
    "untyped": "(id PRIMARY KEY, a, b) WITHOUT ROWID",
    "composite": "(id, a COLLATE RTRIM, b, PRIMARY KEY(a DESC, id)) WITHOUT ROWID",
    "nullable": "(id, a, b, PRIMARY KEY(id, a))",
    "strict": "(id INT PRIMARY KEY, a ANY, b BLOB) STRICT",
    "generated": "(id REAL PRIMARY KEY, a, b, c AS (typeof(a) || b), d AS (a) STORED)",
    "shadowed": "(id PRIMARY KEY, a, b, rowid, _rowid_, oid)",
    "we \"ird' Name": "(id UNIQUE, a, b)",
}

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 1.0, 2, -1, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), math.inf, -math.inf, 0.5]),
    st.integers(-3, 3),
)
TEXTS = st.sampled_from(["", "a", "A", "a ", "b", "1", "ä", "\U0001f600", "\uffff", "\x00", "z"])
VALUES = st.one_of(st.none(), NUMBERS, TEXTS, st.sampled_from([b"", b"a", b"1", b"\xff\x00"]))
STEPS = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "update", "replace"]), VALUES, VALUES, VALUES), max_size=25
)


def step(db: sqlite3.Connection, table: str, kind: str, values: tuple[Any, ...]) -> None:
    name = quoted(table)
    sql = {
        "insert": f"INSERT OR IGNORE INTO {name}(id, a, b) VALUES (:id, :a, :b)",
        "replace": f"INSERT OR REPLACE INTO {name}(id, a, b) VALUES (:id, :a, :b)",
        "update": f"UPDATE OR IGNORE {name} SET a = :a, b = :b WHERE id IS :id",
        "delete": f"DELETE FROM {name} WHERE id IS :id OR (a IS :a AND b IS :b)",
    }[kind]
    with suppress(sqlite3.IntegrityError):  # a type that the table does not take
        db.execute(sql, dict(zip(("id", "a", "b"), values, strict=True)))


def exact(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row whose numbers know their type."""
    return tuple((type(value).__name__, value) for value in row)


def content(db: sqlite3.Connection, table: TableDiff) -> Counter[Any]:
    side = table.after or table.before
    assert side is not None
    columns = [*(["rowid"] if table.identified_by == "rowid" else []), *map(quoted, side[1].columns)]
    return Counter(map(exact, db.execute(f"SELECT {', '.join(columns)} FROM {quoted(table.name)}")))


def apply(db: sqlite3.Connection, table: TableDiff) -> None:
    """Make the state before the state after: all goes that was, then all comes that is."""
    assert table.before is not None
    name, found = quoted(table.name), list(table.rows())
    columns = table.before[1].columns
    by_rowid = table.identified_by == "rowid"
    for change in found:
        if change.old is None:
            continue
        is_same = " AND ".join(
            f"typeof({quoted(column)}) = typeof(?) AND {quoted(column)} COLLATE BINARY IS ?" for column in columns
        )
        arguments = [value for value in change.old for _ in range(2)]
        if by_rowid:
            gone = db.execute(f"DELETE FROM {name} WHERE rowid = ? AND {is_same}", [change.rowid, *arguments])
            assert gone.rowcount == 1
        elif table.before[1].rowid:
            one = f"SELECT {table.before[1].rowid} FROM {name} WHERE {is_same} LIMIT 1"
            assert db.execute(f"DELETE FROM {name} WHERE {table.before[1].rowid} = ({one})", arguments).rowcount == 1
        else:  # of several that nothing tells apart, one goes
            gone = db.execute(f"DELETE FROM {name} WHERE {is_same}", arguments).rowcount
            assert gone >= 1
            into = f"INSERT INTO {name}({', '.join(map(quoted, columns))}) VALUES ({', '.join('?' * len(columns))})"
            db.executemany(into, [change.old] * (gone - 1))
    for change in found:
        if change.new is not None:
            into = ["rowid"] if by_rowid else []
            values = [change.rowid] if by_rowid else []
            names = ", ".join(into + [quoted(column) for column in columns])
            values += change.new
            db.execute(f"INSERT INTO {name}({names}) VALUES ({', '.join('?' * len(values))})", values)


def expected_counts(table: TableDiff, before: sqlite3.Connection, after: sqlite3.Connection) -> Counts:
    """By dictionaries."""
    if table.identified_by == "content":
        old, new = content(before, table), content(after, table)
        return Counts(added=(new - old).total(), removed=(old - new).total())
    states = []
    for db in (before, after):
        keys = [quoted(name) for name in table.key]
        rowid = "rowid" if table.before and table.before[1].rowid else "NULL"
        selected = ", ".join([rowid, *keys, *map(quoted, table.columns_before)])
        rows = {}
        for number, *values in db.execute(f"SELECT {selected} FROM {quoted(table.name)}"):
            key = tuple(values[: len(keys)])
            is_loose = not keys or None in key
            rows[key, number if is_loose else None] = exact(tuple(values[len(keys) :]))
        states.append(rows)
    a, b = states
    return Counts(len(b.keys() - a.keys()), len(a.keys() - b.keys()), sum(a[key] != b[key] for key in a.keys() & b))


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(former=STEPS, later=STEPS)
@example(former=[("insert", None, None, None)] * 3, later=[("delete", None, None, None), ("insert", None, None, None)])
def test_the_difference_makes_the_one_state_the_other(
    table: str, former: list[tuple[Any, ...]], later: list[tuple[Any, ...]]
) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as before:
        before.execute(f"CREATE TABLE {quoted(table)}{TABLES[table]}")
        for kind, *values in former:
            step(before, table, kind, tuple(values))
        with closing(copied(before)) as after, closing(copied(before)) as made:
            for kind, *values in later:
                step(after, table, kind, tuple(values))
            found = only(diff(before, after))
            assert found.counts() == expected_counts(found, before, after)
            apply(made, found)
            assert content(made, found) == content(after, found)
            if not found.key or not any(change.rowid for change in diff(made, after).tables[0].rows()):
                assert not only(diff(made, after)).counts()


# -- rows ----------------------------------------------------------------------------------------------------------


def test_what_tells_rows_apart(db: sqlite3.Connection) -> None:
    for name, columns in TABLES.items():
        db.execute(f"CREATE TABLE {quoted(name)}{columns}")
    db.execute("INSERT INTO shadowed(id) VALUES (NULL), (NULL)")
    found = {table.name: (table.identified_by, table.key) for table in diff(db, db).tables}
    assert found == {
        "plain": ("key", ("id",)),
        "none": ("rowid", ()),
        "text": ("key", ("id",)),
        "nocase": ("key", ("id",)),
        "untyped": ("key", ("id",)),
        "composite": ("key", ("a", "id")),
        "nullable": ("key", ("id", "a")),
        "strict": ("key", ("id",)),
        "generated": ("key", ("id",)),
        "shadowed": ("content", ()),
        "we \"ird' Name": ("rowid", ()),
    }


def test_values_are_compared_as_they_are_stored(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v COLLATE NOCASE)")
    values = [1, 1.0, "1", b"1", None, "a", "A", math.inf, math.nan]
    for old in values:
        db.execute("REPLACE INTO t VALUES (1, ?)", (old,))
        for new in values:
            after = copied(db)
            after.execute("REPLACE INTO t VALUES (1, ?)", (new,))
            was, now = [None if value != value else value for value in (old, new)]  # SQLite has no NaN
            alike = type(was) is type(now) and was == now
            assert told(only(diff(db, after))) == ([] if alike else [("changed", None, (1, was), (1, now))])
            after.close()


def test_rows_of_a_key_come_in_its_order_and_of_a_rowid_with_it(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(v); INSERT INTO t VALUES ('a'), ('b'), ('c')")
    found = changes(db, "UPDATE t SET v = 'x' WHERE v = 'b'; DELETE FROM t WHERE v = 'a'; INSERT INTO t VALUES ('d')")
    assert told(only(found)) == [
        ("removed", 1, ("a",), None),
        ("changed", 2, ("b",), ("x",)),
        ("added", 4, None, ("d",)),
    ]
    assert only(found).counts() == Counts(added=1, removed=1, changed=1)


def test_rows_without_a_key_are_told_apart_by_the_rowid(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(id PRIMARY KEY, v); INSERT INTO t VALUES (NULL, 1), (NULL, 2), (NULL, 3), (7, 7)")
    found = changes(
        db, "UPDATE t SET v = 9 WHERE v IN (2, 7); DELETE FROM t WHERE v = 1; INSERT INTO t VALUES (NULL, 3)"
    )
    assert told(only(found)) == [
        ("removed", 1, (None, 1), None),
        ("changed", 2, (None, 2), (None, 9)),
        ("added", 5, None, (None, 3)),
        ("changed", None, (7, 7), (7, 9)),
    ]


def test_equal_numbers_of_two_types_have_an_order_in_content_too(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE t(v, rowid, oid, _rowid_)")
    db.executemany("INSERT INTO t(v) VALUES (?)", [(1.0,), (1,), (2,), (1.0,), (1,)])
    found = only(changes(db, "UPDATE t SET v = 1.0 WHERE v = 2; INSERT INTO t(v) VALUES (1)"))
    assert found.identified_by == "content"
    assert [(kind, exact((old or new)[:1])) for kind, _, old, new in told(found)] == [
        ("added", (("int", 1),)),
        ("added", (("float", 1.0),)),
        ("removed", (("int", 2),)),
    ]


def test_text_that_is_not_valid_is_compared_too(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(id TEXT PRIMARY KEY); INSERT INTO t VALUES (CAST(x'ff41' AS TEXT)), ('\ue000')")
    found = changes(db, "DELETE FROM t WHERE id = CAST(x'ff41' AS TEXT); INSERT INTO t VALUES (CAST(x'fe' AS TEXT))")
    assert told(only(found)) == [("added", None, None, ("\udcfe",)), ("removed", None, ("\udcffA",), None)]


def test_a_collation_that_is_not_here_is_not_needed(db: sqlite3.Connection) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        made.create_collation("length", lambda a, b: len(a) - len(b))
        made.executescript("CREATE TABLE t(id TEXT COLLATE length PRIMARY KEY, v); INSERT INTO t VALUES ('aa', 1)")
        made.backup(db)
        found = changes(db, "")
        assert not only(found).counts()
        made.execute("UPDATE t SET v = 2")
        with closing(copied(made)) as later:
            assert told(only(diff(db, later))) == [("changed", None, ("aa", 1), ("aa", 2))]


def test_utf_16_is_read_in_its_own_order(db: sqlite3.Connection) -> None:
    db.executescript("PRAGMA encoding = 'UTF-16le'; CREATE TABLE t(id TEXT PRIMARY KEY, v)")
    letters = ["a", "b", "ab", "\u0100", "\U0001f600", "\ue000", "\u6101"]
    db.executemany("INSERT INTO t VALUES (?, 1)", [(letter,) for letter in letters])
    assert only(changes(db, "UPDATE t SET v = 2")).counts() == Counts(changed=len(letters))


# -- columns and tables ----------------------------------------------------------------------------------------------


def test_common_columns_are_compared_and_the_others_told(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); INSERT INTO t VALUES (1, 'x', 'y'), (2, 'x', 'y')")
    found = changes(
        db, "ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN C DEFAULT 7; UPDATE t SET b = 'z' WHERE id = 2"
    )
    table = only(found)
    assert (table.columns_before, table.columns_after, table.columns) == (
        ("id", "a", "b"), ("id", "b", "C"), ("id", "b"),
    )  # fmt: skip
    assert told(table) == [("changed", None, (2, "x", "y"), (2, "z", 7))]
    assert [(change.kind, change.type, change.name) for change in found.schema] == [("altered", "table", "t")]


def test_a_table_with_another_key_is_compared_by_content(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(a PRIMARY KEY, b); INSERT INTO t VALUES (1, 2), (3, 4), (5, 5)")
    remade = "DROP TABLE t; CREATE TABLE T(b PRIMARY KEY, A); INSERT INTO t VALUES (2, 1), (4.0, 3), (5, 5)"
    table = only(changes(db, remade))
    assert table.identified_by == "content"
    assert told(table) == [("removed", None, (3, 4), None), ("added", None, None, (4.0, 3))]
    nothing_in_common = "DROP TABLE t; CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)"
    assert only(changes(db, nothing_in_common)).counts() == Counts(added=2, removed=3)


def test_a_table_that_is_there_once_counts_as_a_whole(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE old(v); INSERT INTO old VALUES (1), (2)")
    found = changes(db, "DROP TABLE old; CREATE TABLE new(id PRIMARY KEY); INSERT INTO new VALUES ('x')")
    new, old = found.tables
    assert (new.counts(), old.counts()) == (Counts(added=1), Counts(removed=2))
    assert told(new) == [("added", None, None, ("x",))]
    assert told(old) == [("removed", 1, (1,), None), ("removed", 2, (2,), None)]


def test_the_schema_is_compared_by_its_statements(db: sqlite3.Connection) -> None:
    db.executescript("""
        CREATE TABLE _lbc(key); CREATE TABLE _LBC_x(key);
        CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v UNIQUE); CREATE TABLE b(v);
        CREATE INDEX i ON a(v); CREATE VIEW v AS SELECT 1;
        CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END;
    """)
    found = changes(db, """
        INSERT INTO _lbc VALUES (1); INSERT INTO a(v) VALUES (1); ANALYZE;
        DROP INDEX i; CREATE INDEX I ON a(v DESC); DROP VIEW v; CREATE TABLE v(x); DROP TRIGGER t;
        CREATE VIRTUAL TABLE "f" USING fts5(body); ALTER TABLE b RENAME TO c;
    """)  # fmt: skip
    assert [(change.kind, change.type, change.name) for change in found.schema] == [
        ("altered", "index", "I"),
        ("dropped", "table", "b"),
        ("created", "table", "c"),
        ("created", "table", "f"),
        ("created", "table", "v"),
        ("dropped", "trigger", "t"),
        ("dropped", "view", "v"),
    ]
    assert found.schema[0] == SchemaChange(
        "altered", "index", "I", "CREATE INDEX i ON a(v)", "CREATE INDEX I ON a(v DESC)"
    )
    assert [(table.name, table.counts()) for table in found.tables if table.counts()] == [("a", Counts(added=1))]


def test_one_table_and_what_belongs_to_it(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE a(v); CREATE TABLE b(v)")
    script = "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); CREATE INDEX on_a ON a(v); CREATE INDEX on_b ON b(v)"
    found = changes(db, script, "A")
    assert [change.name for change in found.schema] == ["on_a"]
    assert only(found).counts() == Counts(added=1)
    with pytest.raises(ValueError, match='there is no table "c" in either state'):
        changes(db, script, "c")


# -- virtual tables --------------------------------------------------------------------------------------------------


def test_virtual_tables_are_compared_by_what_they_give(db: sqlite3.Connection) -> None:
    db.executescript("""
        CREATE VIRTUAL TABLE "full ""text" /* USING rtree */ USING fts5(body, other UNINDEXED);
        INSERT INTO "full ""text" VALUES ('one', 1), ('two', 2);
        CREATE VIRTUAL TABLE place USING rtree(id, low, high, +label);
        INSERT INTO place VALUES (1, 0, 1, 'x'), (2, 5, 6, 'y');
        CREATE TABLE place_data(v);  -- none of R-Tree's
    """)
    assert [each.name for each in schema(db)] == ['full "text', "place", "place_data"]
    found = changes(db, """
        UPDATE "full ""text" SET body = 'zwei' WHERE rowid = 2; DELETE FROM place WHERE id = 1;
        UPDATE place SET label = 'z'; INSERT INTO "full ""text"("full ""text") VALUES ('optimize');
        INSERT INTO place_data VALUES (1);
    """)  # fmt: skip
    text, place, data = found.tables
    assert told(text) == [("changed", 2, ("two", "2"), ("zwei", "2"))] or told(text) == [
        ("changed", 2, ("two", 2), ("zwei", 2))
    ]
    assert told(place) == [
        ("removed", 1, (1, 0.0, 1.0, "x"), None),
        ("changed", 2, (2, 5.0, 6.0, "y"), (2, 5.0, 6.0, "z")),
    ]
    assert data.counts() == Counts(added=1)


def test_a_virtual_table_whose_module_is_not_here_is_named(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(v); PRAGMA writable_schema = ON")
    db.execute(
        "INSERT INTO sqlite_schema VALUES ('table', 'far', 'far', 0, 'CREATE VIRTUAL TABLE far USING nowhere(x)')"
    )
    db.execute("PRAGMA writable_schema = RESET")
    far, t = changes(db, "INSERT INTO t VALUES (1)").tables
    assert (far.unreadable, far.counts(), told(far)) == ("no such module: nowhere", Counts(), [])
    assert t.counts() == Counts(added=1)


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["id INTEGER PRIMARY KEY, v", "id TEXT COLLATE NOCASE PRIMARY KEY, v"])
def test_memory_does_not_grow_with_the_table(db: sqlite3.Connection, columns: str) -> None:
    db.execute(f"CREATE TABLE t({columns})")
    rows = [(number, random.Random(number).randbytes(200)) for number in range(20_000)]
    db.executemany("INSERT INTO t VALUES (?, ?)", rows)
    found = only(changes(db, "UPDATE t SET v = 1 WHERE id % 2"))
    del rows
    tracemalloc.start()
    try:
        assert found.counts() == Counts(changed=10_000)
        assert sum(1 for _ in found.rows()) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_damaged_index_does_not_lead_to_a_wrong_answer(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(id TEXT NOT NULL PRIMARY KEY); INSERT INTO t VALUES ('a'), ('b')")
    after = copied(db)
    after.executescript("PRAGMA writable_schema = ON")
    after.execute(
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE t(id TEXT COLLATE NOCASE NOT NULL PRIMARY KEY)' WHERE sql > ''"
    )
    after.executescript("PRAGMA writable_schema = RESET; INSERT INTO t VALUES ('C')")
    after.execute("PRAGMA writable_schema = ON")
    after.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE t(id TEXT NOT NULL PRIMARY KEY)' WHERE sql > ''")
    after.execute("PRAGMA writable_schema = RESET")
    with pytest.raises(sqlite3.DatabaseError, match="t is not in the order of its keys"):
        only(diff(db, after)).counts()


def test_describe_names_the_rowid_as_it_can_be_asked_for(db: sqlite3.Connection) -> None:
    db.executescript("CREATE TABLE t(RowId, v); CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID")
    assert [describe(db, each).rowid for each in schema(db)] == ["_rowid_", None]
