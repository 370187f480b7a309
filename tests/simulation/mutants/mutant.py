"""What a mutant is, and how it is hunted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from littlebigcluster.testing.loop import VirtualLoop
from tests.simulation.engine import Result, simulate
from tests.simulation.life import Life

MOST_SEEDS = 12
"""So many seeds a mutant may live through before it counts as a survivor."""

MOST_TURNS, MOST_SECONDS = 60_000, 500.0
"""Of the event loop, and of its time, in one life. Whatever is right takes less than half of it."""

_LAST_TURNS = 10_000
"""To end what has run too long."""


@dataclass(frozen=True)
class Mutant:
    """One way to be wrong."""

    name: str
    breaks: str
    """The promise."""
    patched: Callable[[], AbstractContextManager[Any]]
    first_seed: int = 0
    """From which seed on it is hunted: one that is known to find it soon."""
    life: Callable[..., Life] = Life


@dataclass(frozen=True)
class Kill:
    """How a mutant was found out."""

    mutant: Mutant
    seeds: list[int]
    """Those it took."""
    problem: str | None
    """The first; None: it has survived."""
    seconds: float


class _Endless(Exception):
    pass


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """A mutant may go round in circles. Counted in turns, not in seconds, so that a seed always ends the same way."""
    run_once, turns, last = VirtualLoop._run_once, 0, MOST_TURNS

    def counted(loop: VirtualLoop) -> None:
        nonlocal turns, last
        turns += 1
        if turns == last or (turns < last and loop.now - 1000.0 > MOST_SECONDS) or turns > last + _LAST_TURNS:
            last = min(turns, last)
            raise _Endless(f"it does not end, after {loop.now - 1000.0:.0f} s and {turns} turns of the loop")
        run_once(loop)

    with patch.object(VirtualLoop, "_run_once", counted):
        yield


def live(seed: int, life: Callable[..., Life]) -> Result:
    """One life that ends."""
    with bounded():
        return simulate(seed, life=life)


def hunt(mutant: Mutant, *, first_seed: int | None = None, most_seeds: int = MOST_SEEDS) -> Kill:
    """Simulate with the mutant until something is wrong."""
    began, seeds = time.perf_counter(), []
    first_seed = mutant.first_seed if first_seed is None else first_seed
    for seed in range(first_seed, first_seed + most_seeds):
        seeds.append(seed)
        with mutant.patched():
            result = live(seed, mutant.life)
        if result.problems:
            return Kill(mutant, seeds, result.problems[0], time.perf_counter() - began)
    return Kill(mutant, seeds, None, time.perf_counter() - began)
