"""Mutants of retention, and of who meets what it has left."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import PropertyMock, patch

from littlebigcluster.epochs import Log, Lost, log, names, retention
from littlebigcluster.epochs.pins import Pins
from littlebigcluster.roles import retention as role
from tests.simulation.mutants.lives import Kept
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.stores import Leapt, Slept


def no_fence_validity() -> AbstractContextManager[Any]:
    return patch.object(Log, "is_confirmed", PropertyMock(return_value=True))


def forgotten_is_lost() -> AbstractContextManager[Any]:
    return patch.object(log, "Forgotten", Lost)


def one_epoch_too_many() -> AbstractContextManager[Any]:
    """Deletes the epoch after the snapshot that it keeps, too."""
    below = retention.below

    def broken(found: retention.Holdings, keep_from: int) -> list[str]:
        return [*below(found, keep_from), names.wal(keep_from), names.wal(keep_from + 1)]

    return patch.object(retention, "below", broken)


def kept_snapshot_goes() -> AbstractContextManager[Any]:
    below = retention.below
    return patch.object(retention, "below", lambda found, keep_from: below(found, keep_from + 1))


def pins_are_ignored() -> AbstractContextManager[Any]:
    async def broken(store: Any, listing: Iterable[Any], *, now: Any) -> Pins:
        return Pins([], [])

    return patch.object(role, "read_pins", broken)


def marker_does_not_stand() -> AbstractContextManager[Any]:
    """What is below `.last_retained` goes as soon as it is raised."""
    make_pass = role.Retention.make_pass

    async def broken(self: Any) -> None:
        self._standing_since = float("-inf")
        await make_pass(self)

    return patch.object(role.Retention, "make_pass", broken)


MUTANTS = [
    Mutant("no fence validity", "absent is the head only for who knew the head lately", no_fence_validity, 1, Slept),
    Mutant("forgotten is lost", "what may have taken effect is never called refused", forgotten_is_lost, life=Slept),
    Mutant("one epoch too many", "retention leaves a log that can be restored", one_epoch_too_many, 2, Kept),
    Mutant("kept snapshot goes", "what retention keeps begins with a snapshot", kept_snapshot_goes, 2, Kept),
    Mutant("pins ignored", "what is pinned can be restored", pins_are_ignored, 4, Kept),
    Mutant("marker does not stand", "nothing goes while a fence may hold", marker_does_not_stand, life=Leapt),
]
