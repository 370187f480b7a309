"""The way back of a node: making a former state of the database the present one, for the whole cluster."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from littlebigcluster.cluster.forward import error_of
from littlebigcluster.cluster.reading import Reading
from littlebigcluster.cluster.service import ROLLBACK_PATH
from littlebigcluster.database import Done
from littlebigcluster.epochs import Identity, Point, find_epoch, retained
from littlebigcluster.errors import Aborted, NoMember, NotLeader, OutcomeUnknown, PeerUnavailable, RequestTimeout
from littlebigcluster.roles import restore_at
from littlebigcluster.settings import Duration, seconds
from littlebigcluster.store import Store
from littlebigcluster.temporary import temporary_directory
from littlebigcluster.threads import in_thread
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)


class Returning(Reading):
    """What a `Node` does to go back."""

    _store: Store
    _identity: Identity
    _directory: Path
    _leads: Watch[bool]
    _rolling_back: asyncio.Lock

    async def rollback(self, point: Point, *, timeout: Duration = 600.0) -> Done[int]:
        """Make the database what it was at `point` (an epoch, a datetime, a timedelta: so long ago), for the whole
        cluster, as one new epoch. History is kept: rolling back to the epoch before undoes it.

        Any node may ask; the leader does it. `.value` is the epoch that came back, `.epoch` the new one, which reads
        here see. Members, the leader and keys of writes do not go back. Raises NotRetained, NotLeader when nobody
        leads, Fenced, Aborted (not done), EpochTooLarge, OutcomeUnknown, CorruptLog, StoreUnavailable, OSError.
        """
        self._check_home()
        found = await retained(self._store)
        to = await find_epoch(self._store, found, point, clock=self._clock)
        limit = seconds(timeout)
        epoch = await self._roll_back(to) if self._leads.value else await self._ask_rollback(to, limit)
        async with asyncio.timeout(limit):
            await self._reach(epoch)
        return Done(to, epoch)

    async def _ask_rollback(self, to: int, limit: float) -> int:
        try:
            response = await self._clients.leader().post(ROLLBACK_PATH, json.dumps({"to": to}).encode(), timeout=limit)
        except NoMember as error:
            raise NotLeader(f"nobody leads; nothing was done ({error})") from error
        except (PeerUnavailable, RequestTimeout) as error:
            if isinstance(error, PeerUnavailable) and not error.sent:
                raise NotLeader(f"the leader cannot be reached; nothing was done ({error})") from error
            raise OutcomeUnknown(f"no answer of the leader; the rollback may have taken effect ({error})") from error
        if response.status != 200:
            raise error_of(response.json())
        return int(response.json()["epoch"])

    async def _roll_back(self, to: int) -> int:
        """On the leader."""
        leadership = self._leadership
        if leadership is None:
            raise NotLeader("this node does not lead; nothing was done")
        if self._rolling_back.locked():  # each takes as much of the disk as the database
            raise Aborted("another rollback is under way; nothing was done")
        async with self._rolling_back:
            found = await retained(self._store)
            await find_epoch(self._store, found, to, clock=self._clock)
            async with temporary_directory(beside=self._directory, prefix="rollback-") as directory:
                former = await restore_at(self._store, self._identity, directory, found, to, clock=self._clock)
                await in_thread(former.replica.close)
                logger.info("rolling back to epoch %d", to)
                return await leadership.bring_back(former.replica.path)
