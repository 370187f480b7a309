"""restore, and sql at a point in time: on the store alone."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import littlebigcluster as lbc
from littlebigcluster.cli.points import parse_point
from tests.cli.programs import LBC, environment, error_line, output, run
from tests.cli.test_reading_commands import led_cluster


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A cluster with a table of two rows since epoch 3, that was released in epoch 4."""
    asyncio.run(led_cluster(tmp_path / "store"))
    return str(tmp_path / "store")


def jobs(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name FROM job ORDER BY id").fetchall()


def test_restore_writes_the_file_and_says_what_it_is(store: str, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    said = output("-p", store, "restore", "-o", str(path))
    assert said.startswith(f"{path}: epoch 4 of 20")
    assert said.strip().endswith("checked")
    assert jobs(path) == [("one",), ("zwei",)]
    error = error_line("-p", store, "restore", "-o", str(path), "--latest")
    assert error == f"Error: {path} exists already, and is left as it is\n"
    output("-p", store, "restore", "-o", str(path), "--epoch", "2", "--force")
    assert jobs(path) == []


def test_sql_and_restore_take_the_same_points(store: str, tmp_path: Path) -> None:
    now = datetime.now(UTC).isoformat()
    for point, count in [
        (["--epoch", "2"], 0),
        (["--epoch", "3"], 2),
        (["--ago", "0s"], 2),
        (["--at", now], 2),
        ([], 2),
    ]:
        assert f'"{count}"' in output(
            "-p", store, "sql", "SELECT cast(count(*) AS text) AS n FROM job", "--json", *point
        )
        path = tmp_path / "x.db"
        output("-p", store, "restore", "-o", str(path), "--force", *point)
        assert len(jobs(path)) == count


def test_bad_points_are_refused_in_one_line(store: str) -> None:
    sql = ("-p", store, "sql", "SELECT 1")
    assert "epoch 9 is not in the log, which goes from epoch 0 (" in error_line(*sql, "--epoch", "9")
    assert "is still to come" in error_line(*sql, "--at", "2999-01-01")
    assert "is not in the log, which goes from" in error_line(*sql, "--ago", "5000d")
    assert "'soon' is not a date and time (2026-11-22T10:00Z; without a zone, this machine's)" in error_line(
        *sql, "--at", "soon"
    )
    assert "'7' is not how long ago" in error_line(*sql, "--ago", "7")
    assert "exclude each other" in error_line(*sql, "--ago", "1s", "--epoch", "1")
    assert "exclude each other" in error_line("-p", store, "restore", "-o", "x", "--latest", "--epoch", "1")


def test_points_are_read_as_people_write_them() -> None:
    assert parse_point("12") == 12
    assert parse_point("1d12h") == timedelta(hours=36)
    assert parse_point("90m") == timedelta(hours=1.5)
    assert parse_point("1.5h") == timedelta(hours=1.5)
    assert parse_point("2026-11-22T10:00Z") == datetime(2026, 11, 22, 10, tzinfo=UTC)
    local = parse_point("2026-11-22")
    assert isinstance(local, datetime)
    assert local == datetime(2026, 11, 22).astimezone()
    assert [parse_point(text) for text in ("", "h", "12 h", "-5", "yesterday", "1y")] == [None] * 6


def test_rollback_says_what_it_would_do_and_does_it_with_yes(store: str) -> None:
    count = ("-p", store, "sql", "SELECT cast(count(*) AS text) AS n FROM job", "--json")
    said = output("-p", store, "rollback", "--to", "2").splitlines()
    assert said[0].startswith("From epoch 4 (20")
    assert " to epoch 2 (20" in said[0]
    assert any("job" in line and "2" in line for line in said[1:-1])  # two rows removed
    assert said[-1].startswith("Nothing was done. With --yes")
    further = output("-p", store, "rollback", "--to", "1").splitlines()
    assert "dropped table job" in further
    goes_back = "The schema goes back, too: an application that has migrated it must be able to do so again."
    assert (further[-2], goes_back in said) == (goes_back, False)
    assert '"2"' in output(*count)
    (done,) = output("-p", store, "rollback", "--to", "2", "--yes").splitlines()
    assert done == "Epoch 6 is as epoch 2 was. To undo it: lbc rollback --to 5 --yes"
    assert '"0"' in output(*count)
    output("-p", store, "rollback", "--to", "5", "--yes")
    assert '"2"' in output(*count)
    assert "epoch 99 is not in the log" in error_line("-p", store, "rollback", "--to", "99")


def test_verify_tells_what_is_wrong_and_what_is_left(store: str) -> None:
    said = output("-p", store, "verify", "--deep").splitlines()
    assert said[0].startswith("4 epochs, 1 snapshot, ")
    assert said[0].endswith("checked (each epoch replayed): all is well")
    assert said[1] == "Restorable: epochs 0 to 4"
    Path(store, ".lbc", "00000000000000000003.wal").write_bytes(b"x" * 100)
    done = run("-p", store, "verify")
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert said[0].startswith(".lbc/00000000000000000003.wal: expected ")
    assert said[1].endswith("checked (hashes, chain and snapshots): 1 fault")
    assert said[2] == "Restorable: epochs 0 to 2"
    found = json.loads(run("-p", store, "verify", "--json").stdout)
    assert found["findings"][0]["object"] == ".lbc/00000000000000000003.wal"
    assert found["restorable"] == [[0, 2]]


def test_log_shows_what_is_asked_for(store: str) -> None:
    def epochs(*options: str) -> list[int]:
        return [json.loads(line)["epoch"] for line in output("-p", store, "log", "--json", *options).splitlines()]

    assert epochs() == [1, 2, 3, 4]
    assert epochs("--limit", "2") == [3, 4]
    assert epochs("--since", "3") == [3, 4]
    assert epochs("--since", "100d", "--limit", "1") == [4]
    assert epochs("--since", "0s") == [4]
    assert epochs("--term", "1", "--limit", "3") == [2, 3, 4]
    assert epochs("--term", "2") == []
    leader = json.loads(output("-p", store, "log", "--json").splitlines()[0])["leader"]["uuid"]
    assert epochs("--leader", leader[:9]) == epochs("--leader", leader[-8:]) == [1, 2, 3]
    assert output("-p", store, "log", "--term", "9") == "no such epochs\n"
    assert "is still to come" in error_line("-p", store, "log", "--since", "2999-01-01")


async def test_log_follows(store: str) -> None:
    following = await asyncio.create_subprocess_exec(
        *LBC, "-p", store, "log", "--follow", "--json", "--limit", "1",
        stdout=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        assert following.stdout is not None
        assert json.loads(await following.stdout.readline())["epoch"] == 4
        await led_on(Path(store))
        assert [json.loads(await following.stdout.readline())["epoch"] for _ in range(3)] == [5, 6, 7]
    finally:
        following.send_signal(signal.SIGINT)
        await following.wait()


async def led_on(path: Path) -> None:
    async with lbc.Cluster(path).join(can_lead=True, settings=lbc.NodeSettings(epoch_interval=0)) as node:
        await node.wait_until_leader(timeout=30)
        await node.execute("INSERT INTO job(name) VALUES ('more')")


@pytest.mark.parametrize("command", ["restore", "export"])
def test_a_disk_that_is_full_is_said_and_nothing_is_left(store: str, tmp_path: Path, command: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    # No file may be larger than a page: the write fails as it does where no space is left.
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1)); "
    limited += "from littlebigcluster.cli.app import main; main()"
    program = [sys.executable, "-W", "error", "-c", limited]
    done = run("-p", store, command, "-o", str(target / "x.db"), program=program, SQLITE_TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert list(target.iterdir()) == []
