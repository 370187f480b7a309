"""Broken variants of the library. Each breaks a promise on purpose, and the simulation must notice.

A mutant is a patch of the real code at run time. `python -m tests.simulation.mutants` looks how many seeds it takes
until each of them is found out; a mutant that lives through all of its seeds is a hole in the simulation.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from littlebigcluster.cluster.node import Node
from littlebigcluster.database import Batch
from littlebigcluster.epochs import Appended, Leader
from littlebigcluster.errors import Fenced, StoreUnavailable
from littlebigcluster.roles.leader import Leadership
from littlebigcluster.store import Mine, Theirs, Unresolved, once
from tests.simulation.engine import Result, simulate

MOST_SEEDS = 40
"""So many seeds a mutant may live through before it counts as a survivor."""


@dataclass(frozen=True)
class Mutant:
    """One way to be wrong."""

    name: str
    breaks: str
    """The promise, in the words of docs/PROTOCOL.md or the README."""
    patched: Callable[[], AbstractContextManager[Any]]
    first_seed: int = 0
    """From which seed on it is hunted: one that is known to find it soon."""


@dataclass(frozen=True)
class Kill:
    """How a mutant was found out."""

    mutant: Mutant
    seeds: int
    problem: str | None
    seconds: float


def hunt(mutant: Mutant, *, most_seeds: int = MOST_SEEDS) -> Kill:
    """Simulate with the mutant until something is wrong."""
    began = time.perf_counter()
    result: Result | None = None
    for number in range(most_seeds):
        with mutant.patched():
            result = simulate(mutant.first_seed + number)
        if result.problems:
            return Kill(mutant, number + 1, result.problems[0], time.perf_counter() - began)
    return Kill(mutant, most_seeds, None, time.perf_counter() - began)


# -- the conditional create --------------------------------------------------------------------------------------------


def no_read_back() -> AbstractContextManager[Any]:
    async def read_back(store: Any, key: str, body: bytes) -> Theirs:
        return Theirs(b"")

    return patch.object(once, "_read_back", read_back)


def exists_is_ours() -> AbstractContextManager[Any]:
    async def read_back(store: Any, key: str, body: bytes) -> Mine:
        return Mine()

    return patch.object(once, "_read_back", read_back)


def _attempt_with(outcome: Callable[[BaseException], Any]) -> AbstractContextManager[Any]:
    attempt = once._attempt

    async def attempt_(store: Any, key: str, body: bytes) -> Any:
        answer = await attempt(store, key, body)
        return outcome(answer.cause) if isinstance(answer, Unresolved) else answer

    return patch.object(once, "_attempt", attempt_)


def unknown_is_success() -> AbstractContextManager[Any]:
    return _attempt_with(lambda cause: Mine())


def unknown_is_failure() -> AbstractContextManager[Any]:
    return _attempt_with(lambda cause: Theirs(b""))


# -- the leader ----------------------------------------------------------------------------------------------------------


def acknowledged_before_durable() -> AbstractContextManager[Any]:
    commit = Leadership._commit

    async def commit_(self: Any, batch: Batch, *, leader: Leader | None) -> bool:
        if batch.raw is not None:
            batch.acknowledge(self._local.epoch.value + 1)
        return await commit(self, batch, leader=leader)

    return patch.object(Leadership, "_commit", commit_)


def readers_see_what_is_not_durable() -> AbstractContextManager[Any]:
    async def commit(self: Any, batch: Batch, *, leader: Leader | None) -> bool:
        local = self._local
        if batch.raw is None:
            batch.acknowledge(local.epoch.value)
            return True
        epoch = local.epoch.value + 1
        wal, metadata, body = await local.run(self._encode, batch, leader)
        await local.run(lambda: local.replica.apply(wal, expected_checksum=int(metadata.state_checksum, 16)))
        try:
            outcome = await local.log.append(body, term=self.term)
        except StoreUnavailable:
            batch.fail(lambda: error)
            raise
        if not isinstance(outcome, Appended):
            batch.fail(lambda: Fenced("another node leads"))
            return False
        self._on_durable(epoch, body)
        await local._apply(lambda: None, metadata, outcome.position, len(body))
        batch.acknowledge(epoch)
        self._on_epoch(metadata)
        return True

    return patch.object(Leadership, "_commit", commit)


def fenced_writes_are_acknowledged() -> AbstractContextManager[Any]:
    fail = Batch.fail

    def fail_(self: Any, error_factory: Callable[[], Exception]) -> None:
        if isinstance(error_factory(), Fenced):
            self.acknowledge(self.epoch)
        else:
            fail(self, error_factory)

    return patch.object(Batch, "fail", fail_)


# -- readers ---------------------------------------------------------------------------------------------------------------


def strong_reads_prove_nothing() -> AbstractContextManager[Any]:
    async def prove(self: Any) -> None:
        await asyncio.sleep(0)

    return patch.object(Node, "_prove_head", prove)


def at_least_is_not_waited_for() -> AbstractContextManager[Any]:
    async def reach(self: Any, epoch: int) -> None:
        await asyncio.sleep(0)

    return patch.object(Node, "_reach", reach)


MUTANTS = [
    Mutant("no read-back", "exists is always read back: it may be one's own", no_read_back),
    Mutant("exists is ours", "exists is always read back: it may be another's", exists_is_ours),
    Mutant("unknown is success", "a create whose outcome is unknown is never taken for done", unknown_is_success),
    Mutant("unknown is failure", "a create whose outcome is unknown is never taken for failed", unknown_is_failure),
    Mutant("acknowledged before durable", "acknowledged means durable", acknowledged_before_durable),
    Mutant("undurable reads", "no reader sees what is not durable", readers_see_what_is_not_durable),
    Mutant("fenced acknowledges", "a fenced leader acknowledges nothing", fenced_writes_are_acknowledged),
    Mutant(
        "strong reads prove nothing", "a strong read includes all that was acknowledged", strong_reads_prove_nothing
    ),
    Mutant("at_least not waited for", "at_least=epoch includes that epoch", at_least_is_not_waited_for),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Hunt the mutants.")
    parser.add_argument("names", nargs="*", help="only those")
    parser.add_argument("--most-seeds", type=int, default=MOST_SEEDS)
    arguments = parser.parse_args()
    survivors = 0
    for mutant in MUTANTS:
        if arguments.names and mutant.name not in arguments.names:
            continue
        kill = hunt(mutant, most_seeds=arguments.most_seeds)
        survivors += kill.problem is None
        said = kill.problem or "SURVIVED"
        print(f"{mutant.name:32} {kill.seeds:3} seeds {kill.seconds:6.1f} s  {said:.150}", flush=True)
    print(f"{survivors} of {len(MUTANTS)} mutants have survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
