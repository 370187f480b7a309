"""A minute of it, and that nothing of it stays behind."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import servers, untested
from tests.chaos.__main__ import ENDED, NOT_TESTED
from tests.scenarios.host import REPOSITORY

LIMIT_SECONDS = 400


@pytest.mark.slow
@pytest.mark.server("ceph")
def test_a_minute_of_chaos_loses_nothing() -> None:
    # It takes longer than any other test may.
    faulthandler.dump_traceback_later(LIMIT_SECONDS + 20, exit=True)
    try:
        servers.install("ceph")
    except servers.Unavailable as error:
        not_tested(f"NOT TESTED against ceph: {error}")
    seed = random.randrange(1 << 31)
    done = subprocess.run(
        command("--seed", str(seed), "--seconds", "60"), cwd=REPOSITORY, capture_output=True, text=True, check=False,
        timeout=LIMIT_SECONDS,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    missing = [line for line in done.stdout.splitlines() if line.startswith("NOT TESTED")]
    if done.returncode == NOT_TESTED:
        not_tested("\n".join(missing))
    for line in missing:
        untested.warn(line)
    assert done.returncode == 0, f"{verdict(seed, done)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"


def verdict(seed: int, done: subprocess.CompletedProcess[str]) -> str:
    """One line for who sees no more than that: the command, and the first thing that was wrong."""
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG: ")]
    first = next(iter([*wrong, *reversed(done.stderr.splitlines())]), f"exit code {done.returncode}")
    return f"python -m tests.chaos --seconds 60 --seed {seed}: {first}"[:300]


@pytest.mark.parametrize(
    ("out", "err", "first"),
    [
        ("5 nodes\nWRONG: write 3 is lost\nWRONG: write 4 is lost\nFAILED\n", "", "WRONG: write 3 is lost"),
        ("5 nodes\n", "Traceback\nOSError: no space\n", "OSError: no space"),
        ("", "", "exit code 1"),
        ("WRONG: " + "x" * 1000, "", "WRONG: " + "x" * 248),
    ],
)
def test_the_verdict_names_the_command_and_the_first_problem(out: str, err: str, first: str) -> None:
    done = subprocess.CompletedProcess[str]([], 1, out, err)
    assert verdict(7, done) == f"python -m tests.chaos --seconds 60 --seed 7: {first}"


def not_tested(message: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    untested.warn(message)
    pytest.skip(message)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_behind_when_it_is_ended_in_the_middle(sent: signal.Signals, tmp_path: Path) -> None:
    mark = f"LBC_CHAOS_TEST={tmp_path}"
    environment = {**os.environ, "LBC_CHAOS_TEST": str(tmp_path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command("--store", "directory", "--nodes", "2", "--seconds", "60"), cwd=REPOSITORY, env=environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        while "leads" not in (line := process.stdout.readline()):
            assert line, f"ended by itself: {process.wait()}"
        assert len(alive(mark)) >= 3
        process.send_signal(sent)
        rest = process.stdout.read()
    assert process.returncode == (ENDED if sent is signal.SIGTERM else -signal.SIGKILL), rest
    eventually(lambda: not alive(mark))
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout if shown() else ""
    assert f"lbc-{process.pid}-" not in names
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    if sent is signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.chaos", *arguments]


def shown() -> bool:
    return Path("/run/netns").exists()


def alive(mark: str) -> list[int]:
    """The processes that have this in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            pass
    return found


def eventually(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
