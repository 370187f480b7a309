"""Whole clusters on virtual time: a fixed set of seeds, and as many fresh ones as there is time for.

`LBC_SIMULATION_SECONDS` is the time for fresh ones. A seed that fails is run again with `python -m tests.simulation`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import run_all, seeds
from tests.simulation.engine import simulate

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("LBC_SIMULATION_SECONDS", "15"))
FIXED = 8


@pytest.mark.parametrize("seed", range(FIXED))
def test_promises_are_kept_in_a_fixed_history(seed: int) -> None:
    result = simulate(seed)
    assert result.problems == [], str(result)


def test_a_disk_that_is_full_at_a_claim_does_not_end_the_node() -> None:
    result = simulate(1641990198)
    assert result.problems == [], str(result)


def test_promises_are_kept_in_fresh_histories(capsys: pytest.CaptureFixture[str]) -> None:
    tally = run_all(seeds(None, None, SECONDS))
    with capsys.disabled():
        print(f"\nsimulation: {tally}")
    assert tally.failed == [], str(tally.failed[0])


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
