"""The reading face of a node: queries on the local copy, at the level of consistency that is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any, Literal

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.statements import Parameters
from littlebigcluster.errors import DeadlineExceeded, LbcError
from littlebigcluster.roles import Follower, Leadership, LocalCopy, SharedProof
from littlebigcluster.settings import Duration, NodeSettings, seconds


class Reading:
    """What a `Node` does with reads."""

    settings: NodeSettings
    _local: LocalCopy
    _leadership: Leadership | None
    _follower: Follower
    _proof: SharedProof
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
        epoch; "strong" includes every write acknowledged anywhere before the call, for one request to the store.
        Cancelling interrupts the query. Raises DeadlineExceeded, StoreUnavailable (strong), NotAllowed, sqlite3.Error.
        """
        if consistency not in ("local", "strong"):
            raise ValueError(f'consistency is "local" or "strong", not {consistency!r}')
        if at_least is not None and (isinstance(at_least, bool) or not isinstance(at_least, int)):
            raise TypeError(f"at_least is an epoch, not {at_least!r}")
        limit = seconds(self.settings.read_timeout if timeout is None else timeout)
        give_up_at = self._clock.monotonic() + limit
        try:
            async with asyncio.timeout(limit):
                if consistency == "strong":
                    await self._proof.wait()
                if at_least is not None and self._local.epoch.value < at_least:
                    self._nudge()
                    await self._local.epoch.until(lambda epoch: epoch >= at_least)
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

    async def _prove_head(self) -> None:
        """Return when the local copy holds all that was acknowledged before the call."""
        while True:
            log, epoch = self._local.log, self._local.epoch
            at = log.position.epoch
            if await log.is_head():
                return
            self._nudge()
            await epoch.until(at.__lt__)

    def _nudge(self) -> None:
        if self._leadership is not None:
            self._leadership.doubt()
        else:
            self._follower.nudge()
