"""Of a long log often nothing is seen but its end, where pytest repeats the first line of what was wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import __main__ as main
from tests.simulation.engine import VERDICT_CHARACTERS, Bound, Result, command, simulate
from tests.simulation.life import Life

ROOT = Path(__file__).parents[2]


def test_the_first_line_names_the_command_and_the_first_problem() -> None:
    result = Result(7, command(7, long=True), ["write 3 is lost\nin the store", "write 4 is lost"], ["what happened"])
    wanted = "python -m tests.simulation --seed 7 --long: write 3 is lost in the store (1 of 2)"
    assert str(result).splitlines()[0] == wanted
    result.problems[0] = "x" * 1000
    assert len(result.verdict) == VERDICT_CHARACTERS
    assert result.verdict.endswith("xxx (1 of 2)")


def test_of_many_seeds_the_verdicts_come_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {8, 9}
    monkeypatch.setattr(main, "simulate", lambda seed, **_: Result(seed, command(seed), ["bad"] * (seed in wrong)))
    monkeypatch.setattr(sys, "argv", ["", "--first", "7", "--count", "4"])
    assert main.main() == 1
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == [f"python -m tests.simulation --seed {seed}: bad" for seed in (8, 9)]


class Broken(Life):
    async def live(self) -> None:
        await self.s.cluster.init("lol")
        self.ledger.problems.append("found before")
        await self.go_on()

    async def go_on(self) -> None: ...

    async def judge(self) -> None: ...


def test_a_life_that_does_not_end_tells_what_happened() -> None:
    class Endless(Broken):
        async def go_on(self) -> None:
            self.note("round in circles")
            while True:  # noqa: ASYNC110
                await asyncio.sleep(1.0)

    for bound in (Bound(turns=2000), Bound(turns=10_000, seconds=100.0)):
        result = simulate(1, life=Endless, bound=bound)
        first, last = result.problems
        assert first == "found before"
        assert last.startswith("it does not end, after ")
        assert "round in circles" in result.transcript[-1]


def test_what_fails_in_a_finalizer_is_a_problem_of_its_seed() -> None:
    class Failing:
        def __del__(self) -> None:
            raise OSError("unseen")

    class Littering(Broken):
        async def go_on(self) -> None:
            cycle: list[Any] = [Failing()]
            cycle.append(cycle)

    (_, found) = simulate(1, life=Littering).problems
    assert found.startswith("unraisable: OSError('unseen')")


def test_what_fails_in_a_thread_is_a_problem_of_its_seed() -> None:
    def fail() -> None:
        raise OSError("unseen")

    class Threaded(Broken):
        async def go_on(self) -> None:
            self.s.threads.start(fail, name="reader")
            await asyncio.sleep(1.0)

    (_, found) = simulate(1, life=Threaded).problems
    assert found == "the thread reader has failed: OSError('unseen')"


def test_a_seed_in_which_threads_wait_for_each_other_is_named() -> None:
    program = (
        "import threading; from tests.simulation import __main__ as main\n"
        "main.STUCK_SECONDS, main.simulate = 0.1, lambda *_, **__: threading.Event().wait()\n"
        "main.run_all([7])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "python -m tests.simulation --seed 7: it stands still, and not in virtual time\n"
    assert "wait" in done.stderr
