"""One seed, one history: a random cluster, random users, random faults, and what is wrong in the end.

`simulate(seed)` is the only way in. All that is drawn comes from the seed; `Result.transcript` tells what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from littlebigcluster.testing import Simulation, run
from littlebigcluster.testing.loop import VirtualLoop
from tests.simulation.checks import Ledger, chained
from tests.simulation.life import Life

VERDICT_CHARACTERS = 300


@dataclass(frozen=True)
class Bound:
    """How long a life may be. Counted in what is the same in each run, so that a seed always ends the same way."""

    turns: int
    """Of the event loop."""
    seconds: float = float("inf")
    """Of its time."""


SHORT, LONG = Bound(400_000), Bound(4_000_000)
"""Ten times what the longest lives take."""

_LAST_TURNS = 10_000
"""To end what has run too long."""


@dataclass
class Result:
    """What one seed has shown."""

    seed: int
    again: str
    """The command that runs it again."""
    problems: list[str] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    """Of writes."""
    reads: int = 0
    terms: int = 0
    epochs: int = 0
    deleted: int = 0
    """Epochs that retention has deleted."""
    virtual_seconds: float = 0.0
    turns: int = 0
    """Of the event loop."""

    @property
    def digest(self) -> str:
        """The same for the same run."""
        return hashlib.sha256("\n".join([*self.transcript, str(self.virtual_seconds)]).encode()).hexdigest()

    @property
    def verdict(self) -> str:
        """One line for who sees no more than that: how to run it again, and the first thing that was wrong."""
        first = " ".join(self.problems[0].split()) if self.problems else "nothing is wrong"
        more = f" (1 of {len(self.problems)})" if len(self.problems) > 1 else ""
        return f"{self.again}: {first}"[: VERDICT_CHARACTERS - len(more)] + more

    def __str__(self) -> str:
        return "\n".join([self.verdict, *self.transcript, "", *self.problems, self.verdict])


def command(seed: int, *, long: bool = False) -> str:
    return f"python -m tests.simulation --seed {seed}{' --long' * long}"


def simulate(
    seed: int,
    *,
    long: bool = False,
    verbose: bool = False,
    life: Callable[..., Life] = Life,
    bound: Bound | None = None,
    again: str | None = None,
) -> Result:
    """Run the seed. Never raises for what the library does wrong: that is in `problems`. `long`: with some quiet hours
    in it, so that retention deletes something. `again`: the command for that, if it is not the usual one."""
    result = Result(seed, again or command(seed, long=long))

    async def main(simulation: Simulation) -> None:
        lived = life(simulation, Ledger(simulation), long=long)
        try:
            with chained(lived.ledger.problems):
                await lived.live()
                await lived.judge()
        except asyncio.CancelledError:  # it does not end: what is in the store can be judged all the same
            simulation.heal()
            with contextlib.suppress(Exception):
                await lived.ledger.judge(lived.retention, [])
            raise
        except Exception as error:
            simulation.note(f"!    {error!r}")
            lived.ledger.problems.append(f"{type(error).__name__}: {error}")
            if verbose:
                logging.getLogger("tests.simulation").exception("seed %d", seed)
        finally:  # also of what does not end
            _fill(result, simulation, lived)

    with _unraisable() as unraisable:
        try:
            with _bounded(result, bound or (LONG if long else SHORT)):
                run(main, seed=seed, log_level=logging.DEBUG if verbose else logging.INFO)
        except _Endless as error:
            result.problems.append(str(error))
        except Exception as error:
            result.problems.append(f"the simulation itself: {error!r}")
    result.problems += unraisable
    return result


def _fill(result: Result, simulation: Simulation, lived: Life) -> None:
    history = lived.ledger.history
    result.problems += [*lived.ledger.problems, *simulation.failures]
    result.transcript = list(simulation.transcript)
    result.faults = lived.faults + simulation.store.faults + simulation.net.faults
    result.fates = Counter(history.fates.values())
    result.reads, result.epochs = len(history.reads), lived.ledger.epochs
    result.deleted = lived.ledger.deleted
    result.terms = lived.ledger.terms
    result.virtual_seconds = simulation.loop.now - 1000.0


class _Endless(Exception):
    pass


@contextlib.contextmanager
def _bounded(result: Result, bound: Bound) -> Iterator[None]:
    """What is wrong may go round in circles."""
    run_once, last = VirtualLoop._run_once, bound.turns

    def counted(loop: VirtualLoop) -> None:
        nonlocal last
        result.turns += 1
        now, turns = loop.now - 1000.0, result.turns
        if turns == last or (turns < last and now > bound.seconds) or turns > last + _LAST_TURNS:
            last = min(turns, last)
            raise _Endless(f"it does not end, after {now:.0f} s and {turns} turns of the loop")
        run_once(loop)

    with patch.object(VirtualLoop, "_run_once", counted):
        yield


@contextlib.contextmanager
def _unraisable() -> Iterator[list[str]]:
    """What fails in a finalizer or in a thread of the library, and would only be printed."""
    found: list[str] = []

    def of_thread(what: Any) -> None:
        found.append(f"the thread {what.thread and what.thread.name} has failed: {what.exc_value!r}")

    def of_finalizer(what: Any) -> None:
        found.append(f"unraisable: {what.exc_value!r}: {what.err_msg or 'ignored in'} {what.object!r}")

    with patch.object(sys, "unraisablehook", of_finalizer), patch.object(threading, "excepthook", of_thread):
        yield found
