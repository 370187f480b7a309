"""What an application talks to other nodes with: a client of whoever leads, and clients of all members of a role."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.asking import PeerClient
from littlebigcluster.cluster.description import check_roles
from littlebigcluster.cluster.membership import Members
from littlebigcluster.cluster.peers import Connections, Peer, Place
from littlebigcluster.cluster.service import LEADER_HEADER, LEADS_PATH, PING_PATH
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import LbcError, plain_errors
from littlebigcluster.net import Client, Response, StreamResponse
from littlebigcluster.watch import Watch

SameAz = bool | Literal["only"]

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5


class LeaderClient(PeerClient):
    """Talks to whoever leads, this node included. Follows the leader by itself, and waits while there is none.

    All requests share one connection. When the leader changes, those under way at the former one are left to finish.
    """

    def __init__(
        self, leader: Watch[Leader | None], epoch: Watch[int], *, connect: Callable[[str], Client], clock: Clock
    ) -> None:
        """`leader` is who leads by the log, as far as `epoch`."""
        super().__init__(Connections(connect, LEADS_PATH, self._accept), clock)
        self._leader, self._epoch = leader, epoch
        self._named: Watch[tuple[int, Leader | None]] = Watch((-1, None))
        """Whom another node has named, and as of which epoch."""
        self._wanted: Watch[Leader | None] = Watch(None)
        # Invariant: who was named, as long as that node knows more of the log; else the leader by the log.

    async def run(self) -> None:
        """Follow the leader, until cancelled."""
        with plain_errors():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_log())
                group.create_task(self._forget_names())
                await self._connections.follow(self._places())

    async def _follow_log(self) -> None:
        async for _ in self._leader:
            self._turn()

    async def _forget_names(self) -> None:
        async for epoch, _ in self._named:
            await self._epoch.until(epoch.__le__)
            self._turn()

    def _turn(self) -> None:
        epoch, named = self._named.value
        self._wanted._set(named if epoch > self._epoch.value else self._leader.value)

    async def _places(self) -> AsyncIterator[list[Place]]:
        async for leader in self._wanted:
            yield [Place(leader.uuid, leader.address, leader.az)] if leader and leader.address else []

    def _choose(self, tried: Sequence[Peer]) -> Peer | None:
        peers = self._connections.up.value
        return peers[0] if peers and peers[0] not in tried else None

    async def _next(self, tried: Sequence[Peer], failure: LbcError | None) -> Peer:
        peer = (await self._connections.up.until(bool))[0]
        if (times := tried.count(peer)) > 1:
            await asyncio.sleep(min(_FIRST_PAUSE_SECONDS * 2**times, _LONGEST_PAUSE_SECONDS))
        return peer

    def _nobody(self) -> str:
        return "nobody led, or the leader could not be reached,"

    def _accept(self, peer: Peer, answer: Response | StreamResponse) -> bool:
        if answer.status == 503 and (text := answer.headers.get(LEADER_HEADER)) is not None:
            self._go_to(*_leader_of(text), peer)
            return False
        return super()._accept(peer, answer)

    def _go_to(self, named: Leader | None, epoch: int, not_leading: Peer) -> None:
        """Not back: who has claimed the leadership names its predecessor until it sees its own epoch in the log."""
        wanted = self._wanted.value
        is_newer = epoch > max(self._epoch.value, self._named.value[0])
        if named is not None and is_newer and wanted is not None and wanted.uuid == not_leading.place.id:
            self._named._set((epoch, named))
            self._turn()


class RoleClient(PeerClient):
    """Talks to the members of one role, in turn. This node is one of them if it has the role itself.

    A member whose connection fails is left out until it answers a probe again; if all are, they are tried
    nevertheless. Each request asks each member at most once. With `same_az` the members of this node's zone come
    first, and others only while no member there answers; with "only", others are never asked.
    """

    def __init__(self, role: str, connections: Connections, *, az: str, same_az: SameAz, clock: Clock) -> None:
        super().__init__(connections, clock)
        self._role, self._az, self._same_az = role, az, same_az
        self._turn = 0

    def _choose(self, tried: Sequence[Peer]) -> Peer | None:
        left = [peer for peer in self._connections.all.value if peer not in tried and self._allowed(peer)]
        if not left:
            return None
        first = min(map(self._rank, left))
        best = [peer for peer in left if self._rank(peer) == first]
        self._turn += 1
        return best[self._turn % len(best)]

    async def _next(self, tried: Sequence[Peer], failure: LbcError | None) -> Peer:
        if failure is not None:
            raise failure
        await self._connections.all.until(lambda peers: any(map(self._allowed, peers)))
        peer = self._choose(tried)
        assert peer is not None
        return peer

    def _nobody(self) -> str:
        where = f" in zone {self._az!r}" if self._same_az == "only" else ""
        return f"there was no member with the role {self._role!r}{where}"

    def _allowed(self, peer: Peer) -> bool:
        return self._same_az != "only" or peer.place.az == self._az

    def _rank(self, peer: Peer) -> tuple[bool, bool]:
        """The lowest come first: those that answer, and of these the nearest."""
        return peer.state == "down", bool(self._same_az) and peer.place.az != self._az


class Clients:
    """All clients of one node: each made when first asked for, and open from then on while `run` runs."""

    def __init__(
        self,
        leader: Watch[Leader | None],
        epoch: Watch[int],
        members: Watch[Members],
        *,
        az: str,
        connect: Callable[[str], Client],
        clock: Clock,
    ) -> None:
        self._watched_leader, self._epoch, self._members = leader, epoch, members
        self._az, self._connect, self._clock = az, connect, clock
        self._leader: LeaderClient | None = None
        self._connections: dict[str, Connections] = {}
        self._roles: dict[tuple[str, SameAz], RoleClient] = {}
        self._new: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._ended = False

    async def run(self) -> None:
        """Keep the connections of all clients, until cancelled."""
        try:
            with plain_errors():
                async with asyncio.TaskGroup() as group:
                    while True:
                        run = await self._new.get()
                        group.create_task(_awaited(run))
        finally:
            self._ended = True
            for connections in self._all():  # some may have been asked for at this moment
                await connections.end()

    def leader(self) -> LeaderClient:
        if self._leader is None:
            self._leader = LeaderClient(self._watched_leader, self._epoch, connect=self._connect, clock=self._clock)
            self._begin(self._leader.run)
        return self._leader

    def role(self, role: str, same_az: SameAz) -> RoleClient:
        """Raises TypeError and ValueError for what is neither a role nor a choice of zones."""
        check_roles([role])
        if same_az not in (False, True, "only"):
            raise ValueError(f'same_az is False, True or "only", not {same_az!r}')
        if (role, same_az) not in self._roles:
            self._roles[role, same_az] = RoleClient(
                role, self._connections_of(role), az=self._az, same_az=same_az, clock=self._clock
            )
        return self._roles[role, same_az]

    def _all(self) -> list[Connections]:
        to_leader = [] if self._leader is None else [self._leader._connections]
        return [*to_leader, *self._connections.values()]

    def _connections_of(self, role: str) -> Connections:
        if role not in self._connections:
            connections = Connections(self._connect, PING_PATH, lambda peer, answer: answer.status == 200)
            self._begin(lambda: connections.follow(self._places(role)))
            self._connections[role] = connections
        return self._connections[role]

    async def _places(self, role: str) -> AsyncIterator[list[Place]]:
        async for members in self._members:
            yield [Place(member.id, member.address, member.az) for member in members.with_role(role)]

    def _begin(self, run: Callable[[], Awaitable[None]]) -> None:
        if self._ended:
            raise LbcError("the node has stopped")
        self._new.put_nowait(run)


async def _awaited(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def _leader_of(text: str) -> tuple[Leader | None, int]:
    """Who leads, as of which epoch."""
    try:
        value = json.loads(text)
        return Leader.from_json(value), int(value["epoch"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None, -1
