"""export, import, clone: databases that move, by the command."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from littlebigcluster import Cluster, ClusterSettings
from tests.cli.programs import error_line, output
from tests.cli.test_reading_commands import led_cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A cluster with a table of two rows since epoch 3, that was released in epoch 4."""
    asyncio.run(led_cluster(tmp_path / "store"))
    return str(tmp_path / "store")


def jobs(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert db.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%lbc%'").fetchall() == []
        return db.execute("SELECT name FROM job ORDER BY id").fetchall()


def test_export_writes_a_plain_file(store: str, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    said = output("-p", store, "export", "-o", str(path))
    assert said.startswith(f"{path}: epoch 4 of 20")
    assert said.strip().endswith("checked")
    assert jobs(path) == [("one",), ("zwei",)]
    error = error_line("-p", store, "export", "-o", str(path))
    assert error == f"Error: {path} exists already, and is left as it is\n"
    output("-p", store, "export", "-o", str(path), "--epoch", "2", "--force")
    assert jobs(path) == []


def test_import_makes_a_cluster_of_a_file(tmp_path: Path) -> None:
    path, store = tmp_path / "app.db", str(tmp_path / "new")
    assert "does not exist" in error_line("-p", store, "import", str(path))
    path.write_text("no database at all, but long enough to be looked at" * 20)
    assert "is not a SQLite database, or it is encrypted" in error_line("-p", store, "import", str(path))
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE job(id INTEGER PRIMARY KEY, name); INSERT INTO job(name) VALUES ('x')")
    said = output(
        "-p",
        store,
        "import",
        str(path),
        "--id",
        "lol",
        "--page-size",
        "8192",
        "--compression",
        "none",
        "--foreign-keys",
    )
    assert said == f'{Cluster(store).store.url}: cluster "lol" begins with {path}, 8.0 KiB\n'
    settings = asyncio.run(Cluster(store).status()).identity.settings
    assert settings == ClusterSettings(page_size=8192, compression="none", foreign_keys=True)
    assert '"name": "x"' in output("-p", store, "sql", "SELECT name FROM job", "--json")
    assert "already; join it" in error_line("-p", store, "import", str(path))


def test_clone_makes_a_cluster_of_another(store: str, tmp_path: Path) -> None:
    dest = str(tmp_path / "dest")
    said = output("clone", store, dest, "--epoch", "3", "--id", "copy")
    assert said.startswith(f'{Cluster(dest).store.url}: cluster "copy" begins with epoch 3 of 20')
    assert '"n": 2' in output("-p", dest, "sql", "SELECT count(*) AS n FROM job", "--json")
    assert "already; join it" in error_line("clone", store, dest)
    assert "no cluster at" in error_line("clone", str(tmp_path / "none"), str(tmp_path / "other"))
    assert 'not "other"' in error_line("--cluster", "other", "clone", store, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists() or list((tmp_path / "other").rglob("*.json")) == []
