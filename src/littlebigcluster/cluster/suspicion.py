"""Asking around for a leader that this standby does not hear any more.

What to make of the answers `roles/decisions.py` says. They only save time: who claims finds out by the create.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.membership import Member, Members, succession
from littlebigcluster.cluster.service import LEADS_PATH, REACHES_PATH
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client
from littlebigcluster.roles import Findings, Question
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

ASKED_STANDBYS, ASKED_MEMBERS = 3, 8
"""So many are asked: the first standbys in rank, who may claim before this one, and with them any others."""

_SOMEBODY_ELSE = 421
"""Another node is at the address."""

_GONE = (_SOMEBODY_ELSE, 503)
"""Of the leader itself, which may be there and not lead."""

_NO_ANSWER = (PeerUnavailable, RequestTimeout, ValueError, RecursionError)
"""Or one that cannot be read."""


class Suspicious(Protocol):
    """Who has doubts: a follower that can lead."""

    def listen(self) -> float: ...
    def suspects(self) -> Question | None: ...
    def heard_from_members(self, findings: Findings) -> None: ...


class Suspicion:
    """Runs beside the follower loop. Connections are made anew for each question: those that are open may be what
    is broken."""

    def __init__(
        self,
        follower: Suspicious,
        members: Watch[Members],
        *,
        me: UUID,
        connect: Callable[[str], Client],
        clock: Clock,
    ) -> None:
        self._follower, self._members, self._me = follower, members, me
        self._connect, self._clock = connect, clock

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            asking: asyncio.Task[None] | None = None
            while True:
                await asyncio.sleep(self._follower.listen())
                question = self._follower.suspects()
                idle = asking is None or asking.done()
                if question is not None and question.leader.uuid != self._me and idle:
                    asking = group.create_task(self._ask_and_tell(question))

    async def _ask_and_tell(self, question: Question) -> None:
        findings = await self._ask_around(question)
        logger.info(
            "the leader %s, term %d, is not heard; asked, it %s; of the members %d hear it, %d do not, %d do not"
            " answer in %g s",
            question.leader.uuid, question.term, _SAYS[findings.leader], findings.reach, findings.miss,
            findings.silent, question.patience,
        )  # fmt: skip
        self._follower.heard_from_members(findings)

    async def _ask_around(self, question: Question) -> Findings:
        """Ask the leader itself and some others, all at once."""
        leader, patience = question.leader, question.patience
        before = _before(self._members.value, self._me, leader)
        asked = self._whom(before, leader)
        state, answers = await asyncio.gather(
            self._ask_leader(leader, patience),
            asyncio.gather(*(self._ask(each, leader, patience) for each in asked)),
        )
        absent = {each.id for each, answer in zip(asked, answers, strict=True) if answer in ("gone", "silent")}
        return Findings(
            term=question.term,
            leader=state,
            reach=answers.count("reaches"),
            miss=answers.count("misses") + answers.count("gone"),
            silent=answers.count("silent"),
            rank=sum(member.id not in absent for member in before),
        )

    def _whom(self, before: Sequence[Member], leader: Leader) -> list[Member]:
        first = list(before[:ASKED_STANDBYS])
        others = [each for each in self._members.value if each.id not in (self._me, leader.uuid) and each not in first]
        others.sort(key=lambda _: self._clock.random())
        return first + others[: ASKED_MEMBERS - len(first)]

    async def _ask_leader(self, leader: Leader, patience: float) -> Literal["leads", "gone", "silent"]:
        try:
            status, _ = await self._get(leader.address, leader.uuid, LEADS_PATH, patience)
        except _NO_ANSWER as error:
            return "gone" if _is_refused(error) else "silent"
        return "leads" if status == 200 else "gone" if status in _GONE else "silent"

    async def _ask(
        self, member: Member, leader: Leader, patience: float
    ) -> Literal["reaches", "misses", "gone", "silent"]:
        path = f"{REACHES_PATH}?leader={leader.uuid}"
        try:
            status, body = await self._get(member.address, member.id, path, patience)
            if status == 200 and isinstance(body["reaches"], bool):
                return "reaches" if body["reaches"] else "misses"
        except (*_NO_ANSWER, KeyError, TypeError) as error:
            return "gone" if _is_refused(error) else "silent"
        return "gone" if status == _SOMEBODY_ELSE else "silent"

    async def _get(self, address: str, id: UUID, path: str, patience: float) -> tuple[int, Any]:
        client = self._connect(address)
        try:
            response = await client.request("GET", path, headers={"x-lbc-to": str(id)}, timeout=patience)
            return response.status, response.json()
        finally:
            await client.close()


_SAYS = {"leads": "answers", "gone": "is gone", "silent": "does not answer"}


def _before(members: Members, me: UUID, leader: Leader) -> list[Member]:
    """The standbys that go before this one if it is a member, in their order."""
    standbys = succession(members, leader.uuid, leader.az)
    places = [member.id for member in standbys]
    return standbys[: places.index(me)] if me in places else []


def _is_refused(error: Exception) -> bool:
    """The machine answers that nobody listens there."""
    return isinstance(error, PeerUnavailable) and error.refused
