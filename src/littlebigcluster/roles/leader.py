"""One leadership, from the claim to its end.

The path of a write: the writer thread runs transactions on the primary; when the previous epoch is durable and the
pacing allows, what they changed is taken as one epoch, encoded, created in the store, applied to the replica, and
only then acknowledged. Fenced means that the primary is thrown away; there is no undo.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.database import Batch, Primary, Wal, Writer, parse
from littlebigcluster.epochs import Appended, Beacon, Identity, Leader, Metadata, codec, names
from littlebigcluster.errors import Fenced, LbcError, NotLeader, OutcomeUnknown, StoreUnavailable
from littlebigcluster.roles.local import LocalCopy
from littlebigcluster.roles.pacing import TokenBucket
from littlebigcluster.roles.snapshotter import Snapshotter
from littlebigcluster.settings import NodeSettings, seconds
from littlebigcluster.store import Store

logger = logging.getLogger(__name__)


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
        clock: Clock,
        on_epoch: Callable[[Metadata], None],
    ) -> None:
        self._store, self._local, self._settings, self._identity = store, local, settings, identity
        self._me, self._directory, self._clock, self._on_epoch = me, directory, clock, on_epoch
        self.term = local.log.position.term + 1
        self.writer: Writer | None = None
        """Takes writes while this node leads; None before and after."""
        self._beacons = 0
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Finish what is there, release the leadership, and end."""
        self._stop.set()

    async def run(self) -> bool:
        """Claim, lead, and end; False when the claim was lost. On return another may lead, or nobody does.

        Raises StoreUnavailable when the store refuses writes for good. Cancelled, it leaves without a release.
        """
        writer = await self._new_writer()
        try:
            if not await self._commit(await self._close_batch(writer, leader=self._me, force=True), writer):
                return False
            logger.info("leading since epoch %d, term %d", self._local.epoch.value, self.term)
            self.writer = writer
            async with asyncio.TaskGroup() as group:
                snapshots = Snapshotter(
                    self._store, self._local, self._settings, scratch=self._directory, clock=self._clock
                )
                background = group.create_task(snapshots.run())
                try:
                    await self._lead()
                finally:
                    background.cancel()
            return True
        finally:
            writer, self.writer = self.writer or writer, None
            await self._drop(writer, lambda: NotLeader("this node does not lead any more; the write is not written"))

    async def _lead(self) -> None:
        """Write batches and beacons until fenced or stopped."""
        interval = seconds(self._settings.epoch_interval)
        pacing = TokenBucket.full(interval, self._settings.epoch_burst, self._clock.monotonic())
        beacon_interval = seconds(self._settings.leader_timeout) / 3
        quiet_since = self._clock.monotonic()
        while True:
            assert self.writer is not None
            if self.writer.broken is not None:
                self.writer = await self._replace_writer(self.writer)
            due = quiet_since + beacon_interval - self._clock.monotonic()
            await self._wait(self.writer.wait_work(), due)
            if self._stop.is_set():
                return await self._release(self.writer)
            if self.writer.has_work:
                await self._wait(None, pacing.delay(self._clock.monotonic()))
                pacing.take(self._clock.monotonic())
                if not await self._commit(await self._close_batch(self.writer), self.writer):
                    return None
                quiet_since = self._clock.monotonic()
            elif self._clock.monotonic() - quiet_since >= beacon_interval:
                if not await self._show_life():
                    return None
                quiet_since = self._clock.monotonic()

    async def _close_batch(self, writer: Writer, *, leader: Leader | None = None, claim: bool = False) -> Batch:
        """What was written since the last batch, stamped as the next epoch."""
        stamp = self._stamp()
        if claim:
            stamp |= {"term": self.term, "leader": json.dumps(self._me.to_json())}
        return await writer.close_batch(stamp, force=claim)

    def _stamp(self) -> dict[str, Any]:
        return {"epoch": self._local.epoch.value + 1, "last_update": self._clock.now().isoformat()}

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
            wal, metadata, body = await local.run(self._encode, batch.raw, batch.transactions, leader)
            outcome = await local.log.append(body, term=self.term)
        except asyncio.CancelledError:
            batch.fail(lambda: OutcomeUnknown(f"the node stopped before the fate of epoch {epoch} was known", epoch=epoch))
            raise
        except StoreUnavailable as error:
            batch.fail(lambda: StoreUnavailable(f"not written: {error}", transient=error.transient))
            raise
        if not isinstance(outcome, Appended):
            batch.fail(lambda: Fenced(f"another node has created epoch {epoch}; the write is not written"))
            return False
        await local.apply_own(wal, metadata, outcome.position, len(body))
        self._on_epoch(metadata)
        batch.acknowledge(epoch)
        return True

    def _encode(self, raw: bytes, transactions: int, leader: Leader | None) -> tuple[Wal, Metadata, bytes]:
        """The epoch as an object of the log. On the replica's thread, for its checksum."""
        local, compression = self._local, self._identity.settings.compression
        wal = parse(raw, page_size=local.replica.page_size)
        compressor = codec.Compressor(compression)
        stored = b"".join(compressor.feed([bytes(raw)]))
        metadata = Metadata(
            kind="wal",
            cluster_id=self._identity.cluster_id,
            epoch=local.log.position.epoch + 1,
            term=self.term,
            leader=leader,
            created_at=self._clock.now(),
            nonce=self._clock.token().hex(),
            transactions=transactions,
            pages=wal.frames,
            page_size=wal.page_size,
            database_pages=wal.database_pages,
            raw_size_bytes=compressor.raw_size_bytes,
            raw_sha256=compressor.raw_sha256,
            stored_xxh3=compressor.stored_xxh3,
            previous_sha256=local.log.position.sha256,
            state_checksum=f"{local.replica.checksum_after(wal):016x}",
            min_sqlite_version=local.metadata.min_sqlite_version,
            compression=compression,
        )
        return wal, metadata, codec.encode_header(metadata) + stored
