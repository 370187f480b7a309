"""Which SQLite a schema needs."""

from __future__ import annotations

import sqlite3

import pytest

from littlebigcluster import FormatTooNew
from littlebigcluster.database import check_sqlite_version, required_sqlite_version


@pytest.mark.parametrize(
    ("sql", "version"),
    [
        ("CREATE TABLE t(a)", "3.35.0"),
        (None, "3.35.0"),
        ("CREATE TABLE t(a INT) STRICT", "3.37.0"),
        ("CREATE TABLE t(a INT PRIMARY KEY) WITHOUT ROWID, strict", "3.37.0"),
        ("CREATE TABLE t(a INT PRIMARY KEY) without rowid, STRICT", "3.37.0"),
        ("CREATE TABLE t(a INT PRIMARY KEY) STRICT, WITHOUT ROWID", "3.37.0"),
        ("CREATE TABLE strict(strict)", "3.35.0"),
        ("CREATE INDEX i ON t(a ->> '$.x')", "3.38.0"),
        ("CREATE VIEW v AS SELECT * FROM a FULL OUTER JOIN b", "3.39.0"),
        ("CREATE INDEX i ON t(jsonb(a))", "3.45.0"),
    ],
)
def test_features_tell_the_version(sql: str | None, version: str) -> None:
    assert required_sqlite_version([None, "CREATE TABLE x(y)", sql]) == version


def test_an_older_sqlite_is_told_to_upgrade() -> None:
    check_sqlite_version("3.35.0")
    check_sqlite_version(sqlite3.sqlite_version)
    with pytest.raises(FormatTooNew, match="upgrade SQLite"):
        check_sqlite_version("9.0.0")
