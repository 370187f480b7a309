"""What the leader does for the members: keeps the roster, feeds everybody, says that it is alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import frames
from littlebigcluster.cluster.fed import KEEP_ALIVE_SECONDS
from littlebigcluster.cluster.feed import Feed
from littlebigcluster.cluster.membership import DuplicateMember, Member, Members, Roster, succession
from littlebigcluster.net import Answer, Refused, Request

logger = logging.getLogger(__name__)

_REPORT_BYTES = 64 << 10

_CHANGED_SECONDS, _CHANGED_SECONDS_A_MEMBER = 0.1, 0.0025
"""A list on which something but epochs has changed goes out at most so often, the less often the longer it is: what is
sent grows with the square of its length, and when many come or go at once, each of them changes it."""

_EPOCHS_SECONDS, _EPOCHS_SECONDS_A_MEMBER = 1.0, 0.01
"""The same for a list on which only epochs have changed."""

_STOOD_STILL_SECONDS = 1.0
"""A keep-alive that is later than this is told to whoever looks for the reason of a failover."""


class Presence:
    """Lives as long as one leadership."""

    def __init__(
        self,
        term: int,
        epoch: int,
        me: Member,
        last: Members,
        *,
        timeout: float,
        clock: Clock,
        on_members: Callable[[Members], None],
        store_age: Callable[[], float],
    ) -> None:
        self.term = term
        self._clock, self._on_members, self._store_age = clock, on_members, store_age
        self._roster = Roster(term, me, last, clock.monotonic(), timeout)
        self._feed = Feed(epoch)
        self._epoch = epoch
        self._send_list(self._roster.members)

    def publish_epoch(self, epoch: int, body: bytes) -> None:
        """An epoch is durable: everybody may have it."""
        self._epoch = epoch
        self._feed.publish_epoch(epoch, body)
        self._roster.advance(epoch)

    def describe(self, me: Member) -> None:
        """The leader's own description has changed."""
        self._roster.describe(me)

    def hand_over(self, to: UUID | None = None, *, leaving: bool) -> None:
        """The leadership is about to be released, and maybe this node leaves: the others are told who shall claim."""
        successor = to or self._choose_successor()
        if leaving:
            self._roster.leave()
            self._send_list(self._roster.members)
        self._feed.publish(frames.pack_json(frames.GOODBYE, {"successor": str(successor) if successor else None}))

    def _choose_successor(self) -> UUID | None:
        me = self._roster.me
        standbys = succession(self._roster.members, me.id, me.az)
        return standbys[0].id if standbys else None

    async def run(self) -> None:
        """Keep-alives, and the member list when it has changed, until cancelled."""
        while True:
            lost = self._roster.expire(self._clock.monotonic(), interval=KEEP_ALIVE_SECONDS)
            if lost > _STOOD_STILL_SECONDS:
                logger.warning(
                    "this leader stood still for %.1f s: its event loop was blocked, or its machine paused. A standby"
                    " takes over after suspect_timeout; blocking work belongs into threads (asyncio.to_thread)",
                    lost,
                )
            self._send_members()
            self.keep_alive()
            await asyncio.sleep(KEEP_ALIVE_SECONDS)

    def keep_alive(self) -> None:
        """Tell everybody that this node leads, and how long ago the store has last taken a write of it."""
        alive = {"term": self.term, "epoch": self._epoch, "store_age": round(self._store_age(), 3)}
        self._feed.publish(frames.pack_json(frames.KEEP_ALIVE, alive))

    def end(self) -> None:
        """The leadership has ended."""
        self._feed.end()

    def _send_members(self) -> None:
        """Send the list if it has changed. If it was sent just now, `run` does it later."""
        members, sent = self._roster.members, self._sent
        if members.number != sent.number:
            least, a_member = _CHANGED_SECONDS, _CHANGED_SECONDS_A_MEMBER
        else:
            least, a_member = _EPOCHS_SECONDS, _EPOCHS_SECONDS_A_MEMBER
        if members != sent and self._clock.monotonic() - self._sent_at >= max(least, len(members) * a_member):
            self._send_list(members)

    def _send_list(self, members: Members) -> None:
        self._sent, self._sent_at = members, self._clock.monotonic()
        self._sent_frame = frames.pack_json(frames.MEMBERS, members.to_json())
        self._on_members(members)
        self._feed.publish(self._sent_frame)

    # -- requests of members ---------------------------------------------------------------------------------------

    async def feed(self, request: Request) -> Answer:
        """POST /.lbc/feed: a member reports, and gets the stream."""
        member, session = await _reporter(request)
        try:
            self._roster.report(member, session, self._clock.monotonic())
        except DuplicateMember as error:
            raise Refused(409, str(error)) from None
        self._send_members()
        return Answer(self._frames(member.epoch), headers={"content-type": "application/octet-stream"})

    async def _frames(self, epoch: int) -> AsyncGenerator[bytes]:
        subscriber = self._feed.subscribe(epoch)
        try:
            subscriber.push(self._sent_frame)
            async with aclosing(subscriber.frames()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._feed.leave(subscriber)

    async def report(self, request: Request) -> Answer:
        """POST /.lbc/report: how far a member has come, or what has changed about it."""
        member, session = await _reporter(request)
        try:
            self._roster.report(member, session, self._clock.monotonic())
        except DuplicateMember as error:
            raise Refused(409, str(error)) from None
        return Answer.json({"term": self.term, "epoch": self._epoch})

    async def leave(self, request: Request) -> Answer:
        """POST /.lbc/leave: a member says goodbye."""
        member, _ = await _reporter(request)
        self._roster.goodbye(member.id)
        self._send_members()
        return Answer.json({})


async def _reporter(request: Request) -> tuple[Member, str]:
    """Who reports. Raises Refused for what is no report, or one in another's name."""
    value: Any = await request.json(max_bytes=_REPORT_BYTES)
    try:
        member, session = Member.from_json(value["member"]), value["session"]
        if not isinstance(session, str) or not 0 < len(session) <= 64:
            raise ValueError("no session")
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(400, f"this is no member's report ({type(error).__name__}: {str(error)[:200]})") from None
    peer = request.peer
    if peer is not None and peer.node_id != str(member.id):
        raise Refused(403, "a member can only report for itself")
    return member, session
