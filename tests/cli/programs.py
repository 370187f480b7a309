"""Runs the commands as users do: as processes, whose output is read."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LBC = [sys.executable, "-W", "error", "-m", "littlebigcluster"]
EXAMPLE = [sys.executable, "-W", "error", str(ROOT / "examples" / "lol_cluster.py")]
PATIENCE_SECONDS = 90

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has started the tests in the background; the commands would inherit that they cannot be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment() -> dict[str, str]:
    """Without what would change the output."""
    unwanted = ("LBC_STORE", "COLUMNS", "FORCE_COLOR", "NO_COLOR")
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def run(*arguments: str, program: list[str] = LBC, **settings: str) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return subprocess.run(
        [*program, *arguments],
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS * 3,
        check=False,
    )


def output(*arguments: str, program: list[str] = LBC) -> str:
    """What a command that succeeds prints."""
    done = run(*arguments, program=program)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def error_line(*arguments: str) -> str:
    """The one line that a command that fails says."""
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


class Program:
    """A command that goes on running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def until(self, text: str) -> str:
        """Wait for a line with this text; returns it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text!r} did not come; seen:\n{''.join(self.seen)}") from None
            self.seen.append(line)
            if text in line:
                return line

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def ended(self) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        while not self._lines.empty():
            self.seen.append(self._lines.get())
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def running(*arguments: str, program: list[str] = LBC) -> Iterator[Program]:
    """A command while it runs; killed at the end if it still does."""
    process = subprocess.Popen(
        [*program, *arguments],
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started = Program(process)
    try:
        yield started
    finally:
        started.close()
