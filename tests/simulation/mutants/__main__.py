"""`python -m tests.simulation.mutants`: hunt them, and tell how each was found out."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.mutants.catalogue import MUTANTS
from tests.simulation.mutants.mutant import MOST_SEEDS, Kill, Mutant, hunt, live


def line(kill: Kill) -> str:
    said = kill.problem.split("\n")[0] if kill.problem else "SURVIVED"
    return f"{kill.mutant.name:28} {len(kill.seeds):3} seeds {kill.seconds:6.1f} s  {said:.150}"


def search(mutant: Mutant, number: int) -> str:
    """Which of so many seeds find it out, though nothing is wrong with them, and the one that does it fastest."""
    found = []
    for seed in range(number):
        began = time.perf_counter()
        result = live(seed, mutant)
        seconds = time.perf_counter() - began
        if result.problems and not live(seed, mutant, sound=True).problems:
            found.append((seconds, seed))
    text = ", ".join(f"{seed} ({seconds:.1f} s)" for seconds, seed in sorted(found))
    return f"{mutant.name:28} {len(found):3} of {number} seeds: {text}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description="Hunt the mutants.")
    parser.add_argument("names", nargs="*", help="only those")
    parser.add_argument("--first", type=int, help="begin with this seed (default: one that is known to do)")
    parser.add_argument("--most", type=int, default=MOST_SEEDS, help=f"try so many seeds (default: {MOST_SEEDS})")
    parser.add_argument("--search", type=int, metavar="N", help="say which of the seeds below N find each of them out")
    parser.add_argument("--seed", type=int, help="only this one, and print what happened")
    parser.add_argument("--sound", action="store_true", help="with --seed: the same life, with nothing broken")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.seed is not None:
        results = [live(options.seed, mutant, sound=options.sound) for mutant in chosen]
        print(*results, sep="\n\n")
        return 1 if any(result.problems for result in results) else 0
    if options.search:
        for mutant in chosen:
            print(search(mutant, options.search), flush=True)
        return 0
    kills = []
    for mutant in chosen:
        kills.append(hunt(mutant, first_seed=options.first, most_seeds=options.most))
        print(line(kills[-1]), flush=True)
    survivors = [kill.mutant.name for kill in kills if kill.problem is None]
    seconds = sum(kill.seconds for kill in kills)
    print(f"{len(kills) - len(survivors)} of {len(kills)} mutants found out in {seconds:.0f} s", end="")
    print(f"; alive: {', '.join(survivors)}" if survivors else "")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
