"""Runs Spin on `protocol.pml`: the protocol as it is, in several bounds, and its broken variants."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from tests import debian

SOURCE = Path(__file__).with_name("protocol.pml")
PACKAGES = {"spin": "spin", "gcc": "gcc libc6-dev"}
MEMORY_MIB = 2000
DEPTH = 200_000
MODEL_SECONDS = 600.0


class Unavailable(Exception):
    """Spin, or a C compiler, is not there; the message says what to install."""


@dataclass(frozen=True)
class Bounds:
    """Two nodes, and these."""

    epochs: int = 2
    late_creates: int = 0
    late_markers: int = 0
    restarts: int = 0

    @property
    def defines(self) -> list[str]:
        return [f"-D{name.upper()}={value}" for name, value in vars(self).items()]

    def __str__(self) -> str:
        return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in vars(self).items() if value)


@dataclass(frozen=True)
class Broken:
    """A variant that must be refuted."""

    define: str
    invariant: str
    bounds: Bounds = field(default_factory=lambda: Bounds(late_creates=1))


@dataclass(frozen=True)
class Result:
    """What a search has shown. Exhaustive unless an invariant is violated."""

    states: int
    violated: str | None
    story: list[str]
    """What led to it."""


SOUND = (Bounds(epochs=3), Bounds(late_creates=1), Bounds(restarts=1), Bounds(late_markers=1))

WIDER = (Bounds(late_creates=1, restarts=1),)
"""For the command line: for a test these take too long."""

BROKEN = (
    Broken("NO_READ_BACK", "RefusedNeverAppears"),
    Broken("UNKNOWN_IS_FAILURE", "RefusedNeverAppears"),
    Broken("NO_FENCE", "AckedIsDurable"),
    Broken("NO_STANDING", "RefusedNeverAppears"),
    Broken("DELETES_FIRST", "MarkerBeforeDeletion"),
    Broken("FORGETS_CONFIRMATION", "AckedIsDurable"),
    Broken("GONE_IS_LOST", "RefusedNeverAppears"),
    Broken("THEIRS_IS_FINAL", "RefusedNeverAppears"),
    Broken("TRUSTS_A_LATE_ANSWER", "RefusedNeverAppears"),
    Broken("READING_CONFIRMS", "AbsentMeansHead", Bounds(epochs=3)),
    Broken("CONFIRMS_AGAIN", "AbsentMeansHead", Bounds(epochs=3)),
    Broken("FORGETS_LISTED", "AbsentMeansHead", Bounds(late_markers=1)),
)


def install() -> None:
    """Spin from Debian's packages, if this is root. Raises Unavailable."""
    require(debian.install(_missing()))


def require(said: str = "") -> None:
    """Raises Unavailable; `said` tells why it could not be installed."""
    missing = _missing()
    if missing:
        why = f"; apt-get said: {' '.join(said.split())[-500:]}" if said else ""
        raise Unavailable(f"the model checker is not installed; as root: apt-get install {' '.join(missing)}{why}")


def _missing() -> list[str]:
    return [name for program, names in PACKAGES.items() if not shutil.which(program) for name in names.split()]


def search(bounds: Bounds, define: str | None = None) -> Result:
    """All states within the bounds, up to the first violation. Raises RuntimeError when the search did not end."""
    defines = bounds.defines + ([f"-D{define}"] if define else [])
    with tempfile.TemporaryDirectory(prefix="lbc-model-") as name:
        directory = Path(name)
        shutil.copy(SOURCE, directory)
        _run(directory, "spin", "-a", *defines, SOURCE.name)
        # To compile well takes longer than most searches that end at a violation.
        level = "-O0" if define else "-O2"
        _run(directory, "gcc", level, "-w", "-DSAFETY", "-DNOCOMP", f"-DMEMLIM={MEMORY_MIB}", "-o", "pan", "pan.c")
        shown = _run(directory, "./pan", f"-m{DEPTH}", "-w24", may_fail=True)
        counted = re.search(r"^ *([\d.e+]+) states, stored", shown, re.MULTILINE)
        failed = re.search(r"assertion violated \(+(\w+)", shown)
        errors = re.search(r"errors: (\d+)", shown)
        if counted is None or errors is None or "max search depth too small" in shown or "out of memory" in shown:
            raise RuntimeError(f"the search did not end:\n{shown[-2000:]}")
        if bool(failed) != (errors[1] != "0") or (failed is None and "Search not completed" in shown):
            raise RuntimeError(f"the search found something else than an invariant:\n{shown[-2000:]}")
        story = _story(directory, defines) if failed else []
        return Result(int(float(counted[1])), failed[1] if failed else None, story)


def _story(directory: Path, defines: list[str]) -> list[str]:
    shown = _run(directory, "spin", "-t", "-T", *defines, SOURCE.name)
    told = [line for line in shown.splitlines() if not line.startswith("spin: warning")]  # of times of files, say
    lines = list(takewhile(lambda line: not line.startswith("spin: "), told))
    # Ticks come in rows, and what happened long before tells little.
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line != before]


def _run(directory: Path, *command: str, may_fail: bool = False) -> str:
    done = subprocess.run(
        command, cwd=directory, check=False, text=True, timeout=MODEL_SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0 and not may_fail:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}")
    return done.stdout
