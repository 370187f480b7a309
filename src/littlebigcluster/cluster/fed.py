"""The feed, on a follower's side: one stream from whoever leads, made again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Callable
from typing import Protocol

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import frames
from littlebigcluster.cluster.membership import Member, Members
from littlebigcluster.epochs import Leader, codec
from littlebigcluster.errors import CorruptLog, PeerUnavailable, RequestTimeout, plain_errors
from littlebigcluster.net import Client
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 0.5
HEARTBEAT_SECONDS = 1.5
"""A feed that is silent for so long is broken."""

SUCCESSION_SECONDS = 1.0
"""So long the others leave the leadership to the chosen successor."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 4.0
"""Between two attempts at the same leader, growing from the first to the longest: all followers of one that is gone
try."""

_REPORT_SECONDS = 1.0
_GOODBYE_SECONDS = 1.0
_FOR_GOOD = (400, 401, 403, 404, 405, 409, 413)
"""A leader that answers so will not answer otherwise the next time."""


class Fed(Protocol):
    """What the feed is for: a follower."""

    def offer(self, epoch: int, body: bytes) -> None: ...
    def heard_leader(self, term: int, store_age: float) -> None: ...
    def feed(self, on: bool) -> None: ...
    def nudge(self) -> None: ...
    def abstain(self, seconds: float) -> None: ...
    def succeed(self) -> None: ...


class Reporter:
    """Keeps the stream to the present leader, and tells it how far this node is. Runs beside the follower loop, which
    polls whenever the stream is not up.

    Over a connection of its own: on one that is shared, a stream that somebody does not read would silence the feed.
    """

    def __init__(
        self,
        leader: Watch[Leader | None],
        *,
        me: Callable[[], Member],
        session: str,
        connect: Callable[[str], Client],
        follower: Fed,
        report_interval: float,
        on_members: Callable[[Members], None],
        clock: Clock,
    ) -> None:
        self._leader, self._me, self._session, self._connect = leader, me, session, connect
        self._follower, self._report_interval, self._on_members = follower, report_interval, on_members
        self._clock = clock
        self.connected: Watch[bool] = Watch(False)
        self._client: Client | None = None
        self._reported: Member | None = None
        self._reported_at = 0.0
        self._woken = asyncio.Event()
        self._leaving = False
        self._refusal = ""

    async def run(self) -> None:
        """For ever. A broken stream is no error: polling goes on, and it is made again."""
        failures = 0
        while True:
            leader = await self._leader.until(lambda leader: leader is not None and leader.address)
            assert leader is not None
            if leader.uuid == self._me().id:
                await self._leader.until(_other_than(leader))
                continue
            began = _now()
            await self._attempt(leader)
            failures = 0 if _now() - began > _LONGEST_PAUSE_SECONDS else failures + 1
            pause = pause_before_retry(failures, self._clock.random())
            with contextlib.suppress(TimeoutError):
                await self._leader.until(_other_than(leader), timeout=pause)
                failures = 0

    async def _attempt(self, leader: Leader) -> None:
        """One stream, until it breaks or another one leads."""
        # A task of its own, and no loop in it: a task group that has an error in hand swallows a cancellation (before
        # Python 3.13).
        reading = asyncio.create_task(self._read_and_report(leader))
        changed = asyncio.create_task(self._leader.until(_other_than(leader)))
        try:
            await asyncio.wait((reading, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, changed):
                task.cancel()
            await asyncio.gather(reading, changed, return_exceptions=True)
        if not reading.cancelled() and (error := reading.exception()) is not None:
            if not isinstance(error, PeerUnavailable | RequestTimeout | ValueError | CorruptLog):
                raise error
            logger.debug("the feed of %s broke: %s", leader.uuid, error)

    def changed(self) -> None:
        """Something about this node has changed: report at once."""
        self._woken.set()

    async def leave(self) -> None:
        """Say goodbye, if there is a leader to say it to."""
        self._leaving = True
        if self._client is not None and self.connected.value:
            with contextlib.suppress(PeerUnavailable, RequestTimeout):
                body = self._report(self._me())
                await self._client.request("POST", "/.lbc/leave", body=body, timeout=_GOODBYE_SECONDS)

    async def _read_and_report(self, leader: Leader) -> None:
        with plain_errors():
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(self._report_changes())
                await self._read(leader)
                reporting.cancel()

    async def _report_changes(self) -> None:
        """Tell the leader how far this node has come: about once a second while that changes, and now and then
        while it does not, as a sign of life."""
        while True:
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_SECONDS):
                    await self._woken.wait()
            me, due = self._me(), self._reported_at + self._report_interval <= _now()
            if (
                self._client is not None
                and self.connected.value
                and not self._leaving
                and (due or me != self._reported)
            ):
                with contextlib.suppress(PeerUnavailable, RequestTimeout):
                    body, timeout = self._report(me), _REPORT_SECONDS
                    answer = await self._client.request("POST", "/.lbc/report", body=body, timeout=timeout)
                    if answer.status == 200:
                        self._reported, self._reported_at = me, _now()

    def _report(self, me: Member) -> bytes:
        return json.dumps({"member": me.to_json(), "session": self._session}).encode()

    async def _read(self, leader: Leader) -> None:
        client = self._client = self._connect(leader.address)
        me = self._me()
        try:
            async with client.stream(
                "POST", "/.lbc/feed", headers={"x-lbc-to": str(leader.uuid)}, body=self._report(me),
                timeout=HEARTBEAT_SECONDS, heartbeat=HEARTBEAT_SECONDS,
            ) as stream:  # fmt: skip
                if stream.status != 200:
                    self._refused(leader, stream.status, (await stream.read())[:300])
                self._reported, self._reported_at, self._refusal = me, _now(), ""
                self._up(True)
                logger.debug("fed by %s at %s", leader.uuid, leader.address)
                unpacker = frames.Unpacker()
                async for piece in stream:
                    for kind, payload in unpacker.feed(piece):
                        self._take(kind, payload)
        finally:
            self._up(False)
            self._client = None
            await client.close()

    def _refused(self, leader: Leader, status: int, why: bytes) -> None:
        refusal = f"{leader.uuid} at {leader.address} does not feed this node: {status} {why.decode(errors='replace')}"
        if status in _FOR_GOOD and refusal != self._refusal:
            self._refusal = refusal
            logger.warning("%s; it goes on by polling the store, and is no member", refusal)
        raise PeerUnavailable(refusal, sent=True)

    def _up(self, up: bool) -> None:
        if self.connected.value != up:
            self.connected._set(up)
            self._follower.feed(up)

    def _take(self, kind: bytes, payload: bytes) -> None:
        """Raises ValueError, CorruptLog or FormatTooNew for a frame that cannot be read."""
        try:
            self._act_on(kind, payload)
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"a frame of kind {kind!r} cannot be read: {type(error).__name__}") from None

    def _act_on(self, kind: bytes, payload: bytes) -> None:
        follower = self._follower
        if kind == frames.MEMBERS:
            members = Members.from_json(json.loads(payload))
            follower.heard_leader(members.term, math.inf)  # it lives; of the store this says nothing
            self._on_members(members)
        elif kind == frames.EPOCH:
            metadata, _ = codec.decode_header(payload, name="an epoch from the feed")
            follower.offer(metadata.epoch, payload)
            follower.heard_leader(metadata.term, 0.0)
        elif kind == frames.NAMED:
            follower.nudge()
        elif kind == frames.KEEP_ALIVE:
            alive = json.loads(payload)
            follower.heard_leader(int(alive["term"]), float(alive["store_age"]))
        elif kind == frames.GOODBYE and (successor := json.loads(payload)["successor"]) is not None:
            # It comes just before the epoch that releases the leadership; that one all see at the same moment. The
            # chosen one claims, even if it has stepped down itself a moment ago.
            if successor == str(self._me().id):
                follower.succeed()
            else:
                follower.abstain(SUCCESSION_SECONDS)


def pause_before_retry(failures: int, chance: float) -> float:
    """Seconds until the next attempt, after so many streams in a row that broke soon. `chance`, from 0 to 1, tells
    followers apart, so that they do not all come at the same moment."""
    longest = min(_FIRST_PAUSE_SECONDS * (1 << min(failures, 16)), _LONGEST_PAUSE_SECONDS)
    return longest * (1 + chance) / 2


def _now() -> float:
    return asyncio.get_running_loop().time()


def _other_than(leader: Leader) -> Callable[[Leader | None], bool]:
    return lambda now: now != leader
