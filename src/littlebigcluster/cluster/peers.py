"""Connections to other nodes, kept open: one to each node that somebody here wants to talk to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from littlebigcluster.errors import LbcError, PeerUnavailable, RequestTimeout, plain_errors
from littlebigcluster.net import Client, Response
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
"""Between two probes of a node that does not answer, growing from the first to the longest."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node and where it is."""

    id: UUID
    address: str
    az: str


class Peer:
    """One node, and the connection to it.

    `state` is "new" until the first answer; "down" from the first failure until it answers again.
    """

    def __init__(self, place: Place, client: Client, on_change: Callable[[], None]) -> None:
        self.place = place
        self.headers = {"x-lbc-to": str(place.id)}
        self.state: Literal["new", "up", "down"] = "new"
        self.closed = False
        self._client, self._on_change = client, on_change
        self._doubted = asyncio.Event()
        self._users = 0
        self._retired = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Client]:
        """The connection. It outlives `retire` until the block is left."""
        self._users += 1
        try:
            yield self._client
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.close()

    def fail(self) -> None:
        """A request has failed: down, until a probe says otherwise."""
        self._turn("down")
        self._doubted.set()

    def doubt(self) -> None:
        """A request was not answered in time, which may be its own fault: let a probe find out."""
        self._doubted.set()

    async def keep(self, path: str, accept: Callable[[Peer, Response], bool]) -> None:
        """Make the connection by a request to `path`, and again whenever in doubt. Until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._doubted.clear()
            if await self._probe(path, accept):
                self._turn("up")
                pause = _FIRST_PAUSE_SECONDS
                await self._doubted.wait()
            else:
                self._turn("down")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def retire(self) -> None:
        """Close the connection as soon as nobody uses it."""
        self._retired = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """Close the connection now; what is under way on it fails."""
        if not self.closed:
            self.closed = True
            await self._client.close()

    async def _probe(self, path: str, accept: Callable[[Peer, Response], bool]) -> bool:
        try:
            response = await self._client.request("GET", path, headers=self.headers, timeout=_PROBE_TIMEOUT_SECONDS)
        except (PeerUnavailable, RequestTimeout) as error:
            if self.state == "up":
                logger.debug("%s at %s does not answer: %s", self.place.id, self.place.address, error)
            return False
        return accept(self, response)

    def _turn(self, state: Literal["up", "down"]) -> None:
        if self.state != state:
            self.state = state
            self._on_change()


class Connections:
    """A changing set of peers, each with its connection kept open while `follow` runs.

    `path` is requested to open a connection and to find out whether a node is there again; `accept` judges the answer.
    Invariant: `up` holds those of `all` that have answered last.
    """

    def __init__(self, connect: Callable[[str], Client], path: str, accept: Callable[[Peer, Response], bool]) -> None:
        self._connect, self._path, self._accept = connect, path, accept
        self.all: Watch[tuple[Peer, ...]] = Watch(())
        self.up: Watch[tuple[Peer, ...]] = Watch(())
        self._keepers: dict[Peer, asyncio.Task[None]] = {}
        self._open: dict[Peer, None] = {}

    async def follow(self, wanted: AsyncIterator[Iterable[Place]]) -> None:
        """Keep connections to the newest of `wanted`. Who is wanted no more is left to finish what is under way.

        When this is cancelled, everything is closed, and whoever waits for a peer gets LbcError.
        """
        try:
            with plain_errors():
                async with asyncio.TaskGroup() as group:
                    async for places in wanted:
                        self._turn_to(dict.fromkeys(places), group)
        finally:
            await self.end()

    def _turn_to(self, places: Iterable[Place], group: asyncio.TaskGroup) -> None:
        for peer in [peer for peer in self._keepers if peer.place not in places]:
            self._keepers.pop(peer).cancel()
        self._open = {peer: None for peer in self._open if not peer.closed}
        present = {peer.place for peer in self._keepers}
        for place in [place for place in places if place not in present]:
            peer = Peer(place, self._connect(place.address), self._publish)
            self._open[peer] = None
            self._keepers[peer] = group.create_task(self._keep(peer))
        self._publish()

    async def _keep(self, peer: Peer) -> None:
        try:
            await peer.keep(self._path, self._accept)
        finally:
            await peer.retire()

    def _publish(self) -> None:
        peers = tuple(sorted(self._keepers, key=lambda peer: peer.place.id))
        self.all._set(peers)
        self.up._set(tuple(peer for peer in peers if peer.state == "up"))

    async def end(self) -> None:
        """Close everything, for good; also what nobody has begun to `follow`."""
        self._keepers.clear()
        self._publish()
        for watch in (self.all, self.up):
            watch._end(LbcError("the node has stopped"))
        for peer in self._open:
            await peer.close()
