"""Which SQLite a schema needs: what a newer one has written into it, an older one cannot read."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

from littlebigcluster.errors import FormatTooNew

OLDEST = (3, 35, 0)
"""The oldest SQLite that a node may have."""

# What can stand in a schema, with the version that brought it (https://sqlite.org/changes.html). A comment or a
# string that looks like it asks for a newer SQLite than needed, which refuses an old node and harms nobody.
_FEATURES = [
    (re.compile(r"\)\s*(?:WITHOUT\s+ROWID\s*,\s*)?STRICT\b", re.I), (3, 37, 0)),
    (re.compile(r"->"), (3, 38, 0)),
    (re.compile(r"\bunixepoch\s*\(", re.I), (3, 38, 0)),
    (re.compile(r"\bIS\s+(?:NOT\s+)?DISTINCT\s+FROM\b", re.I), (3, 39, 0)),
    (re.compile(r"\b(?:RIGHT|FULL)\s+(?:OUTER\s+)?JOIN\b", re.I), (3, 39, 0)),
    (re.compile(r"\b(?:unhex|timediff|octet_length)\s*\(", re.I), (3, 43, 0)),
    (re.compile(r"\bcontentless_delete\b", re.I), (3, 43, 0)),
    (re.compile(r"\b(?:concat|concat_ws|string_agg)\s*\(", re.I), (3, 44, 0)),
    (re.compile(r"\bjsonb\w*\s*\(", re.I), (3, 45, 0)),
]


def required_sqlite_version(schema: Iterable[str | None]) -> str:
    """The oldest SQLite that can read a database whose `sqlite_schema.sql` holds these texts, as "3.37.0"."""
    text = "\n".join(sql for sql in schema if sql)
    found = [version for pattern, version in _FEATURES if pattern.search(text)]
    return ".".join(map(str, max(found, default=OLDEST)))


def check_sqlite_version(required: str) -> None:
    """Raises FormatTooNew when this process's SQLite is older than `required`."""
    if tuple(map(int, required.split("."))) > sqlite3.sqlite_version_info:
        raise FormatTooNew(
            f"the cluster's schema needs SQLite {required}; this Python has {sqlite3.sqlite_version}:"
            " upgrade SQLite on this node"
        )
