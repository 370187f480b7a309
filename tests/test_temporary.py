"""Temporary directories whose makers die, live, are just making them, or are somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import temporary
from littlebigcluster.temporary import LOCK, MARK, TemporaryDirectory, sweep, temporary_directory

MAKER = """
import sys
from pathlib import Path
from littlebigcluster.temporary import TemporaryDirectory
made = TemporaryDirectory(Path(sys.argv[1]))
(made.path / "replica").mkdir()
(made.path / "replica" / "replica.db").write_bytes(bytes(100000))
(made.path / "primary.db").write_bytes(bytes(100000))
print(made.path, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def made_elsewhere(parent: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A directory of another process, which lives until it is killed."""
    command = [sys.executable, "-c", MAKER, str(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Path(process.stdout.readline().strip()), process
        finally:
            process.kill()


def left_behind(parent: Path) -> Path:
    """What a process that was killed leaves."""
    made = TemporaryDirectory(parent)
    (made.path / "replica").mkdir()
    (made.path / "replica" / "replica.db").write_bytes(b"x")
    (made.path / "primary.db").write_bytes(b"x")
    assert made._lock is not None
    made._lock.close()
    return made.path


def names(directory: Path) -> set[str]:
    """But for what SQLite keeps beside a lock."""
    return {each.name for each in directory.iterdir()} - {f"{LOCK}-journal"}


def test_what_a_killed_process_leaves_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with made_elsewhere(tmp_path) as (dead, killed), made_elsewhere(tmp_path) as (alive, _):
        killed.kill()
        killed.wait()
        before = names(alive)
        sweep(tmp_path)
        assert names(tmp_path) == {alive.name}
        assert names(alive) == before
    assert f"removed {dead}, left behind by a process that died" in caplog.text


def test_a_directory_of_this_process_is_left_alone_and_stays_locked(tmp_path: Path) -> None:
    with TemporaryDirectory(tmp_path) as path:
        (path / "replica.db").write_bytes(b"x")
        descriptors = len(list(Path("/dev/fd").iterdir()))
        for _ in range(20):
            sweep(tmp_path)
        assert len(list(Path("/dev/fd").iterdir())) <= descriptors + 1, "SQLite keeps one, and uses it again"
        command = "import sys, pathlib, littlebigcluster.temporary as t; t.sweep(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", command, str(tmp_path)], check=True)
        assert names(path) == {LOCK, MARK, "replica.db"}
    assert names(tmp_path) == set()


@pytest.mark.parametrize("step", ["named", "locked", "marked"])
def test_a_directory_that_is_just_being_made_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    swept = []

    def then_sweep(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            with monkeypatch.context() as inner:
                inner.setattr(owner, name, original)
                swept.append(sweep(tmp_path))
            return result

        monkeypatch.setattr(owner, name, call)

    then_sweep(
        *{"named": (temporary.tempfile, "mkdtemp"), "locked": (temporary, "lock"), "marked": (Path, "write_text")}[step]
    )
    made = TemporaryDirectory(tmp_path)
    monkeypatch.undo()
    assert swept
    assert names(made.path) == {LOCK, MARK}
    sweep(tmp_path)
    assert names(made.path) == {LOCK, MARK}, "and it is locked"
    made.close()


def test_of_two_that_sweep_at_once_one_removes_and_the_other_passes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    left_behind(tmp_path)
    clear = temporary._clear

    def clear_and_meet(directory: Path | int) -> None:
        monkeypatch.undo()
        sweep(tmp_path)
        assert len(names(tmp_path)) == 1
        clear(directory)

    monkeypatch.setattr(temporary, "_clear", clear_and_meet)
    sweep(tmp_path)
    assert names(tmp_path) == set()
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("how", ["swept", "closed"])
def test_whoever_tries_the_lock_at_the_end_does_not_keep_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A journal comes between the last look and the removal, and goes a moment later."""
    made = left_behind(tmp_path) if how == "swept" else TemporaryDirectory(tmp_path)
    rmdir, tries = Path.rmdir, []

    def rmdir_and_meet(path: Path) -> None:
        tries.append(path)
        if len(tries) < 3:
            (path / f"{LOCK}-journal").touch()
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", rmdir_and_meet)
    if isinstance(made, TemporaryDirectory):
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # it met the journal, too
        made.close()
    else:
        sweep(tmp_path)
    assert names(tmp_path) == set()
    assert len(tries) == 3


def test_a_directory_that_was_made_one_to_keep_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_behind(tmp_path)
    lock = temporary.lock

    def lock_too_late(directory: Path, *, make: bool = True) -> Any:
        (path / MARK).unlink()
        return lock(directory, make=make)

    monkeypatch.setattr(temporary, "lock", lock_too_late)
    sweep(tmp_path)
    assert names(path) == {LOCK, "replica", "primary.db"}


@pytest.mark.parametrize("how", ["swept", "closed"])
def test_what_was_not_removed_whole_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk fails")

    if how == "swept":
        left_behind(tmp_path)
        end: Callable[[], None] = lambda: sweep(tmp_path)  # noqa: E731
    else:
        made = TemporaryDirectory(tmp_path)
        (made.path / "replica").mkdir()
        end = made.close
    with monkeypatch.context() as failing:
        failing.setattr(shutil, "rmtree", fail)
        fail.avoids_symlink_attacks = True  # type: ignore[attr-defined]
        end()
    (path,) = tmp_path.iterdir()
    assert {LOCK, MARK} < names(path)
    assert f"cannot remove {path}" in caplog.text
    sweep(tmp_path)
    assert names(tmp_path) == set()


def unmarked(path: Path) -> None:
    (path / MARK).unlink()


def without_lock(path: Path) -> None:
    (path / LOCK).unlink()


def marked_by_a_link(path: Path) -> None:
    (path / MARK).rename(path / "mark")
    (path / MARK).symlink_to("mark")


def open_to_others(path: Path) -> None:
    path.chmod(0o770)


def renamed(path: Path) -> None:
    path.rename(path.with_name("backup-" + path.name))


def linked(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


@pytest.mark.parametrize("change", [unmarked, without_lock, marked_by_a_link, open_to_others, renamed, linked])
def test_what_is_not_certainly_left_behind_by_a_process_of_ours_is_left_alone(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(left_behind(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    assert len(before) >= 5
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("whose", ["", MARK, LOCK], ids=["directory", "mark", "lock"])
def test_what_belongs_to_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    path = left_behind(tmp_path)
    if os.geteuid() == 0:
        os.chown(path / whose, 65533, 65533)
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_and_links_with_our_prefix_and_a_place_that_is_not_there_do_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lbc-file").write_text("x")
    (tmp_path / "lbc-link").symlink_to(tmp_path)
    (tmp_path / "lbc-dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "lbc-pipe")
    before = names(tmp_path)
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert names(tmp_path) == before
    assert caplog.text == ""


def test_what_a_link_inside_leads_to_stays(tmp_path: Path) -> None:
    path = left_behind(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (path / "link").symlink_to(tmp_path / "kept")
    (path / "replica" / "link").symlink_to(tmp_path / "kept")
    sweep(tmp_path)
    assert names(tmp_path) == {"kept"}
    assert names(tmp_path / "kept") == {"file"}


async def test_nobody_waits_for_the_sweep_but_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_behind(tmp_path)
    clear, go_on = temporary._clear, asyncio.Event()
    loop = asyncio.get_running_loop()

    def clear_later(directory: Path | int) -> None:
        if isinstance(directory, int):
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        clear(directory)

    monkeypatch.setattr(temporary, "_clear", clear_later)
    fuse = loop.call_later(20, go_on.set)
    async with temporary_directory(beside=tmp_path) as made:
        assert made != path
        assert {path.name, made.name} == names(tmp_path)
        go_on.set()
        fuse.cancel()
    assert names(tmp_path) == set()


async def test_who_cannot_make_a_directory_sweeps_nevertheless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(temporary.tempfile, "mkdtemp", full)
    with pytest.raises(OSError, match="no space left"):
        async with temporary_directory(beside=tmp_path):
            raise AssertionError("made")
    assert names(tmp_path) == set()
