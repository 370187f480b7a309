"""All mutants."""

from __future__ import annotations

from tests.simulation.mutants import leader, log, readers
from tests.simulation.mutants.mutant import Mutant

MUTANTS: list[Mutant] = [*log.MUTANTS, *leader.MUTANTS, *readers.MUTANTS]
