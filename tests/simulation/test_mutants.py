"""Each broken variant of the library is found out, and what is not broken is not."""

from __future__ import annotations

import pytest

from tests.simulation.mutants.catalogue import MUTANTS
from tests.simulation.mutants.mutant import Mutant, hunt, live


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found_out(mutant: Mutant) -> None:
    kill = hunt(mutant)
    assert kill.problem is not None, (
        f'python -m tests.simulation.mutants "{mutant.name}": it lives: the simulation does not notice in the seeds'
        f" {kill.seeds[0]} to {kill.seeds[-1]} that the library breaks the promise that {mutant.breaks}"
    )
    sound = live(kill.seeds[-1], mutant, sound=True)
    assert sound.problems == [], str(sound)
