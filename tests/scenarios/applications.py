"""Databases of applications: everything that can stand in one, at random. The same seed makes the same database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

Content = dict[str, Any]

_SCHEMA = """
    CREATE TABLE author(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL COLLATE NOCASE UNIQUE);
    CREATE TABLE book(
        id INTEGER PRIMARY KEY, author REFERENCES author(id) ON DELETE CASCADE, title TEXT,
        length AS (length(title)) STORED
    );
    CREATE TABLE log(line);
    CREATE TABLE "we""ird tablé"("a b" TEXT, c BLOB, PRIMARY KEY("a b", c)) WITHOUT ROWID;
    CREATE INDEX book_title ON book(lower(title)) WHERE title IS NOT NULL;
    CREATE UNIQUE INDEX book_both ON book(author, title DESC);
    CREATE VIEW shelf AS SELECT name, title FROM author JOIN book ON book.author = author.id;
    CREATE TRIGGER logged AFTER INSERT ON book BEGIN INSERT INTO log VALUES ('book ' || new.id); END;
    CREATE TRIGGER shelved INSTEAD OF INSERT ON shelf BEGIN INSERT INTO author(name) VALUES (new.name); END;
    CREATE VIRTUAL TABLE words USING fts5(text, tokenize = 'porter');
    CREATE VIRTUAL TABLE places USING rtree(id, x0, x1);
"""


def make_application(path: Path, seed: int, *, rows: int = 60) -> None:
    """A SQLite file with its settings, its journal mode too, and its content drawn by `seed`."""
    random = Random(seed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {random.choice((512, 1024, 4096, 4096, 4096, 8192, 65536))}")
        db.execute(f"PRAGMA auto_vacuum = {random.choice((0, 0, 1, 2))}")
        db.execute(f"PRAGMA encoding = '{random.choice(('UTF-8', 'UTF-8', 'UTF-16le', 'UTF-16be'))}'")
        db.execute(f"PRAGMA journal_mode = {random.choice(('DELETE', 'WAL'))}")
        db.execute("PRAGMA foreign_keys = ON")
        db.executescript(_SCHEMA)
        for number in range(rows):
            change(db, random, number)
        db.execute(f"PRAGMA user_version = {random.randrange(1 << 31)}")
        db.execute(f"PRAGMA application_id = {random.randrange(1 << 31)}")
        if random.random() < 0.5:
            db.execute("ANALYZE")


def change(db: Any, random: Random, number: int) -> None:
    """One random change; the same on any database with the same content. `db` has an `execute`."""
    for statement, parameters in changes(random, number):
        db.execute(statement, parameters)


def changes(random: Random, number: int) -> list[tuple[str, tuple[Any, ...]]]:
    text = " ".join(random.choice(("alpha", "bétà", "gamma", "日本", "")) for _ in range(random.randrange(300)))
    match random.randrange(8):
        case 0 | 1:
            return [
                ("INSERT INTO author(name) VALUES (?)", (f"author {number} {text[:20]}",)),
                ("INSERT INTO book(author, title) SELECT max(id), ? FROM author", (text,)),
            ]
        case 2:
            return [('INSERT INTO "we""ird tablé" VALUES (?, ?)', (f"{number}", random.randbytes(9000)))]
        case 3:
            return [("INSERT INTO log VALUES (?)", (random.choice((None, 1.5, -(2**60), b"\0\xff", text)),))]
        case 4:
            return [("DELETE FROM log WHERE rowid % 3 = ?", (random.randrange(3),))]
        case 5:
            return [("INSERT INTO words VALUES (?)", (text,))]
        case 6:
            return [("INSERT INTO places VALUES (?, ?, ?)", (number, number, number + random.randrange(9)))]
        case _:
            return [("DELETE FROM author WHERE id % 5 = ?", (random.randrange(5),))]


def content_of(db: sqlite3.Connection) -> Content:
    """All that an application can find in its database, rowids and the tables under virtual ones included."""
    found: Content = {
        "user_version": db.execute("PRAGMA user_version").fetchone()[0],
        "application_id": db.execute("PRAGMA application_id").fetchone()[0],
    }
    objects = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT GLOB '*_lbc*'").fetchall()
    found["schema"] = sorted(objects, key=str)
    for name, sql in [(name, sql) for kind, name, _, sql in objects if kind in ("table", "view")]:
        what = "*" if "WITHOUT ROWID" in sql or sql.startswith(("CREATE VIRTUAL", "CREATE VIEW")) else "rowid, *"
        quoted = name.replace('"', '""')
        found[name] = db.execute(f'SELECT {what} FROM "{quoted}"').fetchall()
    return found


def content(path: Path) -> Content:
    """That of a file."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return content_of(db)
