"""The steps of a repair. Each may be the last one that this process makes, and made again by the next."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.certificates import create_authority
from littlebigcluster.cluster.verify import Check, Finding, runs
from littlebigcluster.database import way_back
from littlebigcluster.database.replica import write_database
from littlebigcluster.epochs import (
    Appended,
    Beacon,
    Identity,
    Log,
    Metadata,
    Position,
    Repair,
    names,
    read_metadata,
    retained,
    snapshots,
)
from littlebigcluster.errors import CorruptLog, Fenced, NotRetained, OutcomeUnknown, StoreUnavailable
from littlebigcluster.net import Authority
from littlebigcluster.roles import Restored, encode_epoch, restore_at
from littlebigcluster.store import ObjectInfo, Store, retried
from littlebigcluster.temporary import temporary_directory
from littlebigcluster.threads import in_thread
from littlebigcluster.version import __version__

logger = logging.getLogger(__name__)

COOKIE_STEP = 1 << 20
"""The schema's cookie must be none that there was in what is lost: more than anybody changes a schema."""

_APPEND_SECONDS = 60.0
_DEADLINE_SECONDS = 60.0
_FENCE_VALIDITY_SECONDS = 60.0


def gaps(first: int, head: int, reached: list[tuple[int, int]], told: Iterable[int]) -> list[tuple[int, int]]:
    """The runs of epochs from `first` to `head` that are neither within `reached` nor among those told of already."""
    known = {epoch for begin, end in reached for epoch in range(begin, end + 1)}.union(told)
    return runs(first, head, [epoch for epoch in range(first, head + 1) if epoch not in known], known)


async def set_aside(store: Store, damaged: Iterable[ObjectInfo]) -> None:
    """Keep damaged snapshots elsewhere, where no join and no restore tries them first. Raises StoreUnavailable."""
    for info in damaged:
        # A leader may have written it anew since it was looked at.
        if await store.list(info.key) == [info]:
            await _move_aside(store, info.key)


async def _move_aside(store: Store, name: str) -> None:
    await store.put_stream(names.aside(name), _copied(store, name))
    await store.delete([name])
    logger.warning("%s is damaged and is now %s", name, names.aside(name))


async def _copied(store: Store, name: str) -> AsyncIterator[bytes]:
    at = 0
    while piece := await store.get_range(name, at, snapshots.CHUNK_BYTES):
        yield piece
        at += len(piece)
        if len(piece) < snapshots.CHUNK_BYTES:
            return


async def damaged_authorities(store: Store) -> list[Finding]:
    """Certificate authorities that nobody can read: with one of them, no node can join. Raises StoreUnavailable."""
    found = []
    for info in await store.list(names.AUTHORITIES):
        try:
            if names.parse_authority(info.key) is not None:
                Authority.from_json(await store.get(info.key) or b"")
        except ValueError as error:
            found.append(Finding(info.key, f"expected a certificate authority ({error})"))
    if not found and await store.list(names.AUTHORITIES) == []:
        found.append(Finding(names.authority(1), "expected the cluster's certificate authority, found none"))
    return found


async def replace_authorities(store: Store, identity: Identity, *, clock: Clock) -> None:
    """Set the damaged ones aside; when none is left, make a new one. Raises StoreUnavailable."""
    numbers = [names.parse_authority(info.key) or 0 for info in await store.list(names.AUTHORITIES)]
    for finding in await damaged_authorities(store):
        if await store.get_range(finding.object, 0, 1) is not None:
            await _move_aside(store, finding.object)
    if not await store.list(names.AUTHORITIES):
        await create_authority(store, identity.cluster_id, max(numbers, default=0) + 1, clock=clock)


async def tell(
    store: Store,
    identity: Identity,
    epoch: int,
    back_to: int | None,
    damaged: dict[str, str],
    lost: list[tuple[int, int]],
    *,
    clock: Clock,
) -> None:
    """Write the record. Raises StoreUnavailable."""
    former = Repair.decode(await store.get(names.repair(epoch)) or b"")
    if former is not None:  # of what was found before; nothing of it is forgotten
        damaged, lost = former.damaged | damaged, sorted({*former.lost, *lost})
        back_to = former.back_to if back_to is None else back_to
    by = f"{_user()}@{socket.gethostname()}, littlebigcluster {__version__}"
    record = Repair(
        cluster_id=identity.cluster_id,
        epoch=epoch,
        back_to=back_to,
        at=clock.now(),
        by=by,
        damaged=damaged,
        lost=lost,
    )
    await store.put(names.repair(epoch), record.encode())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without a user of that number
        return "?"


@dataclass(frozen=True, slots=True)
class _GoingOn:
    """The epoch that the log goes on with, and its snapshot."""

    position: Position
    """Of the object before it."""
    body: bytes
    metadata: Metadata
    packed: snapshots.Packed


async def go_back(
    store: Store,
    identity: Identity,
    check: Check,
    *,
    head: int,
    beacon: Beacon | None,
    clock: Clock,
) -> int:
    """Create the epoch after `head`, whose state is the newest one that can be restored; then its record, and its
    snapshot, which is the only way to it. Returns its number.

    Whoever dies between these leaves an epoch that nobody can reach; the next repair goes on behind it.

    Raises Fenced when somebody else has created that epoch, OutcomeUnknown, NotRetained, StoreUnavailable, OSError.
    """
    async with temporary_directory() as directory:
        restored = await _newest(store, identity, check, head, directory, clock=clock)
        try:
            at = Position(head, _term(check, head, beacon), await _hash_of(store, head))
            made = await in_thread(_make, restored, at, identity, directory, clock)
        finally:
            await in_thread(restored.replica.close)
        await _append(store, identity, made, clock=clock)
        epoch, back_to = made.metadata.epoch, restored.position.epoch
        logger.warning("epoch %d is as epoch %d was", epoch, back_to)
        damaged = {
            each.object: each.problem for each in check.findings() if (names.parse(each.object) or ("", 0))[1] > back_to
        }
        lost = gaps(back_to + 1, head, [], [])
        try:
            await tell(store, identity, epoch, back_to, damaged, lost, clock=clock)
            await retried(lambda: snapshots.upload(store, made.packed), clock=clock, deadline_seconds=_DEADLINE_SECONDS)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"epoch {epoch} was created, and its snapshot could not be written: nobody can join yet; run this again"
                f" ({error})",
                transient=error.transient,
            ) from error
        return epoch


async def _newest(
    store: Store, identity: Identity, check: Check, head: int, directory: Path, *, clock: Clock
) -> Restored:
    """The newest state that can be restored. What turns out to be damaged on the way is passed over, too."""
    found = await retained(store)
    while reached := check.restorable():
        epoch = reached[-1][1]
        try:
            return await restore_at(store, identity, directory, found, epoch, clock=clock)
        except CorruptLog as error:
            parsed = names.parse(error.object)
            if parsed is None or not check.first < parsed[1] <= head:
                raise
            if parsed[0] == "db":
                check.bad_snapshots[parsed[1]] = f"expected {error.expected}"
            else:
                check.bad_epochs[parsed[1]] = f"expected {error.expected}"
            if check.restorable() == reached:
                raise
    raise NotRetained(f"nothing of {store.url} can be restored; nothing was done")


def _term(check: Check, head: int, beacon: Beacon | None) -> int:
    """At least that of any epoch: each unreadable one may have been a change of leader."""
    newest = check.newest
    known, epoch = (newest.term, newest.epoch) if newest is not None else (0, 0)
    return max(known, beacon.term if beacon is not None else 0) + max(0, head - epoch)


async def _hash_of(store: Store, epoch: int) -> str:
    """Of the object as it lies there, damaged or not; if it is missing, as its snapshot says, if that knows it."""
    body = await store.get(names.wal(epoch) if epoch else names.snapshot(0))
    if body is not None:
        return hashlib.sha256(body).hexdigest()
    try:
        return (await read_metadata(store, names.snapshot(epoch))).previous_sha256
    except CorruptLog:
        return ""


def _make(restored: Restored, at: Position, identity: Identity, directory: Path, clock: Clock) -> _GoingOn:
    replica, epoch, term = restored.replica, at.epoch + 1, at.term + 1
    system = {"epoch": epoch, "term": term, "leader": None, "last_update": clock.now().isoformat()}
    former = directory / "former.db"
    with replica.pages() as image:
        write_database(former, image.chunks(), page_size=image.page_size)
    raw, version = way_back(
        replica,
        former,
        system=system,
        max_bytes=replica.size_bytes + (1 << 20),
        salt=clock.token(8),
        cookie_step=COOKIE_STEP,
    )
    wal, metadata, body = encode_epoch(
        raw,
        replica,
        at,
        identity,
        term=term,
        leader=None,
        transactions=0,
        min_sqlite_version=version,
        clock=clock,
    )
    replica.apply(wal, expected_checksum=int(metadata.state_checksum, 16))
    with replica.pages() as image:
        of_snapshot = replace(
            metadata,
            kind="db",
            nonce=clock.token().hex(),
            pages=image.page_count,
            previous_sha256=hashlib.sha256(body).hexdigest(),
        )
        packed = snapshots.pack(image.chunks(), of_snapshot, directory / "packed")
    return _GoingOn(at, body, metadata, packed)


async def _append(store: Store, identity: Identity, made: _GoingOn, *, clock: Clock) -> None:
    epoch = made.metadata.epoch
    log = Log(
        store,
        cluster_id=identity.cluster_id,
        position=made.position,
        confirmed_at=float("-inf"),  # it looks whether that is the head before it sends anything
        validity=_FENCE_VALIDITY_SECONDS,
        clock=clock,
    )
    try:
        async with asyncio.timeout(_APPEND_SECONDS):
            outcome = await log.append(made.body, term=made.metadata.term)
    except TimeoutError:
        raise OutcomeUnknown(
            f"the store does not say whether epoch {epoch} was created; run this again when it answers", epoch=epoch
        ) from None
    if not isinstance(outcome, Appended):
        raise Fenced(
            f"somebody else has created epoch {epoch}: another repair was faster, or somebody leads; this one has done"
            " nothing more. Run it again to see whether something is left to do"
        )
