"""The reading face of a node: queries on the local copy, at the level of consistency that is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.clients import Clients
from littlebigcluster.cluster.fed import Reporter
from littlebigcluster.cluster.home import Home
from littlebigcluster.cluster.service import HEAD_PATH
from littlebigcluster.cluster.statements import Parameters
from littlebigcluster.cluster.travel import Past, Travel
from littlebigcluster.epochs import Point
from littlebigcluster.errors import DeadlineExceeded, LbcError, NoMember, PeerUnavailable, RequestTimeout
from littlebigcluster.roles import Follower, Leadership, LocalCopy, SharedProof
from littlebigcluster.settings import Duration, NodeSettings, seconds

_MOVING_SECONDS = 1.0
"""The log is moving when the last epoch is younger than this."""

_FEED_SECONDS = 0.2
"""So long an epoch may be on its way over the feed before the store is asked for it."""

_LEADER_SECONDS = 1.0
"""So long a strong read waits for the leader before it asks the store."""


class Reading(Home):
    """What a `Node` does with reads."""

    settings: NodeSettings
    _local: LocalCopy
    _leadership: Leadership | None
    _follower: Follower
    _proof: SharedProof
    _clients: Clients
    _reporter: Reporter
    _travel: Travel
    _clock: Clock

    async def read(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        at_least: int | None = None,
        consistency: Literal["local", "strong"] = "local",
        timeout: Duration | None = None,
        row_factory: Any = None,
    ) -> list[Any]:
        """The rows of a query on the local copy; a thread serves it, the event loop goes on.

        "local" sees a durable epoch, never older than what was read here before; `at_least=epoch` waits for that
        epoch; "strong" includes every write acknowledged anywhere before the call, for a request to the leader while
        it writes, and to the store else. Cancelling interrupts the query. Raises DeadlineExceeded, StoreUnavailable
        (strong), NotAllowed, Overloaded, sqlite3.Error.
        """
        if consistency not in ("local", "strong"):
            raise ValueError(f'consistency is "local" or "strong", not {consistency!r}')
        if at_least is not None and (isinstance(at_least, bool) or not isinstance(at_least, int)):
            raise TypeError(f"at_least is an epoch, not {at_least!r}")
        self._check_home()
        limit = seconds(self.settings.read_timeout if timeout is None else timeout)
        give_up_at = self._clock.monotonic() + limit
        try:
            async with asyncio.timeout(limit):
                if consistency == "strong":
                    await self._proof.wait()
                if at_least is not None:
                    await self._reach(at_least)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the read took longer than {limit} s (consistency {consistency}, at epoch {self._local.epoch.value})"
            ) from error
        while True:
            readers, left = self._local.readers, give_up_at - self._clock.monotonic()
            try:
                return await readers.read(sql, parameters, timeout=left, row_factory=row_factory)
            except LbcError:
                if self._local.readers is readers:
                    raise  # else the copy was replaced under the read, which is run again on the new one

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A read-only `sqlite3.Connection` on one snapshot of the local copy: every query in the block sees the
        same epoch. It runs in the calling thread. Raises SnapshotExpired at the end of a block that held it longer
        than `max_read_age`."""
        with self._local.readers.lease() as connection:
            yield connection

    def at(self, point: Point) -> AbstractAsyncContextManager[Past]:
        """`async with node.at(point) as past` gives the database as it was, read-only, with a `read` and a `connection`
        like the node's own. A point is an epoch, a datetime with a time zone, or a timedelta: so long ago.

        The state is restored to the local disk and kept for the next one who asks, as `past_cache_bytes` allows; those
        who ask at the same time share it. Entering raises NotRetained, ValueError, CorruptLog, FormatTooNew,
        StoreUnavailable, OSError or sqlite3.Error when the disk is full, LbcError when there is no room in the cache.
        """
        self._check_home()
        return self._travel.at(point)

    async def _proven_head(self) -> int:
        """An epoch that covers all that was acknowledged anywhere before the call."""
        await self._proof.wait()
        return self._local.epoch.value

    async def _prove_head(self) -> None:
        """Return when the local copy holds all that was acknowledged before the call."""
        begun_at, local = self._clock.monotonic(), self._local
        if begun_at - local.advanced_at < _MOVING_SECONDS:
            head = await self._head_by_leader()
            if head is not None:
                await self._reach(head)
                return
        while True:
            log, at, leadership = local.log, local.log.position.epoch, self._leadership
            if await log.is_head():
                return
            if leadership is None:
                head = await log.head()
                await self._reach(at + 1 if head is None else head)
                if head is not None:
                    return
            else:
                await self._reach(at + 1)
                if leadership.proven_at >= begun_at:
                    return

    async def _head_by_leader(self) -> int | None:
        """The epoch that covers all that was acknowledged before the call, if the leader can tell.

        Cheaper than the store while epochs are written: there the next one is mostly under way already, and the
        leader proves itself for all who ask at a time.
        """
        if not self._reporter.connected.value:  # this node leads itself, or the leader is out of reach
            return None
        try:
            answer = await self._clients.leader().get_json(HEAD_PATH, timeout=_LEADER_SECONDS)
            return int(answer["epoch"])
        except (NoMember, PeerUnavailable, RequestTimeout, ValueError, KeyError, TypeError):
            return None

    async def _reach(self, epoch: int) -> None:
        """Wait until the local copy has it."""
        if self._reporter.connected.value:  # then it is on its way
            with contextlib.suppress(TimeoutError):
                await self._local.epoch.until(lambda value: value >= epoch, timeout=_FEED_SECONDS)
        if self._local.epoch.value < epoch:
            self._nudge()
            await self._local.epoch.until(lambda value: value >= epoch)

    def _nudge(self) -> None:
        if self._leadership is not None:
            self._leadership.doubt()
        else:
            self._follower.nudge()
