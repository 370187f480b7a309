"""Random transactions of all kinds, for the property test. The same seed makes the same history."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from random import Random

from littlebigcluster.database.primary import Primary
from littlebigcluster.errors import DeadlineExceeded, EpochTooLarge, NotAllowed

PAGE_SIZES = (512, 1024, 2048, 4096, 4096, 8192, 16384, 32768, 65536)
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


class Regret(Exception):
    """Raised by a transaction function that does not want its transaction any more."""


class History:
    """Runs random transactions on a primary, and counts what it has done."""

    def __init__(self, random: Random, counts: Counter[str]) -> None:
        self.random, self.counts = random, counts
        self._number = 0

    def batch(self, primary: Primary) -> None:
        """What goes into one epoch: no, one or several transactions, some of which fail."""
        for _ in range(self.random.randrange(7)):
            if self.random.random() < 0.04:
                primary.vacuum()
                self.counts["vacuum"] += 1
            else:
                self._transaction(primary)

    def _transaction(self, primary: Primary) -> None:
        end = self.random.choices(
            ("commit", "raise", "interrupt", "or rollback", "trigger", "too large"), (75, 10, 5, 5, 5, 1)
        )[0]

        def run(db: sqlite3.Connection) -> None:
            db.create_function("dice", 1, self.random.randrange)
            for _ in range(self.random.randrange(1, 5)):
                self._change(db)
            self._end(db, end)

        try:
            primary.transaction(run, deadline=None if end != "interrupt" else 0.0)
        except Regret:
            assert end == "raise"
        except DeadlineExceeded:
            assert end == "interrupt"
        except EpochTooLarge:
            assert end == "too large"
        except sqlite3.IntegrityError:
            assert end in ("or rollback", "trigger")
        except NotAllowed:
            assert end in ("or rollback", "trigger", "interrupt")
        else:
            assert end == "commit", end
        self.counts[end] += 1

    def _end(self, db: sqlite3.Connection, end: str) -> None:
        if end == "raise":
            raise Regret
        if end == "interrupt":
            db.execute(
                "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) INSERT INTO plain SELECT x FROM c"
            )
        elif end == "or rollback":
            db.execute("INSERT OR ROLLBACK INTO uniq VALUES (1), (1)")
        elif end == "trigger":
            db.execute("INSERT INTO refusing VALUES (1)")
        elif end == "too large":
            db.execute("INSERT INTO plain VALUES (zeroblob(24000000))")

    def _change(self, db: sqlite3.Connection) -> None:
        query = "SELECT name FROM sqlite_master WHERE name LIKE 't%' AND type = 'table' ORDER BY name"
        tables = [name for (name,) in db.execute(query)]
        changes = [self._insert, self._update, self._delete, self._large, self._savepoint]
        changes += [self._index, self._alter, self._truncate, self._drop]
        weights = [30, 14, 14, 5, 5, 5, 4, 2, 3]
        if len(tables) < 2 or self.random.random() < 0.07:
            self._create(db)
        elif self.random.random() < 0.1:
            self._virtual(db)
        else:
            self.random.choices(changes, weights)[0](db, self.random.choice(tables))

    def _create(self, db: sqlite3.Connection) -> None:
        columns = self.random.choice(
            (
                "(a INTEGER PRIMARY KEY, b, c)",
                "(a, b, c)",
                "(a PRIMARY KEY, b, c) WITHOUT ROWID",
                "(a, b, c, UNIQUE(a, b))",
            )
        )
        db.execute(f"CREATE TABLE {self._name('t')}{columns}")

    def _insert(self, db: sqlite3.Connection, table: str) -> None:
        rows = [
            (self.random.randrange(1 << 40), self._text(), self.random.randbytes(self.random.randrange(400)))
            for _ in range(self.random.randrange(1, 60))
        ]
        db.executemany(f"INSERT OR IGNORE INTO {table}(a, b, c) VALUES (?, ?, ?)", rows)

    def _large(self, db: sqlite3.Connection, table: str) -> None:
        content = self.random.randbytes(self.random.randrange(150_000))
        db.execute(
            f"INSERT OR IGNORE INTO {table}(a, b, c) VALUES (?, 1, ?)", (self.random.randrange(1 << 40), content)
        )

    def _update(self, db: sqlite3.Connection, table: str) -> None:
        db.execute(f"UPDATE {table} SET c = ? WHERE dice(4) = 0", (self.random.randbytes(self.random.randrange(200)),))

    def _delete(self, db: sqlite3.Connection, table: str) -> None:
        db.execute(f"DELETE FROM {table} WHERE dice(?) = 0", (self.random.randrange(1, 6),))

    def _savepoint(self, db: sqlite3.Connection, table: str) -> None:
        db.execute("SAVEPOINT s")
        self._large(db, table)
        self._delete(db, table)
        if self.random.random() < 0.5:
            db.execute("ROLLBACK TO s")
        db.execute("RELEASE s")

    def _index(self, db: sqlite3.Connection, table: str) -> None:
        name = f"ix_{table}_{self.random.randrange(2)}"
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone():
            db.execute(f"DROP INDEX {name}")
        else:
            db.execute(f"CREATE INDEX {name} ON {table}(b)")

    def _alter(self, db: sqlite3.Connection, table: str) -> None:
        if self.random.random() < 0.5:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {self._name('x')} DEFAULT {self.random.randrange(9)}")
        else:
            db.execute(f"ALTER TABLE {table} RENAME TO {self._name('t')}")

    def _truncate(self, db: sqlite3.Connection, table: str) -> None:
        db.execute(f"DELETE FROM {table}")

    def _drop(self, db: sqlite3.Connection, table: str) -> None:
        db.execute(f"DROP TABLE {table}")

    def _virtual(self, db: sqlite3.Connection) -> None:
        if self.random.random() < 0.1:
            db.execute(f"CREATE VIRTUAL TABLE {self._name('v')} USING fts5(z)")
        if self.random.random() < 0.5:
            rows = [(self._text(), self._text()) for _ in range(self.random.randrange(1, 20))]
            db.executemany("INSERT INTO ft VALUES (?, ?)", rows)
            if self.random.random() < 0.3:
                db.execute("DELETE FROM ft WHERE rowid % 3 = 0")
        else:
            boxes = [(self.random.randrange(300), self.random.random(), 2 + self.random.random()) for _ in range(10)]
            db.executemany("INSERT OR REPLACE INTO rt VALUES (?, ?, ?)", boxes)

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    def _text(self) -> str:
        return " ".join(
            f"{self.random.choice(WORDS)}{self.random.randrange(50)}" for _ in range(self.random.randrange(12))
        )


def create_database(path: str, random: Random) -> int:
    """The database of epoch 0, of a random kind; returns its page size."""
    page_size = random.choice(PAGE_SIZES)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA page_size = {page_size}")
    connection.execute(f"PRAGMA auto_vacuum = {random.choice((0, 0, 1, 2))}")
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in (
        "CREATE TABLE _lbc(key TEXT PRIMARY KEY, value)",
        "CREATE TABLE plain(x)",
        "CREATE TABLE uniq(a PRIMARY KEY)",
        "CREATE TABLE refusing(a)",
        "CREATE TRIGGER refuse BEFORE INSERT ON refusing BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
        "CREATE VIRTUAL TABLE ft USING fts5(x, y)",
        "CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1)",
    ):
        connection.execute(statement)
    connection.close()
    return page_size


def content(connection: sqlite3.Connection) -> str:
    """A digest of all that can be read: the schema, all rows of all tables, and a full-text search."""
    digest = hashlib.sha256()
    schema = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
    digest.update(repr(schema).encode())
    for kind, name, _ in schema:
        if kind == "table":
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                digest.update(repr(row).encode())
    for row in connection.execute("SELECT rowid FROM ft WHERE ft MATCH 'alpha1* OR zeta2*'"):
        digest.update(repr(row).encode())
    return digest.hexdigest()
