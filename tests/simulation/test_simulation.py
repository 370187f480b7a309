"""Whole clusters on virtual time: a fixed set of seeds, and as many fresh ones as there is time for.

`LBC_SIMULATION_SECONDS` is the time for fresh ones. A seed that fails is run again with `python -m tests.simulation`.
"""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.engine import simulate

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("LBC_SIMULATION_SECONDS", "15"))
FIXED = 8


@pytest.fixture(autouse=True)
def _garbage() -> None:
    """What was left by other tests is not of these seeds."""
    gc.collect()


@pytest.mark.parametrize("seed", range(FIXED))
def test_promises_are_kept_in_a_fixed_history(seed: int) -> None:
    result = simulate(seed)
    assert result.problems == [], str(result)


def test_a_disk_that_is_full_at_a_claim_does_not_end_the_node() -> None:
    result = simulate(1641990198)
    assert result.problems == [], str(result)


def test_a_member_that_is_about_to_leave_in_the_end_is_not_judged() -> None:
    result = simulate(744969801)
    assert result.problems == [], str(result)


def test_promises_are_kept_in_fresh_histories(record_property: Callable[[str, object], None]) -> None:
    # In a process of its own, where the garbage of other tests is not collected, which may have something to say.
    options = ["--first", str(secrets.randbits(31)), "--seconds", str(SECONDS)]
    command = [sys.executable, "-W", "error", "-m", "tests.simulation", *options]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    otherwise = f"python -m tests.simulation {' '.join(options)}: exit code {done.returncode}"
    assert done.returncode == 0, f"{done.stdout or otherwise}\n{done.stderr}"
    record_property("told at the end", f"simulation: {done.stdout}")


def test_a_seed_gives_the_same_history_in_another_process_and_with_other_hashes() -> None:
    program = "from tests.simulation.engine import simulate; print(simulate(5, verbose=True).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {simulate(5, verbose=True).digest + "\n"}
