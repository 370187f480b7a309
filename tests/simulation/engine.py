"""One seed, one history: a random cluster, random users, random faults, and what is wrong in the end.

`simulate(seed)` is the only way in. All that is drawn comes from the seed; `Result.transcript` tells what happened.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from littlebigcluster.testing import Simulation, run
from tests.simulation.checks import Ledger
from tests.simulation.life import Life


@dataclass
class Result:
    """What one seed has shown."""

    seed: int
    long: bool = False
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

    @property
    def digest(self) -> str:
        """The same for the same run."""
        return hashlib.sha256("\n".join([*self.transcript, str(self.virtual_seconds)]).encode()).hexdigest()

    def __str__(self) -> str:
        lines = [*self.transcript, "", f"seed {self.seed}: {len(self.problems)} problems", *self.problems]
        return "\n".join([*lines, f"again: python -m tests.simulation --seed {self.seed}{' --long' * self.long}"])


def simulate(seed: int, *, long: bool = False, verbose: bool = False, life: Callable[..., Life] = Life) -> Result:
    """Run the seed. Never raises for what the library does wrong: that is in `problems`. `long`: with some quiet hours
    in it, so that retention deletes something."""
    result = Result(seed, long)

    async def main(simulation: Simulation) -> None:
        lived = life(simulation, Ledger(simulation), long=long)
        try:
            await lived.live()
            result.problems += await lived.judge()
        except Exception as error:
            simulation.note(f"!    {error!r}")
            result.problems.append(f"{type(error).__name__}: {error}")
            if verbose:
                logging.getLogger("tests.simulation").exception("seed %d", seed)
        result.problems += simulation.failures
        history = lived.ledger.history
        result.transcript = list(simulation.transcript)
        result.faults = lived.faults + simulation.store.faults + simulation.net.faults
        result.fates = Counter(history.fates.values())
        result.reads, result.epochs = len(history.reads), lived.ledger.epochs
        result.deleted = lived.ledger.deleted
        result.terms = lived.ledger.terms
        result.virtual_seconds = simulation.loop.now - 1000.0

    try:
        run(main, seed=seed, log_level=logging.DEBUG if verbose else logging.INFO)
    except Exception as error:
        result.problems.append(f"the simulation itself: {error!r}")
    return result
