"""One leadership, from the claim to its end.

The path of a write: the writer thread runs transactions on the primary; when the previous epoch is durable and the
pacing allows, what they changed is taken as one epoch, encoded, created in the store, applied to the replica, and
only then acknowledged. Fenced means that the primary is thrown away; there is no undo.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.database import Batch, Primary, Wal, Writer, way_back
from littlebigcluster.epochs import Appended, Beacon, Identity, Leader, Metadata
from littlebigcluster.errors import (
    Aborted,
    EpochTooLarge,
    NotLeader,
    OutcomeUnknown,
    StoreUnavailable,
    plain_errors,
)
from littlebigcluster.roles.compactor import Compactor
from littlebigcluster.roles.encoding import encode_epoch
from littlebigcluster.roles.life import RETRY_SECONDS, SignsOfLife
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.roles.pacing import TokenBucket
from littlebigcluster.roles.retention import Retention
from littlebigcluster.roles.snapshotter import Snapshotter
from littlebigcluster.settings import NodeSettings, seconds
from littlebigcluster.store import Store
from littlebigcluster.threads import carried_through

logger = logging.getLogger(__name__)

_TURNS = 3
"""Turns of the event loop in which those who were answered can write again."""
_THREAD_SECONDS = 1.0


class Leadership:
    """Leads from `run` on until it is fenced or told to stop. Used once.

    Invariant: the primary is the replica plus the transactions of batches that are not durable yet.
    """

    def __init__(
        self,
        store: Store,
        local: LocalCopy,
        settings: NodeSettings,
        identity: Identity,
        *,
        me: Leader,
        directory: Path,
        snapshotter: Snapshotter,
        clock: Clock,
        on_epoch: Callable[[Metadata], None],
        on_leading: Callable[[], None],
        on_durable: Callable[[int, bytes], None],
        on_beacon: Callable[[], None],
    ) -> None:
        self._store, self._local, self._settings, self._identity = store, local, settings, identity
        self._me, self._directory, self._snapshotter, self._clock = me, directory, snapshotter, clock
        self._on_epoch, self._on_leading = on_epoch, on_leading
        self._on_durable, self._on_beacon = on_durable, on_beacon
        self.term = local.log.position.term + 1
        self.writer: Writer | None = None
        """Takes writes while this node leads; None before and after."""
        self._sign_interval = seconds(settings.leader_timeout) / 3
        self._store_answered_at = clock.monotonic()
        self.proven_at = float("-inf")
        """A moment after which this node certainly led: when the newest epoch in its copy, its own, was sent."""
        self._life = SignsOfLife(
            store, interval=self._sign_interval, clock=clock, beacon=self._beacon, on_shown=self._shown
        )
        self._doubted = False
        self._refusal: Exception = NotLeader("this node does not lead any more")  # why `_commit` has returned False
        self._renewed = asyncio.Event()
        self._woken = asyncio.Event()
        self._return: tuple[Path, asyncio.Future[int]] | None = None
        """The former state that is to come back, and who waits for it."""
        self._reading = asyncio.Lock()
        """Held while a thread reads it."""
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def store_age(self) -> float:
        """Seconds since the store has last taken a write of this leader."""
        return self._clock.monotonic() - self._store_answered_at

    async def ready(self) -> None:
        """Wait while the writer is being replaced; over when the leadership is."""
        while self.writer is not None and self.writer.stopped:
            await self._renewed.wait()

    def doubt(self) -> None:
        """Somebody has seen an epoch that this node does not have: look at once whether another node leads."""
        self._doubted = True
        self._woken.set()

    async def bring_back(self, former: Path) -> int:
        """Make the database in the file `former`, which nobody else uses, the state of the cluster, but for the
        library's own tables; return the epoch when it is durable. Whatever is under way is written before; what comes
        at that moment fails with Aborted.

        Raises Aborted when another one is under way, EpochTooLarge, OSError, sqlite3.Error, NotLeader, Fenced,
        StoreUnavailable (certainly not done), OutcomeUnknown.
        """
        if self.writer is None:
            raise NotLeader("this node does not lead any more; nothing was done")
        if self._return is not None:
            raise Aborted("another rollback is under way; nothing was done")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._return = former, done
        self._woken.set()
        try:
            return await asyncio.shield(done)
        finally:
            self._return = None
            done.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may be gone
            async with self._reading:  # a caller that gives up removes the file
                pass

    def stop(self) -> None:
        """Finish what is there, release the leadership, and end."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    async def run(self) -> bool:
        """Claim, lead, and end; False when the claim was lost. On return another may lead, or nobody does.

        Raises StoreUnavailable when the store refuses writes for good, OSError and sqlite3.Error when the local
        disk fails. Cancelled, it leaves without a release.
        """
        writer = await self._new_writer()
        try:
            if not await self._write_system(writer, leader=self._me):
                return False
            logger.info("leading since epoch %d, term %d", self._local.epoch.value, self.term)
            self.writer = writer
            self._on_leading()
            snapshotter = self._snapshotter
            kept = seconds(self._settings.retention)
            retention = Retention(self._store, self._local, kept, make_snapshot=snapshotter.make, clock=self._clock)
            compactor = Compactor(self._store, self._local, self._identity.settings.compression)
            with plain_errors():
                async with asyncio.TaskGroup() as group:
                    loops = (snapshotter.run, compactor.run, retention.run, self._life.run)
                    background = [group.create_task(run()) for run in loops]
                    await self._lead()
                    for task in background:
                        task.cancel()
            return True
        finally:
            last, self.writer = self.writer or writer, None
            self._renewed.set()
            if self._return is not None and not self._return[1].done():
                self._return[1].set_exception(NotLeader("this node does not lead any more; nothing was done"))
            await self._discard(last, lambda: NotLeader("this node does not lead any more; the write is not written"))

    async def _lead(self) -> None:
        """Write batches until fenced or stopped; while there is nothing to write, look whether somebody else leads."""
        now = self._clock.monotonic
        pacing = TokenBucket.full(seconds(self._settings.epoch_interval), self._settings.epoch_burst, now())
        look_at = now() + self._sign_interval
        while True:
            writer = self.writer
            assert writer is not None
            delay = pacing.delay(now()) if writer.work.is_set() else float("inf")
            await self._wait(writer, for_work=not writer.work.is_set(), timeout=min(delay, look_at - now()))
            doubted, self._doubted = self._doubted, False
            if writer.broken.done():
                self.writer = await self._replace(writer)
            elif self._stopping.done():
                return await self._release(writer)
            elif self._return is not None and not self._return[1].done():
                if not await self._go_back(writer, *self._return):
                    return None
                look_at = now() + self._sign_interval
            elif writer.work.is_set() and pacing.delay(now()) == 0:
                pacing.take(now())
                if not await self._write(writer):
                    return None
                look_at = now() + self._sign_interval
            elif doubted or now() >= look_at:
                alone = await self._look()
                if alone is False:
                    return None
                look_at = now() + (self._sign_interval if alone else min(self._sign_interval, RETRY_SECONDS))

    async def _wait(self, writer: Writer, *, for_work: bool, timeout: float) -> None:
        """Until there is work, if asked for, or the writer breaks, or it is time to stop, or `timeout` is over."""
        if timeout <= 0 or (for_work and writer.work.is_set()):
            return
        waits: list[asyncio.Future[Any]] = [writer.broken, self._stopping]
        if for_work:
            self._woken.clear()
            waits += [asyncio.create_task(event.wait()) for event in (writer.work, self._woken)]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits[2:]:
                wait.cancel()

    async def _write(self, writer: Writer) -> bool:
        """Make what was written so far durable; False when this node is fenced."""
        try:
            batch = await writer.close_batch(lambda _: self._stamp())
        except Aborted:
            return True  # the writer broke; it is replaced next
        durable = await self._commit(batch, leader=self._me)
        # Those who were just answered may go on writing: let them, before the next batch is closed.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return durable

    async def _go_back(self, writer: Writer, former: Path, done: asyncio.Future[int]) -> bool:
        """Write what was executed so far, and the way back as an epoch of its own; False when this node is fenced."""
        if not await self._write(writer):
            return False
        epoch = self._local.epoch.value + 1
        try:
            async with self._reading:
                raw, version = await carried_through(self._local.run(self._way_back, former))
        except (EpochTooLarge, OSError, sqlite3.Error) as error:
            done.set_exception(error)
            return True
        writer.stop(lambda: Aborted("the database was set back at this moment; the write is not written, try again"))
        try:
            durable = await self._commit(Batch(raw, 1, epoch, version, [], writer), leader=self._me)
        except BaseException as error:
            unknown = f"the leader stopped before the store said whether epoch {epoch} was created;"
            unknown += " the rollback may have taken effect"
            refused = isinstance(error, StoreUnavailable)
            done.set_exception(error if refused else OutcomeUnknown(unknown, epoch=epoch))
            raise
        if not durable:
            done.set_exception(self._refusal)
            return False
        try:
            await self._discard(writer, lambda: Aborted("the database was set back; the write is not written"))
            self.writer = await self._new_writer()
        finally:
            done.set_result(epoch)
        return True

    def _way_back(self, former: Path) -> tuple[bytes, str]:
        limit, salt = self._settings.max_epoch_bytes, self._clock.token(8)
        return way_back(self._local.replica, former, system=self._stamp(), max_bytes=limit, salt=salt)

    async def _write_system(self, writer: Writer, *, leader: Leader | None) -> bool:
        """An epoch that changes who leads, with whatever was written before it; False when this node is fenced."""
        text = json.dumps(leader.to_json()) if leader else None
        batch = await writer.close_batch(lambda _: {**self._stamp(), "term": self.term, "leader": text}, always=True)
        return await self._commit(batch, leader=leader)

    def _stamp(self) -> dict[str, Any]:
        return {"epoch": self._local.epoch.value + 1, "last_update": self._clock.now().isoformat()}

    async def _release(self, writer: Writer) -> None:
        """The last epoch of this leadership: it holds what was still waiting, and names no leader."""
        try:
            if await self._write_system(writer, leader=None):
                logger.info("released the leadership in epoch %d", self._local.epoch.value)
        except Aborted:
            logger.warning("the leadership could not be released; a standby takes over after leader_timeout")

    async def _look(self) -> bool | None:
        """Whether this node still leads; None when the store does not tell."""
        try:
            return await self._local.log.is_head()
        except StoreUnavailable as error:
            logger.warning("cannot look whether another node leads: %s", error)
            return None

    async def _new_writer(self) -> Writer:
        """A writer on a fresh primary, made from the replica."""
        image, _, _ = await self._local.image()
        path = self._directory / f"primary-{self._clock.token(8).hex()}.db"

        def make() -> Primary:
            with image:
                return Primary.create(
                    path,
                    image,
                    clock=self._clock,
                    max_epoch_bytes=self._settings.max_epoch_bytes,
                    foreign_keys=self._identity.settings.foreign_keys,
                )

        writer = Writer(
            make,
            clock=self._clock,
            transaction_timeout=seconds(self._settings.transaction_timeout),
            max_queued_writes=self._settings.max_queued_writes,
            max_queued_bytes=self._settings.max_queued_bytes,
        )
        try:
            await writer.start()
        except BaseException:
            # Only the primary is being made there, which ends; and until then it makes files.
            await carried_through(writer.close(timeout=None))
            raise
        self._renewed.set()
        self._renewed = asyncio.Event()
        return writer

    async def _replace(self, writer: Writer) -> Writer:
        """The primary is lost, and all that was not sent with it. What is durable is in the replica."""
        logger.warning("making a new primary: %s", writer.broken.result())
        await self._discard(writer, lambda: Aborted("the primary was lost; the write is not written"))
        return await self._new_writer()

    async def _discard(self, writer: Writer, error_factory: Callable[[], Exception]) -> None:
        writer.stop(error_factory)
        if not await writer.close(timeout=_THREAD_SECONDS):
            logger.warning("a transaction function still runs; its thread is left behind")

    async def _commit(self, batch: Batch, *, leader: Leader | None) -> bool:
        """Make a batch durable and acknowledge it; False when this node is fenced.

        Raises StoreUnavailable when the store has refused it for good: then it is certainly not written.
        """
        local = self._local
        if batch.raw is None:
            batch.acknowledge(local.epoch.value)
            return True
        epoch = local.epoch.value + 1
        try:
            wal, metadata, body = await local.run(self._encode, batch, leader)
            sent_at = self._clock.monotonic()
            self._life.epoch_sent(len(body))
            outcome = await local.log.append(body, term=self.term)
        except StoreUnavailable as error:
            message, transient = f"not written: {error}", error.transient
            batch.fail(lambda: StoreUnavailable(message, transient=transient))
            raise
        except BaseException as error:  # cancelled, or the log is damaged: nobody may be left waiting
            unknown = f"the node stopped before the fate of epoch {epoch} was known ({type(error).__name__})"
            batch.fail(lambda: OutcomeUnknown(unknown, epoch=epoch))
            raise
        if not isinstance(outcome, Appended):
            self._refusal = outcome.error(epoch)
            batch.fail(lambda: outcome.error(epoch))
            return False
        self._store_answered_at = self._clock.monotonic()
        self._life.epoch_durable()
        self._on_durable(epoch, body)
        try:
            await local.apply_own(wal, metadata, outcome.position, len(body))
            self.proven_at = sent_at
        finally:
            batch.acknowledge(epoch)  # it is durable, whatever became of the local copy
        self._on_epoch(metadata)
        return True

    def _beacon(self, count: int) -> Beacon:
        return Beacon(self._identity.cluster_id, self.term, self._local.epoch.value, count)

    def _shown(self) -> None:
        self._store_answered_at = self._clock.monotonic()
        self._on_beacon()

    def _encode(self, batch: Batch, leader: Leader | None) -> tuple[Wal, Metadata, bytes]:
        """The epoch as an object of the log. On the replica's thread, for its checksum."""
        assert batch.raw is not None
        return encode_epoch(
            batch.raw,
            self._local.replica,
            self._local.log.position,
            self._identity,
            term=self.term,
            leader=leader,
            transactions=batch.transactions,
            min_sqlite_version=batch.min_sqlite_version,
            clock=self._clock,
        )
