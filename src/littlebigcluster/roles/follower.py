"""The follower loop: get the next epoch, apply it, and say when it is time to claim.

Epochs come from the store, by polling. While the leader feeds this node they are handed in by `offer` as soon as they
are durable, and the store is polled rarely, to be sure. What is handed in is checked like what is read.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable

from littlebigcluster.clock import Clock
from littlebigcluster.database import StateMismatch
from littlebigcluster.epochs import (
    AtHead,
    Beacon,
    Entry,
    Gone,
    Leader,
    Metadata,
    check_follows,
    check_link,
    codec,
    merged,
    names,
    read_merged,
)
from littlebigcluster.errors import CorruptLog, FormatTooNew, StoreUnavailable
from littlebigcluster.roles import decisions
from littlebigcluster.roles.afresh import Afresh
from littlebigcluster.roles.decisions import Claim, Findings, Question, Timing
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.store import Store

logger = logging.getLogger(__name__)

LISTEN_SECONDS, SHORTEST_LISTEN_SECONDS = 0.25, 0.01
"""How often a node makes sure that it does not stand still, and how often at most."""

MAX_OFFERED_BYTES = 32 << 20
"""So much of what was handed in may wait to be applied; the rest is fetched from the store."""


_FAR_BEHIND = 16
"""After so many epochs in a row that were there already, look whether the next ones are merged."""


class Follower:
    """Keeps the local copy at the head of the log."""

    def __init__(
        self,
        store: Store,
        local: LocalCopy,
        timing: Timing,
        *,
        me: Leader,
        can_lead: bool,
        clock: Clock,
        on_epoch: Callable[[Metadata], None],
        rank: Callable[[], int | None],
    ) -> None:
        """`rank` tells how many standbys go before this one; None when this node does not know them."""
        self._store, self._local, self._timing, self._clock = store, local, timing, clock
        self._me, self._can_lead, self._on_epoch, self._rank = me, can_lead, on_epoch, rank
        self._afresh = Afresh(store, local, look_interval=timing.poll_interval, clock=clock)
        self._view = self._begin()
        self._woken = asyncio.Event()
        self._look_at = clock.monotonic()
        self._news = False
        """There is an epoch for which the last look may have begun too early."""
        self._relaxed = False
        """The next look is planned for a leader that reaches the store."""
        self._fed = False
        self._abstains_until = clock.monotonic()
        self._chosen = False
        self._searched_for: float | None = None
        self._offered: dict[int, bytes] = {}
        self._in_trouble = False
        self._in_a_row = 0
        """Epochs that were there already when the store was asked for them."""

    def abstain(self, seconds: float) -> None:
        """Let others claim first for so long."""
        self._abstains_until, self._chosen = self._clock.monotonic() + seconds, False

    def succeed(self) -> None:
        """This node is to claim when the leadership is released, before all others."""
        self._abstains_until, self._chosen = self._clock.monotonic(), True

    def nudge(self) -> None:
        """There is a new epoch in the store: look at once, do not wait for the next poll."""
        self._news = True
        self._look_soon()

    def offer(self, epoch: int, body: bytes) -> None:
        """The leader says that this epoch is durable, and hands it over."""
        if sum(map(len, self._offered.values())) + len(body) <= MAX_OFFERED_BYTES:
            self._offered[epoch] = body
            self._woken.set()
        else:
            self.nudge()

    def heard_leader(self, term: int, store_age: float) -> None:
        """The leader of `term` has answered this node, and has reached the store so many seconds ago."""
        self._view = decisions.heard_leader(self._view, term, store_age, self._clock.monotonic())

    def listen(self) -> float:
        """Said again and again, so that silence counts; returns when at the latest to say it next, in seconds."""
        now = self._clock.monotonic()
        self._view = decisions.listened(self._view, now, self._timing)
        if decisions.is_missed(self._view, now, self._timing) and self._searched_for != self._view.contact_at:
            self._searched_for = self._view.contact_at  # what the leader has written last must be seen in time
            self._look_soon()
        left = decisions.suspected_at(self._view, self._timing) - now
        return max(SHORTEST_LISTEN_SECONDS, min(LISTEN_SECONDS, left)) if left > 0 else LISTEN_SECONDS

    def suspects(self) -> Question | None:
        """What others should be asked now, if anything."""
        return decisions.question(self._view, self._clock.monotonic(), self._timing)

    def heard_from_members(self, findings: Findings) -> None:
        """What came of asking."""
        now = self._clock.monotonic()
        self._view = decisions.heard_from_members(self._view, findings, now, self._timing)
        if self._view.claim_at is not None:
            self._look_soon()

    def reaches(self, leader: Leader | None) -> bool:
        """Whether this node hears that leader."""
        return decisions.reaches(self._view, leader, self._clock.monotonic(), self._timing)

    def feed(self, on: bool) -> None:
        """Whether the leader hands over epochs from now on."""
        self._fed = on
        self._offered.clear()
        self._look_soon()

    async def run(self) -> Claim:
        """Follow until it is time to claim; for ever on a node that cannot lead.

        Raises CorruptLog and FormatTooNew when the log itself cannot be followed.
        """
        self._view = self._begin()
        self._look_at = self._clock.monotonic()
        while True:
            try:
                pause = await self._step()
            except (StoreUnavailable, OSError, sqlite3.Error) as error:
                self._trouble(error)
                self._look_at, self._relaxed = self._clock.monotonic() + self._timing.poll_interval, False
                pause = self._timing.poll_interval
            else:
                self._relief()
            if isinstance(pause, Claim):
                self._view = self._begin()  # it is not suspected any more, but replaced
                return pause
            if pause > 0:
                await self._pause(pause)

    async def _step(self) -> float | Claim:
        """Apply what was handed in, look if it is time to; then how long to wait, or a claim."""
        try:
            if await self._apply_offered():
                return 0.0
            if (left := self._due_at() - self._clock.monotonic()) > 0:
                return left
            self._news = False
            if await self._look() or self._news:
                return 0.0
        except CorruptLog as error:
            await self._restore_afresh(f"the log cannot be followed here: {error}")
            return 0.0
        except StateMismatch as error:
            await self._restore_afresh(f"the local copy differs from the leader's: {error}")
            return 0.0
        now = self._clock.monotonic()
        can_lead = self._can_lead and now >= self._abstains_until
        patience = 0.0
        if not self._chosen:
            patience = decisions.patience(self._view, self._rank(), self._clock.random(), self._timing)
        action = decisions.decide(
            self._view, now, self._timing, me=self._me, can_lead=can_lead, patience=patience, fed=self._fed
        )
        if isinstance(action, Claim):
            return action
        self._look_at, self._relaxed = now + action.seconds, action.relaxed
        return max(0.0, self._due_at() - now)

    def _due_at(self) -> float:
        """When to look next."""
        return min(self._look_at, decisions.suspect_at(self._view, self._timing)) if self._relaxed else self._look_at

    async def _apply_offered(self) -> bool:
        """Apply the next epoch if it was handed in."""
        at = self._local.log.position
        body = self._offered.pop(at.epoch + 1, None)
        for epoch in [epoch for epoch in self._offered if epoch <= at.epoch]:
            del self._offered[epoch]
        if body is None:
            if self._offered:  # there is a hole before what was handed in
                self._look_at = self._clock.monotonic()
            return False
        try:
            entry = codec.decode(body, name=names.wal(at.epoch + 1))
            check_follows(entry, at, cluster_id=self._local.cluster_id)
        except CorruptLog as error:
            # The store is the authority; what it holds will tell.
            logger.warning("the leader handed over something else than the next epoch: %s", error)
            self._look_at = self._clock.monotonic()
            return False
        await self._local.apply_entry(entry)
        self._saw(entry)
        return True

    async def _look(self) -> bool:
        """One look at the store; True when it brought the copy further."""
        found = await self._local.log.next()
        if isinstance(found, Gone):
            await self._restore_afresh("the log behind the local copy is gone")
            return True
        if isinstance(found, Entry):
            self._in_a_row += 1
            if self._in_a_row < _FAR_BEHIND or not await self._leap():
                await self._local.apply_entry(found)
                self._saw(found)
            return True
        assert isinstance(found, AtHead)
        self._in_a_row = 0
        now = self._clock.monotonic()
        self._view = decisions.saw_nothing(self._view, now, self._timing)
        if self._can_lead and decisions.wants_beacon(self._view, now, self._timing, fed=self._fed):
            beacon = Beacon.decode(await self._store.get(names.BEACON))
            self._view = decisions.saw_beacon(self._view, beacon, self._clock.monotonic())
        return False

    async def _leap(self) -> bool:
        """Take many epochs at once, if they are merged; True when that brought the copy further."""
        at = self._local.log.position
        for span in merged.beginning(at.epoch + 1):
            try:
                # An epoch that follows the last one is there: so that one is in the log.
                entry = await read_merged(self._store, span, cluster_id=self._local.cluster_id)
                check_link(entry.metadata, at, name=span.name)
                if not self._local.log.is_confirmed:  # it may have been deleted meanwhile
                    return False
                await self._local.apply_entry(entry)
            except (CorruptLog, FormatTooNew, StateMismatch, StoreUnavailable) as error:
                logger.debug("going on one by one: %s", error)
                continue
            self._saw(entry)
            return True
        return False

    def _saw(self, entry: Entry) -> None:
        self._view = decisions.saw_epoch(self._view, entry.metadata, self._clock.monotonic())
        if entry.metadata.leader is None:
            self._look_at = self._clock.monotonic()
        else:
            self._chosen = False
        self._on_epoch(entry.metadata)

    def _begin(self) -> decisions.View:
        metadata = self._local.metadata
        return decisions.begin(metadata.term, metadata.leader, self._clock.monotonic())

    async def _restore_afresh(self, reason: str) -> None:
        logger.warning("restoring from the store: %s", reason)
        await self._afresh.restore()
        self._offered.clear()
        self._look_at = self._clock.monotonic()  # something may have been handed over meanwhile
        self._view = self._begin()
        self._on_epoch(self._local.metadata)

    def _look_soon(self) -> None:
        self._look_at = self._clock.monotonic()
        self._woken.set()

    async def _pause(self, seconds: float) -> None:
        if not self._woken.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass
        self._woken.clear()

    def _trouble(self, error: Exception) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            what = "the store does not answer" if isinstance(error, StoreUnavailable) else "the local disk fails"
            logger.warning("%s; reads go on, at epoch %d: %s", what, self._local.epoch.value, error)

    def _relief(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            logger.info("following again")
