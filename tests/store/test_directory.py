"""The directory store: durable, atomic between processes, clean after a kill, clear about what goes wrong."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import Created, DirectoryStore, Exists, Unknown, disk
from littlebigcluster.store.keys import TEMPORARY

ROOT = Path(__file__).resolve().parents[2]
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[DirectoryStore]:
    opened = DirectoryStore(tmp_path / "root", clock=clock)
    yield opened
    await opened.close()


def spawned(directory: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store.writer", str(directory), name, str(count)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def temporaries(store: DirectoryStore) -> list[str]:
    directory = store.root / TEMPORARY
    return [path.name for path in directory.iterdir()] if directory.exists() else []


async def test_reading_makes_no_directory(store: DirectoryStore) -> None:
    assert await store.get("a") is None
    assert await store.list("") == []
    await store.delete(["a"])
    assert not store.root.exists()


async def test_writers_of_many_processes_agree_on_every_winner(store: DirectoryStore) -> None:
    count, names = 60, ["a", "b", "c", "d"]
    processes = [spawned(store.root, name, count) for name in names]
    for process in processes:
        go(process)
    said = [process.communicate(timeout=60)[0].split("\n")[:-1] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    for number in range(count):
        winners = [name for name, lines in zip(names, said, strict=True) if lines[number].endswith("mine")]
        assert len(winners) == 1, f"{winners} won {number}"
        assert await store.get(f"log/{number:06}") == f"{winners[0]} {number} ".encode() * 500
    assert temporaries(store) == []


@pytest.mark.parametrize("after_lines", [1, 4, 9, 20, 41])
async def test_killed_writer_leaves_whole_objects_only(store: DirectoryStore, after_lines: int) -> None:
    process = spawned(store.root, "victim", 10_000)
    go(process)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(after_lines)]
    process.kill()
    with process:  # not `communicate`, which passes over what `readline` has read ahead
        acknowledged += process.stdout.readlines()
    whole = [line for line in acknowledged if line.endswith("mine\n")]
    keys = [info.key for info in await store.list("log/")]
    assert len(keys) in (len(whole), len(whole) + 1), "everything acknowledged, and at most one more"
    for number, key in enumerate(keys):
        assert key == f"log/{number:06}"
        assert await store.get(key) == f"victim {number} ".encode() * 500
    marker = await store.get("marker") or b""
    assert marker == marker[:6] * 1000, "an overwritten object is never torn"
    # Nobody is in the way of those who come after.
    assert await store.create(f"log/{len(keys):06}", b"next") == Created()


class Late(Clock):
    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=2)


async def test_dead_writers_files_are_swept_and_living_ones_stay(store: DirectoryStore, tmp_path: Path) -> None:
    process = spawned(store.root, "victim", 10_000)
    go(process)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    (store.root / TEMPORARY / "999-dead").write_bytes(b"left behind")
    living = disk.open_new(store.root / TEMPORARY / "1-living")
    try:
        assert await store.create("now", b"x") == Created()
        assert "999-dead" in temporaries(store), "too young to be surely dead"
        later = DirectoryStore(store.root, clock=Late())
        assert await later.create("later", b"x") == Created()
        await later.close()
        assert temporaries(store) == ["1-living"]
    finally:
        disk.discard(living)


async def test_temporary_files_are_never_listed_nor_reachable(store: DirectoryStore) -> None:
    await store.put("a/b", b"x")
    for directory in (store.root, store.root / "a"):
        (directory / TEMPORARY).mkdir(exist_ok=True)
        (directory / TEMPORARY / "1-1").write_bytes(b"half")
    assert [info.key for info in await store.list("")] == ["a/b"]
    assert await store.list(TEMPORARY) == []
    with pytest.raises(ValueError, match="not a key"):
        await store.get(f"{TEMPORARY}/1-1")


class Syncs:
    """Records what is brought to the disk, and when it got its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        for name in ("sync_file", "sync_directory"):
            monkeypatch.setattr(disk, name, self._recorded(name, getattr(disk, name)))
        monkeypatch.setattr(os, "link", self._recorded("link", os.link))
        monkeypatch.setattr(Path, "replace", self._recorded("replace", Path.replace))

    def _recorded(self, name: str, work: Callable[..., None]) -> Callable[..., None]:
        def recorded(target: object, *more: object) -> None:
            place = f" {target.name}" if name == "sync_directory" and isinstance(target, Path) else ""
            self.events.append(name + place)
            work(target, *more)

        return recorded


async def test_object_is_on_the_disk_before_it_has_its_name_and_the_name_before_success(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("dir/first", b"")
    syncs = Syncs(monkeypatch)
    await store.create("dir/k", b"x")
    assert syncs.events == ["sync_file", "link", "sync_directory dir"]
    syncs.events.clear()
    await store.put("dir/k", b"y")
    assert syncs.events == ["sync_file", "replace", "sync_directory dir"]


async def test_new_directories_are_durable_before_the_first_object(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    await store.create("one/two/k", b"x")
    before = syncs.events[: syncs.events.index("link")]
    for name in ("one", "root", tmp_path.name):
        assert f"sync_directory {name}" in before


async def test_reader_makes_durable_what_a_writer_has_only_just_named(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("dir/k", b"x")
    # A writer between `link` and the fsync of the directory.
    os.link(store.root / "dir/k", store.root / TEMPORARY / "1-1")
    syncs = Syncs(monkeypatch)
    assert await store.get("dir/k") == b"x"
    assert syncs.events == ["sync_directory dir"]
    (store.root / TEMPORARY / "1-1").unlink()
    await store.get("dir/k")
    assert syncs.events == ["sync_directory dir"], "costs nothing afterwards"


async def test_failure_after_the_name_is_given_is_unknown_never_a_refusal(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("dir/first", b"")

    def failing(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(disk, "sync_directory", failing)
    outcome = await store.create("dir/k", b"x")
    assert isinstance(outcome, Unknown)
    monkeypatch.undo()
    assert await store.create("dir/k", b"x") == Exists()


@pytest.mark.parametrize(
    ("code", "said", "transient"),
    [
        (errno.ENOSPC, "free some space", True),
        (errno.EACCES, "the right to read and write", False),
        (errno.EROFS, "the right to read and write", False),
        (errno.EIO, "Input/output error", True),
    ],
)
async def test_disk_errors_say_what_to_do(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, code: int, said: str, transient: bool
) -> None:
    await store.put("first", b"")

    def failing(file: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "sync_file", failing)
    with pytest.raises(StoreUnavailable, match=said) as caught:
        await store.put("k", b"x")
    assert caught.value.transient == transient
    assert "cannot write k in " in str(caught.value)
    if transient:
        assert isinstance(await store.create("k", b"x"), Unknown)
    else:
        with pytest.raises(StoreUnavailable, match=said):
            await store.create("k", b"x")
    assert await store.get("k") is None
    assert temporaries(store) == []


async def test_full_disk_is_reported(clock: Clock) -> None:
    full = DirectoryStore("/dev/full/x", clock=clock)
    with pytest.raises(StoreUnavailable, match="cannot write k in /dev/full/x"):
        await full.put("k", b"x")
    assert await full.get("k") is None
    await full.close()


@not_as_root
async def test_directory_without_rights_is_refused(tmp_path: Path, clock: Clock) -> None:
    tmp_path.chmod(0o500)
    store = DirectoryStore(tmp_path / "root", clock=clock)
    with pytest.raises(StoreUnavailable, match="the right to read and write"):
        await store.create("k", b"x")
    await store.close()
    tmp_path.chmod(0o700)


async def test_name_that_is_also_a_directory_is_a_clear_error(store: DirectoryStore) -> None:
    await store.put("a/b", b"x")
    assert await store.get("a") is None
    assert await store.get("a/b/c") is None
    for key in ("a", "a/b/c"):
        with pytest.raises(StoreUnavailable, match="also a directory"):
            await store.put(key, b"x")
        with pytest.raises(StoreUnavailable, match="also a directory"):
            await store.create(key, b"x")


async def test_store_comes_back_when_its_directory_was_removed(store: DirectoryStore) -> None:
    await store.put("dir/k", b"x")
    (store.root / "dir/k").unlink()
    for directory in (store.root / "dir", store.root / TEMPORARY, store.root):
        directory.rmdir()
    assert await store.create("dir/k", b"y") == Created()
    assert await store.get("dir/k") == b"y"


async def test_hung_disk_times_out_and_the_write_may_land_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, hasty = DirectoryStore(tmp_path, clock=clock), DirectoryStore(tmp_path, timeout_seconds=0.2, clock=clock)
    go_on = threading.Event()
    sync_file = disk.sync_file

    def hanging(file: object) -> None:
        go_on.wait(60)
        sync_file(file)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "sync_file", hanging)
    outcome = await hasty.create("k", b"x")
    assert isinstance(outcome, Unknown)
    assert "no answer from the disk in 0.2 s" in str(outcome.cause)
    assert await patient.get("k") is None
    go_on.set()
    async with asyncio.timeout(60):
        while await patient.get("k") != b"x":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await hasty.close()
    await patient.close()


async def test_event_loop_goes_on_while_the_disk_works(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.current_thread()
    seen = []
    monkeypatch.setattr(disk, "sync_file", lambda file: seen.append(threading.current_thread()))
    await store.put("k", b"x")
    assert here not in seen
    assert seen[0].name.startswith("lbc-directory")


async def test_cancelled_stream_leaves_no_file(store: DirectoryStore) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(store.put_stream("k", endless()))
    async with asyncio.timeout(60):
        while len(temporaries(store)) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        while temporaries(store):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await store.list("") == []


async def test_foreign_files_with_impossible_names_are_not_listed(store: DirectoryStore) -> None:
    await store.put("a", b"x")
    (store.root / "back\\slash").write_bytes(b"")
    (store.root / os.fsdecode(b"\xff")).write_bytes(b"")
    assert [info.key for info in await store.list("")] == ["a"]


async def test_a_stream_given_up_at_any_moment_leaves_no_file_open(tmp_path: Path, clock: Clock) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(10)

    for turns in range(40):
        store = DirectoryStore(tmp_path, clock=clock)
        task = asyncio.create_task(store.put_stream("key", chunks()))
        for _ in range(turns % 8):
            await asyncio.sleep(0)
        await asyncio.sleep(turns * 0.0002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()
        await asyncio.to_thread(store._pool.shutdown)
        gc.collect()
        assert not list((tmp_path / ".~lbc-tmp").glob("*"))
