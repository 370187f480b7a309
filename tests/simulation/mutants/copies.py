"""Mutants of local copies: what is applied unchecked."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest.mock import patch

from littlebigcluster.database import Replica
from tests.simulation.mutants.lives import Piled, Torn
from tests.simulation.mutants.mutant import Mutant


class _Agreeable(int):
    """Is whatever it is compared with."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def state_is_not_checked() -> AbstractContextManager[Any]:
    apply, checksum = Replica.apply, Replica.checksum.fget
    assert checksum is not None

    def broken(self: Any, wal: Any, *, expected_checksum: int | None) -> None:
        apply(self, wal, expected_checksum=None)

    stack = ExitStack()
    stack.enter_context(patch.object(Replica, "apply", broken))
    stack.enter_context(patch.object(Replica, "checksum", property(lambda self: _Agreeable(checksum(self)))))
    return stack


MUTANTS = [
    Mutant("state not checked", "a copy that was damaged is not used", state_is_not_checked, 2, Torn),
    Mutant("merged not checked", "merged epochs of another history are passed over", state_is_not_checked, 2, Piled),
]
