"""Snapshots on request: made by a follower where there is one, so that the leader need not."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from littlebigcluster.cluster.forward import describe
from littlebigcluster.cluster.home import Home
from littlebigcluster.cluster.listener import Listener
from littlebigcluster.cluster.membership import Member, Members
from littlebigcluster.errors import LbcError
from littlebigcluster.net import Answer, Refused, Request
from littlebigcluster.roles import LocalCopy, Snapshotter
from littlebigcluster.settings import Duration, seconds
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

SNAPSHOT_PATH = "/.lbc/snapshot"
"""Makes a snapshot: on a follower its own, on the leader another member's, if that can be had."""

SNAPSHOT_SECONDS = 600.0
"""So long a snapshot may take."""

_BEHIND_SECONDS = 5.0
"""So long a follower that was asked may take to come as far as the leader is."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in the store: whole, and read back."""

    epoch: int
    size_bytes: int
    """As it is stored."""
    by: UUID
    """The node that has made it."""


class Snapshotting(Home):
    """What a `Node` does with snapshots that are asked for."""

    id: UUID
    members: Watch[Members]
    _listener: Listener
    _local: LocalCopy
    _snapshotter: Snapshotter
    _leads: Watch[bool]

    async def snapshot(self, *, timeout: Duration = SNAPSHOT_SECONDS) -> Snapshot:
        """Make a snapshot of the newest epoch here, now; returns when it is in the store and has been read back.

        A follower makes it itself. The leader asks the follower with the lowest lag, and makes it itself when there is
        none or it cannot. Twice at once, on any nodes, does no harm. Raises StoreUnavailable, CorruptLog (the store
        does not give back what was sent), TimeoutError after `timeout`, OSError (no space for
        the compressed copy), sqlite3.Error, StateMismatch (an LbcError: the local copy is damaged).
        """
        self._check_home()
        async with asyncio.timeout(seconds(timeout)):
            follower = self._nearest_follower() if self._leads.value else None
            made = await self._ask_snapshot(follower, seconds(timeout)) if follower else None
            return made or await self._make_snapshot()

    def _nearest_follower(self) -> Member | None:
        others = [member for member in self.members.value if member.id != self.id and member.address]
        return max(others, key=lambda member: member.epoch, default=None)

    async def _ask_snapshot(self, follower: Member, limit: float) -> Snapshot | None:
        """None when it did not do it: this node does it then."""
        body = json.dumps({"here": True, "at_least": self._local.epoch.value}).encode()
        client = self._listener.connect(follower.address)
        try:
            headers = {"x-lbc-to": str(follower.id)}
            response = await client.request("POST", SNAPSHOT_PATH, headers=headers, body=body, timeout=limit)
            if response.status != 200:
                raise LbcError(f"it answers {response.status}: {response.body[:300]!r}")
            made = _from_json(response.json())
            await self._snapshotter.look()
        except (LbcError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, TimeoutError):
                raise
            logger.info("%s at %s made no snapshot, this node does: %s", follower.id, follower.address, error)
            return None
        finally:
            await client.close()
        return made

    async def _make_snapshot(self) -> Snapshot:
        made = await self._snapshotter.make()
        return Snapshot(made.epoch, made.size_bytes, self.id)

    async def _serve_snapshot(self, request: Request) -> Answer:
        """POST /.lbc/snapshot. With "here" this node makes it, once it has come to the epoch "at_least"."""
        value = await request.json()
        here, at_least = value.get("here"), value.get("at_least", 0)
        if not isinstance(here, bool) or type(at_least) is not int:
            raise Refused(400, 'a request for a snapshot says whether it is to be made "here", and of which epoch')
        try:
            await self._local.epoch.until(lambda epoch: epoch >= at_least, timeout=_BEHIND_SECONDS)
            made = await (self._make_snapshot() if here else self.snapshot())
        except TimeoutError:
            raise Refused(503, f"not at epoch {at_least}, or not done in time") from None
        except (LbcError, OSError, sqlite3.Error) as error:
            return Answer.json(describe(error), status=409)
        return Answer.json({"epoch": made.epoch, "size_bytes": made.size_bytes, "by": str(made.by)})


def _from_json(value: Any) -> Snapshot:
    """Raises KeyError, TypeError, ValueError."""
    return Snapshot(int(value["epoch"]), int(value["size_bytes"]), UUID(value["by"]))
