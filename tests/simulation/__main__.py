"""`python -m tests.simulation`: one seed with its transcript, some seeds, or fresh ones for so many seconds."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

from tests.simulation.engine import Result, command, simulate

STUCK_SECONDS = 60.0
"""Of real time, for one seed, which takes less than one."""


def seeds(first: int | None, number: int | None, seconds: float) -> Iterator[int]:
    """From `first`, or a random one, on: so many, or as many as there is time for."""
    start = secrets.randbits(31) if first is None else first
    end = time.monotonic() + seconds
    for seed in count(start):
        if (number is not None and seed - start >= number) or (number is None and time.monotonic() > end):
            return
        yield seed


class Tally:
    """What many seeds have shown."""

    def __init__(self) -> None:
        self.seeds = self.reads = self.epochs = self.terms = self.deleted = 0
        self.virtual_seconds = 0.0
        self.faults: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        self.failed: list[Result] = []
        self._began = time.monotonic()

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.reads, self.epochs = self.reads + result.reads, self.epochs + result.epochs
        self.terms += result.terms
        self.deleted += result.deleted
        self.virtual_seconds += result.virtual_seconds
        self.faults += result.faults
        self.fates += result.fates
        if result.problems:
            self.failed.append(result)

    def __str__(self) -> str:
        real, hours = time.monotonic() - self._began, self.virtual_seconds / 3600
        faults = ", ".join(f"{kind} {number}" for kind, number in self.faults.most_common())
        fates = ", ".join(f"{number} {fate}" for fate, number in sorted(self.fates.items()))
        lines = (
            f"{self.seeds} seeds in {real:.0f} s, {len(self.failed)} failed; {hours:.1f} h simulated",
            f"{self.terms} terms, {self.epochs} epochs, {self.deleted} deleted by retention, {self.reads} reads",
            f"writes: {fates}",
            f"{self.faults.total()} faults: {faults}",
        )
        return "\n".join(lines)


def run_all(chosen: Iterable[int], *, long: bool = False) -> Tally:
    tally = Tally()
    for seed in chosen:
        stuck = Result(seed, command(seed, long=long), ["it stands still, and not in virtual time"])
        with _watched(stuck, STUCK_SECONDS * (10 if long else 1)):
            tally.add(simulate(seed, long=long))
    return tally


@contextlib.contextmanager
def _watched(stuck: Result, seconds: float) -> Iterator[None]:
    """Threads that wait for each other end the process, which tells what it was at."""

    def end() -> None:
        print(stuck.verdict, flush=True)
        faulthandler.dump_traceback()
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and print what happened")
    parser.add_argument("--verbose", action="store_true", help="with --seed: what the library logs at DEBUG, too")
    parser.add_argument("--long", action="store_true", help="with some quiet hours in each, for retention")
    parser.add_argument("--first", type=int, help="begin with this seed (default: a random one)")
    parser.add_argument("--count", type=int, help="run so many")
    parser.add_argument("--seconds", type=float, default=60.0, help="run for so long (default: 60)")
    options = parser.parse_args()
    if options.seed is not None:
        result = simulate(options.seed, long=options.long, verbose=options.verbose)
        print(result)
        return 1 if result.problems else 0
    tally = run_all(seeds(options.first, options.count, options.seconds), long=options.long)
    for result in tally.failed:  # first, for those who see the first line only
        print(result.verdict)
    for result in tally.failed:
        print(f"\n{result}\n")
    print(tally)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
