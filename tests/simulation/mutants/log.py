"""Mutants of the one rule: whoever creates epoch N+1 leads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from littlebigcluster.epochs import Metadata, Position, log
from littlebigcluster.roles import catch_up, follower, merger
from littlebigcluster.store import Mine, Resolution, Theirs, Unresolved, once
from tests.simulation.mutants.lives import Stormy
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.stores import Rewound

# Only what concerns epochs is broken. The probe at `init` would refuse a store where this happens to all keys.
_EPOCH = ".wal"


def _reading_back(outcome: Callable[[], Resolution]) -> AbstractContextManager[Any]:
    read_back = once._read_back

    async def broken(store: Any, key: str, body: bytes) -> Resolution:
        return outcome() if key.endswith(_EPOCH) else await read_back(store, key, body)

    return patch.object(once, "_read_back", broken)


def no_read_back() -> AbstractContextManager[Any]:
    return _reading_back(lambda: Theirs(b""))


def exists_is_ours() -> AbstractContextManager[Any]:
    return _reading_back(Mine)


def _attempting(outcome: Callable[[], Resolution]) -> AbstractContextManager[Any]:
    attempt = once._attempt

    async def broken(store: Any, key: str, body: bytes) -> Resolution:
        answer = await attempt(store, key, body)
        return outcome() if isinstance(answer, Unresolved) and key.endswith(_EPOCH) else answer

    return patch.object(once, "_attempt", broken)


def unknown_is_success() -> AbstractContextManager[Any]:
    return _attempting(Mine)


def unknown_is_failure() -> AbstractContextManager[Any]:
    return _attempting(lambda: Theirs(b""))


def chain_is_not_checked() -> AbstractContextManager[Any]:
    check = log.check_link

    def broken(metadata: Metadata, at: Position, *, name: str) -> None:
        check(replace(metadata, previous_sha256=at.sha256), at, name=name)

    stack = ExitStack()
    for module in (log, follower, catch_up, merger):
        stack.enter_context(patch.object(module, "check_link", broken))
    return stack


MUTANTS = [
    Mutant("no read-back", "exists is always read back: it may be our own", no_read_back, 2, Stormy),
    Mutant("exists is ours", "exists is always read back: it may be another's", exists_is_ours, life=Stormy),
    Mutant("unknown is success", "an unknown create is never taken for done", unknown_is_success, life=Stormy),
    Mutant("unknown is failure", "an unknown create is never taken for failed", unknown_is_failure, 2, Stormy),
    Mutant("chain not checked", "a copy never goes over to another history", chain_is_not_checked, life=Rewound),
]
