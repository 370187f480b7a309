"""A running member of a cluster: what `async with cluster.join(...) as node` gives."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.clients import Clients, LeaderClient, RoleClient, SameAz
from littlebigcluster.cluster.description import Description
from littlebigcluster.cluster.fed import Reporter
from littlebigcluster.cluster.forward import Forwarder
from littlebigcluster.cluster.listener import Listener
from littlebigcluster.cluster.membership import Member, Members, check_metadata, succession
from littlebigcluster.cluster.presence import Presence
from littlebigcluster.cluster.returning import Returning
from littlebigcluster.cluster.service import Service
from littlebigcluster.cluster.snapshotting import Snapshotting
from littlebigcluster.cluster.statements import Procedures
from littlebigcluster.cluster.suspicion import Suspicion
from littlebigcluster.cluster.travel import Travel
from littlebigcluster.cluster.writing import Writing
from littlebigcluster.database import StateMismatch
from littlebigcluster.epochs import Identity, Leader, Metadata, names
from littlebigcluster.errors import Aborted, LbcError, NotLeader, StoreUnavailable, plain_errors
from littlebigcluster.roles import Follower, Leadership, LocalCopy, SharedProof, Snapshotter, Timing
from littlebigcluster.settings import Duration, NodeSettings, seconds
from littlebigcluster.store import Scoped, Store
from littlebigcluster.version import __version__
from littlebigcluster.watch import Watch

logger = logging.getLogger(__name__)

STEPPED_DOWN_SECONDS = 5.0
"""So long a node that has stepped down leaves the leadership to others."""


class Node(Writing, Returning, Snapshotting):
    """Everything an application does with its cluster. One event loop; not for other threads.

    Attributes:
        id: this node's UUID (version 7), new at each join.
        epoch: watch on the epoch that local reads see.
        leader: watch on the `Leader`, None while the leadership is released.
        members: watch on the `Members`. Each tells its epoch, so while there are writes it changes every second or so,
            though nobody came or went.
        store: the object store below the cluster's prefix, for the application's own data.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        directory: Path,
        settings: NodeSettings,
        *,
        description: Description,
        procedures: Procedures,
        clock: Clock,
    ) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), False
        self.id: UUID = clock.uuid7()
        self.settings = settings
        self.az, self.roles, self.can_lead = description.az, description.roles, description.can_lead
        self.members: Watch[Members] = Watch(Members())
        self.cluster_id = identity.cluster_id
        self.store = Scoped(store, "", forbidden=names.DIRECTORY)
        self.leader: Watch[Leader | None] = Watch(None)
        self._store, self._identity, self._directory, self._clock = store, identity, directory, clock
        self._description, self._procedures = description, procedures
        self._session = clock.token().hex()
        self._metadata = check_metadata(description.metadata)
        self._local = LocalCopy(store, identity, directory, settings, clock=clock)
        self._snapshotter = Snapshotter(store, self._local, settings, scratch=directory, clock=clock)
        self._travel = Travel(store, identity, self._local, directory, settings, clock=clock)
        self._leadership: Leadership | None = None
        self._presence: Presence | None = None
        self._leads: Watch[bool] = Watch(False)
        self._last_leader: Leader | None = None
        self._stopping = False
        self._follower: Follower
        self._listener: Listener
        self._rolling_back = asyncio.Lock()
        self._proof = SharedProof(self._prove_head)

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> Watch[int]:
        return self._local.epoch

    @property
    def term(self) -> int:
        """The term of the newest epoch here."""
        return self._local.metadata.term

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows; only a durable write proves it."""
        return self._leads.value

    @property
    def address(self) -> str:
        """host:port at which other nodes reach this one."""
        return self._listener.address

    @property
    def database_path(self) -> Path:
        """The local replica, for tools that read it from outside (`sqlite3 -readonly`, Datasette). Changes when
        the copy is restored."""
        return self._local.replica.path

    async def wait_until_leader(self, *, timeout: Duration | None = None) -> None:
        """Return when this node leads. Raises TimeoutError after `timeout`, ValueError if it cannot lead."""
        if not self.can_lead:
            raise ValueError("this node joined with can_lead=False and will never lead")
        await self._leads.until(bool, timeout=timeout)

    # -- other nodes ---------------------------------------------------------------------------------------------

    @property
    def leader_client(self) -> LeaderClient:
        """A client of whoever leads, over one connection that is open from the first use on."""
        self._check_home()
        return self._clients.leader()

    def client(self, role: str, *, same_az: SameAz = False) -> RoleClient:
        """A client of all members that have this role, asked in turn; this node is one of them if it has it itself.

        `same_az=True` prefers members of this node's zone, and falls back to others while none there answers;
        `same_az="only"` never leaves the zone. The connections are open from the first call on.
        """
        self._check_home()
        return self._clients.role(role, same_az)

    async def step_down(self, *, to: UUID | None = None) -> None:
        """Hand the leadership over, and stay as a standby; what was written so far is finished first.

        `to` is the id of a member that can lead (default: the one with the highest `leader_priority`, of several one
        of another zone, of those the one with the lowest lag). When nobody takes it this node leads again. Raises
        NotLeader, ValueError.
        """
        self._check_home()
        leadership, presence = self._leadership, self._presence
        if leadership is None or presence is None:
            raise NotLeader("this node does not lead", leader=self.leader.value)
        if to is not None:
            member = self.members.value.get(to)
            if member is None or not member.can_lead or to == self.id:
                raise ValueError(f"{to} is not another member that can lead")
        if any(member.can_lead and member.id != self.id for member in self.members.value):
            self._follower.abstain(STEPPED_DOWN_SECONDS)
        presence.hand_over(to, leaving=False)
        leadership.stop()
        await self._leads.until(lambda leads: not leads)

    # -- what others see -----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `GET /.lbc/status` answers: JSON-ready facts about the cluster as this node sees it."""
        leader, metadata = self.leader.value, self._local.metadata
        return {
            "cluster_id": self.cluster_id,
            "this": self._member().to_json(),
            "roles": list(self.roles),
            "is_leader": self.is_leader,
            "leader": leader.to_json() if leader else None,
            "term": metadata.term,
            "epoch": self.epoch.value,
            "last_update": metadata.created_at.isoformat(),
            "snapshot_epoch": self._local.since_snapshot.epoch,
            "database_size_bytes": metadata.database_pages * metadata.page_size,
            "members": self.members.value.to_json(),
        }

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Change what the others see of this node: anything that JSON can hold, at most 4 KiB of it."""
        self._check_home()
        self._metadata = check_metadata(metadata)
        if self._presence is not None:
            self._presence.describe(self._member())
        else:
            self._reporter.changed()

    def _member(self) -> Member:
        return Member(
            self.id, self.address, self.az, self.roles, self.can_lead, __version__, self._metadata, self.epoch.value,
            self._description.leader_priority,
        )  # fmt: skip

    # -- life ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        await self._local.start()
        self._saw(self._local.metadata)
        description = self._description
        service = Service(
            self,
            app=description.app,
            leader_app=description.leader_app,
            presence=lambda: self._presence,
            reaches=lambda leader: hasattr(self, "_follower") and self._follower.reaches(leader),
            run=self._run_with_key,
            head=self._proven_head,
            roll_back=self._roll_back,
            snapshot=self._serve_snapshot,
            members_only=self.settings.tls == "on",
        )
        self._listener = Listener(self._store, service, self.id, self.settings, description, clock=self._clock)
        await self._listener.start()
        self._follower = Follower(
            self._store,
            self._local,
            Timing(
                seconds(self.settings.leader_timeout),
                seconds(self.settings.poll_interval),
                seconds(self.settings.suspect_timeout),
            ),
            me=self._as_leader(),
            can_lead=self.can_lead,
            clock=self._clock,
            on_epoch=self._saw,
            rank=self._rank,
        )
        self._suspicion = Suspicion(
            self._follower, self.members, me=self.id, connect=self._listener.connect, clock=self._clock
        )
        self._forwarder = Forwarder(
            self.leader,
            me=self.id,
            run_here=self._run_with_key,
            connect=self._listener.connect,
            max_writes=self.settings.max_queued_writes,
            max_bytes=self.settings.max_queued_bytes,
            clock=self._clock,
        )
        self._clients = Clients(
            self.leader, self.epoch, self.members, az=self.az, connect=self._listener.connect, clock=self._clock
        )
        self._reporter = Reporter(
            self.leader,
            me=self._member,
            session=self._session,
            connect=self._listener.connect,
            follower=self._follower,
            report_interval=seconds(self.settings.member_timeout) / 4,
            on_members=self._saw_members,
            clock=self._clock,
        )

    def _as_leader(self) -> Leader:
        return Leader(self.id, self.address, self.az)

    def _saw(self, metadata: Metadata) -> None:
        self._last_leader = metadata.leader or self._last_leader
        self.leader._set(metadata.leader)

    def _rank(self) -> int | None:
        """How many standbys go before this one; None when it is no member yet."""
        last = self._last_leader
        ids = [each.id for each in succession(self.members.value, last.uuid, last.az)] if last else []
        return ids.index(self.id) if self.id in ids else None

    def _saw_members(self, members: Members) -> None:
        known = self.members.value
        if (members.term, members.number) >= (known.term, known.number):
            self.members._set(members)

    async def _run(self) -> None:
        """All that goes on in the background, until it is told to stop."""
        with plain_errors():
            async with asyncio.TaskGroup() as group:
                runs = [self._reporter.run, self._listener.renew, self._clients.run, self._forwarder.run]
                if self.can_lead:
                    runs.append(self._suspicion.run)
                beside = [group.create_task(run()) for run in runs]
                await self._play()
                for task in beside:
                    task.cancel()

    async def _play(self) -> None:
        """Follow, claim, lead, follow again."""
        while not self._stopping:
            claim = await self._follower.run()
            logger.info("claiming the leadership: %s", claim.reason)
            await self._lead()

    async def _lead(self) -> None:
        leadership = self._leadership = Leadership(
            self._store,
            self._local,
            self.settings,
            self._identity,
            me=self._as_leader(),
            directory=self._directory,
            snapshotter=self._snapshotter,
            clock=self._clock,
            on_epoch=self._saw,
            on_leading=self._begin_to_lead,
            on_durable=self._publish,
            on_beacon=self._keep_alive,
        )
        try:
            if await leadership.run():
                logger.info("not leading any more, term %d", leadership.term)
            else:
                logger.info("another node was faster")
            return
        except (Aborted, StoreUnavailable, StateMismatch, OSError, sqlite3.Error) as error:  # Aborted: at the claim
            logger.error("cannot lead: %s", error)
        finally:
            self._leadership = None
            self._leads._set(False)
            await self._end_presence()
        await asyncio.sleep(seconds(self.settings.poll_interval))

    def _begin_to_lead(self) -> None:
        assert self._leadership is not None
        leadership = self._leadership
        self._presence = Presence(
            self.term,
            self.epoch.value,
            self._member(),
            self.members.value,
            timeout=seconds(self.settings.member_timeout),
            clock=self._clock,
            on_members=self._saw_members,
            store_age=lambda: leadership.store_age,
        )
        self._presence_task = asyncio.create_task(self._presence.run())
        self._presence_task.add_done_callback(lambda _: leadership.stop())
        self._leads._set(True)

    def _publish(self, epoch: int, body: bytes) -> None:
        if self._presence is not None:
            self._presence.publish_epoch(epoch, body)

    def _keep_alive(self) -> None:
        if self._presence is not None:
            self._presence.keep_alive()  # at once: followers that hear late of it would look for themselves

    async def _end_presence(self) -> None:
        presence, self._presence = self._presence, None
        if presence is not None:
            presence.end()
            self._presence_task.cancel()
            await asyncio.wait([self._presence_task])
            if not self._presence_task.cancelled():
                self._presence_task.result()

    async def _stop(self, main: asyncio.Task[None]) -> None:
        """End within `shutdown_timeout`: a leader finishes what it has and releases the leadership."""
        self._stopping = True
        if self._leadership is not None:
            if self._presence is not None:
                self._presence.hand_over(leaving=True)
            self._leadership.stop()
            await asyncio.wait([main], timeout=seconds(self.settings.shutdown_timeout))
        else:
            await self._reporter.leave()
        main.cancel()
        await asyncio.wait([main])

    async def _close(self) -> None:
        await self._proof.close()
        if hasattr(self, "_forwarder"):
            await self._forwarder.close()
        if hasattr(self, "_listener"):
            await self._listener.stop()  # its applications may read until then
        self._ended = True
        await self._travel.close()
        await self._local.close()
        for watch in (self.epoch, self.leader, self.members, self._leads):
            watch._end(LbcError("the node has stopped"))
