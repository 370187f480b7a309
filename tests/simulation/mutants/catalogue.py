"""All mutants."""

from __future__ import annotations

from tests.simulation.mutants import copies, keeping, leader, log, readers, roles
from tests.simulation.mutants.mutant import Mutant

MUTANTS: list[Mutant] = [
    *log.MUTANTS,
    *leader.MUTANTS,
    *readers.MUTANTS,
    *keeping.MUTANTS,
    *copies.MUTANTS,
    *roles.MUTANTS,
]
