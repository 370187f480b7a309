"""What a mutant is, and how it is hunted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tests.simulation.engine import Bound, Result, simulate
from tests.simulation.life import Life

MOST_SEEDS = 24
"""So many seeds a mutant may live through before it counts as a survivor."""

BOUND = Bound(turns=60_000, seconds=500.0)
"""Of one life. Whatever is right takes less than half of it."""


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


def live(seed: int, mutant: Mutant, *, sound: bool = False) -> Result:
    """Its life, in which the library is broken as the mutant is, or sound."""
    again = f'python -m tests.simulation.mutants "{mutant.name}" --seed {seed}{" --sound" * sound}'
    with contextlib.nullcontext() if sound else mutant.patched():
        return simulate(seed, life=mutant.life, bound=BOUND, again=again)


def hunt(mutant: Mutant, *, first_seed: int | None = None, most_seeds: int = MOST_SEEDS) -> Kill:
    """Simulate with the mutant until something is wrong."""
    began, seeds = time.perf_counter(), []
    first_seed = mutant.first_seed if first_seed is None else first_seed
    for seed in range(first_seed, first_seed + most_seeds):
        seeds.append(seed)
        result = live(seed, mutant)
        if result.problems:
            return Kill(mutant, seeds, result.problems[0], time.perf_counter() - began)
    return Kill(mutant, seeds, None, time.perf_counter() - began)
