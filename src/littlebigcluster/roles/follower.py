"""The follower loop: look for the next epoch, apply it, and say when it is time to claim."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable

from littlebigcluster.clock import Clock
from littlebigcluster.database import StateMismatch
from littlebigcluster.epochs import AtHead, Beacon, Entry, Gone, Leader, Metadata, names
from littlebigcluster.errors import CorruptLog, StoreUnavailable
from littlebigcluster.roles import decisions
from littlebigcluster.roles.decisions import Claim, Timing, View
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.store import Store

logger = logging.getLogger(__name__)


class Follower:
    """Keeps the local copy at the head of the log, by polling the store."""

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
    ) -> None:
        self._store, self._local, self._timing, self._clock = store, local, timing, clock
        self._me, self._can_lead, self._on_epoch = me, can_lead, on_epoch
        self._nudged = asyncio.Event()
        self._in_trouble = False

    def nudge(self) -> None:
        """Look at once, do not wait for the next poll."""
        self._nudged.set()

    async def run(self) -> Claim:
        """Follow until it is time to claim; for ever on a node that cannot lead.

        Raises CorruptLog and FormatTooNew when the log itself cannot be followed.
        """
        view = decisions.begin(self._local.metadata.term, self._local.metadata.leader, self._clock.monotonic())
        while True:
            try:
                view = await self._look(view)
            except (StoreUnavailable, OSError, sqlite3.Error) as error:
                self._trouble(error)
                await self._pause(self._timing.poll_interval)
                continue
            self._relief()
            action = decisions.decide(
                view,
                self._clock.monotonic(),
                self._timing,
                me=self._me,
                can_lead=self._can_lead,
                patience=self._clock.random(),
            )
            if isinstance(action, Claim):
                return action
            if action.seconds:
                await self._pause(action.seconds)

    async def _look(self, view: View) -> View:
        """One look at the store, and what it tells."""
        local = self._local
        try:
            found = await local.log.next()
            if isinstance(found, Entry):
                await local.apply_entry(found)
        except CorruptLog as error:
            return await self._restore_afresh(f"the log cannot be followed here: {error}")
        except StateMismatch as error:
            return await self._restore_afresh(f"the local copy differs from the leader's: {error}")
        if isinstance(found, Gone):
            return await self._restore_afresh("the log behind the local copy is gone")
        now = self._clock.monotonic()
        if isinstance(found, Entry):
            self._on_epoch(found.metadata)
            return decisions.saw_epoch(view, found.metadata, now)
        assert isinstance(found, AtHead)
        view = decisions.saw_nothing(view, now, self._timing)
        if self._can_lead and decisions.wants_beacon(view, now, self._timing):
            beacon = Beacon.decode(await self._store.get(names.BEACON))
            view = decisions.saw_beacon(view, beacon, self._clock.monotonic())
        return view

    async def _restore_afresh(self, reason: str) -> View:
        logger.warning("restoring from the store: %s", reason)
        await self._local.replace()
        self._on_epoch(self._local.metadata)
        return decisions.begin(self._local.metadata.term, self._local.metadata.leader, self._clock.monotonic())

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._nudged.wait()
        except TimeoutError:
            pass
        self._nudged.clear()

    def _trouble(self, error: Exception) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            what = "the store does not answer" if isinstance(error, StoreUnavailable) else "the local disk fails"
            logger.warning("%s; reads go on, at epoch %d: %s", what, self._local.epoch.value, error)

    def _relief(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            logger.info("following again")
