"""Plain statements as transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement has done, as `sqlite3.Cursor` tells it."""

    rows: list[tuple[Any, ...]]
    """Of RETURNING, or of a SELECT."""
    rowcount: int
    lastrowid: int | None


def run_one(sql: str, parameters: Sequence[Any] | Mapping[str, Any]) -> Callable[[sqlite3.Connection], Result]:
    def run(db: sqlite3.Connection) -> Result:
        cursor = db.execute(sql, parameters)
        rows = cursor.fetchall()
        return Result(rows, cursor.rowcount, cursor.lastrowid)

    return run


def run_many(
    sql: str, parameters: Sequence[Sequence[Any] | Mapping[str, Any]]
) -> Callable[[sqlite3.Connection], Result]:
    def run(db: sqlite3.Connection) -> Result:
        cursor = db.executemany(sql, parameters)
        return Result([], cursor.rowcount, None)

    return run


def run_script(script: str) -> Callable[[sqlite3.Connection], None]:
    def run(db: sqlite3.Connection) -> None:
        db.executescript(script)

    return run
