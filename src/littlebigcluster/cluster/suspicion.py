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
from littlebigcluster.epochs import Leader, Metadata
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client
from littlebigcluster.roles import Findings
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

ASKED_STANDBYS, ASKED_MEMBERS = 3, 8
"""So many are asked: the first standbys in rank, who may claim before this one, and with them any others."""

_ANSWER_SECONDS = 0.5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 4.0
"""Between two rounds, growing, while others reach the leader and this node does not."""

_GONE = (421, 503)
"""Of the leader itself: another node is at its address; it does not lead."""


class Suspicious(Protocol):
    """Who has doubts: a follower that can lead."""

    def listen(self) -> float: ...
    def suspects(self) -> Metadata | None: ...
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
        pause, ask_at = _FIRST_PAUSE_SECONDS, float("-inf")
        while True:
            await asyncio.sleep(self._follower.listen())
            newest = self._follower.suspects()
            if newest is None or newest.leader is None or newest.leader.uuid == self._me:
                pause, ask_at = _FIRST_PAUSE_SECONDS, float("-inf")
            elif self._clock.monotonic() >= ask_at:
                findings = await self._ask_around(newest.leader, newest.term)
                logger.info(
                    "the leader %s, term %d, is not heard; asked, it %s; of the members %d hear it, %d do not,"
                    " %d do not answer",
                    newest.leader.uuid, newest.term, _SAYS[findings.leader], findings.reach, findings.miss,
                    findings.silent,
                )  # fmt: skip
                self._follower.heard_from_members(findings)
                ask_at = self._clock.monotonic() + pause
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _ask_around(self, leader: Leader, term: int) -> Findings:
        """Ask the leader itself and some others, all at once."""
        before = _before(self._members.value, self._me, leader)
        asked = self._whom(before, leader)
        state, answers = await asyncio.gather(
            self._ask_leader(leader), asyncio.gather(*(self._ask(each, leader) for each in asked))
        )
        silent = {member.id for member, answer in zip(asked, answers, strict=True) if answer is None}
        return Findings(
            term=term,
            leader=state,
            reach=answers.count(True),
            miss=answers.count(False),
            silent=len(silent),
            rank=sum(member.id not in silent for member in before),
        )

    def _whom(self, before: Sequence[Member], leader: Leader) -> list[Member]:
        first = list(before[:ASKED_STANDBYS])
        others = [each for each in self._members.value if each.id not in (self._me, leader.uuid) and each not in first]
        others.sort(key=lambda _: self._clock.random())
        return first + others[: ASKED_MEMBERS - len(first)]

    async def _ask_leader(self, leader: Leader) -> Literal["leads", "gone", "silent"]:
        try:
            status, _ = await self._get(leader.address, leader.uuid, LEADS_PATH)
        except PeerUnavailable as error:
            return "gone" if error.refused else "silent"
        except (RequestTimeout, ValueError, RecursionError):
            return "silent"
        return "leads" if status == 200 else "gone" if status in _GONE else "silent"

    async def _ask(self, member: Member, leader: Leader) -> bool | None:
        """Whether the member reaches the leader; None when it does not say."""
        try:
            status, body = await self._get(member.address, member.id, f"{REACHES_PATH}?leader={leader.uuid}")
            answer = body["reaches"] if status == 200 else None
        except (PeerUnavailable, RequestTimeout, ValueError, RecursionError, KeyError, TypeError):
            return None
        return answer if isinstance(answer, bool) else None

    async def _get(self, address: str, id: UUID, path: str) -> tuple[int, Any]:
        client = self._connect(address)
        try:
            response = await client.request("GET", path, headers={"x-lbc-to": str(id)}, timeout=_ANSWER_SECONDS)
            return response.status, response.json()
        finally:
            await client.close()


_SAYS = {"leads": "answers", "gone": "is gone", "silent": "does not answer"}


def _before(members: Members, me: UUID, leader: Leader) -> list[Member]:
    """The standbys that go before this one if it is a member, in their order."""
    standbys = succession(members, leader.uuid, leader.az)
    places = [member.id for member in standbys]
    return standbys[: places.index(me)] if me in places else []
