"""Mutants of who claims, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from littlebigcluster.cluster.suspicion import Suspicion
from littlebigcluster.roles import Findings, Question, decisions
from littlebigcluster.roles.leader import Leadership
from tests.simulation.mutants.lives import Haunted, Orderly
from tests.simulation.mutants.mutant import Mutant


@contextmanager
def rank_is_ignored() -> Iterator[None]:
    heard = decisions.heard_from_members

    def broken(view: Any, findings: Findings, now: float, timing: Any) -> Any:
        return heard(view, replace(findings, rank=0), now, timing)

    with ExitStack() as stack:
        stack.enter_context(patch.object(decisions, "heard_from_members", broken))
        stack.enter_context(patch.object(decisions, "patience", lambda *_: 0.0))
        yield


def nobody_is_asked() -> AbstractContextManager[Any]:
    async def broken(self: Any, question: Question) -> Findings:
        return Findings(term=question.term, leader="silent", reach=0, miss=1, silent=0, rank=0)

    return patch.object(Suspicion, "_ask_around", broken)


def old_beacon_counts() -> AbstractContextManager[Any]:
    saw_beacon = decisions.saw_beacon

    def broken(view: Any, beacon: Any, now: float) -> Any:
        return saw_beacon(view, replace(beacon, term=view.term) if beacon is not None else None, now)

    return patch.object(decisions, "saw_beacon", broken)


def deaf_to_the_release() -> AbstractContextManager[Any]:
    """A leadership that is released is not claimed, but for the first, which nobody has had before."""
    decide = decisions.decide

    def broken(view: Any, now: float, timing: Any, **how: Any) -> Any:
        action = decide(view, now, timing, **how)
        if isinstance(action, decisions.Claim) and view.leader is None and view.term:
            return decisions.Wait(timing.poll_interval)
        return action

    return patch.object(decisions, "decide", broken)


def fed_before_durable() -> AbstractContextManager[Any]:
    encode = Leadership._encode

    def broken(self: Any, batch: Any, leader: Any) -> Any:
        wal, metadata, body = encode(self, batch, leader)
        self._loop_of_mutant.call_soon_threadsafe(self._on_durable, metadata.epoch, body)
        return wal, metadata, body

    commit = Leadership._commit

    async def committing(self: Any, batch: Any, *, leader: Any) -> bool:
        self._loop_of_mutant = asyncio.get_running_loop()
        return await commit(self, batch, leader=leader)

    stack = ExitStack()
    stack.enter_context(patch.object(Leadership, "_encode", broken))
    stack.enter_context(patch.object(Leadership, "_commit", committing))
    return stack


MUTANTS = [
    Mutant("rank ignored", "one standby claims, by rank; the others leave it to it", rank_is_ignored, 1, Orderly),
    Mutant("nobody is asked", "a leader that others reach is not replaced", nobody_is_asked, life=Orderly),
    Mutant("old beacon counts", "a beacon of an older term is no sign of life", old_beacon_counts, life=Haunted),
    Mutant("release not claimed", "somebody leads when nothing is broken any more", deaf_to_the_release),
    Mutant("fed before durable", "no follower shows what is not durable", fed_before_durable, 2),
]
