"""Making a cluster: identity, certificate authority, then the snapshot of epoch 0."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.certificates import create_authority
from littlebigcluster.database import StateChecksum, write_initial_database
from littlebigcluster.epochs import FORMAT_VERSION, Identity, Metadata, codec, names, read_identity
from littlebigcluster.errors import AlreadyInitialized, StoreUnavailable
from littlebigcluster.settings import ClusterSettings
from littlebigcluster.store import Mine, Store, Theirs, Unresolved, probe_race, put_if_absent

_DEADLINE_SECONDS = 60.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def check_id(cluster_id: str) -> str:
    """Raises ValueError unless `cluster_id` is 1 to 60 letters, digits, dots, dashes or underscores."""
    if not _ID.fullmatch(cluster_id):
        raise ValueError(
            f"a cluster id is 1 to 60 letters, digits, '.', '_' or '-', beginning with a letter or digit,"
            f" not {cluster_id!r}"
        )
    return cluster_id


async def initialize(store: Store, cluster_id: str | None, settings: ClusterSettings, *, clock: Clock) -> Identity:
    """Make the cluster; an id is made up if none is given. One that crashed half way, or whose answer was lost, is
    completed by calling it again with the same id, or none.

    Raises AlreadyInitialized (there is a cluster to join, or one with another id), UnsafeStore, StoreUnavailable.
    """
    identity = Identity(check_id(cluster_id or str(clock.uuid7())), clock.now(), settings)
    if await store.get(names.CLUSTER) is None:
        await probe_race(store, clock=clock)
        await _created(store, names.CLUSTER, identity.encode(), clock=clock)
    # Whoever has created the identity, it counts, and the first epoch follows from it. Who was slower does not leave
    # it at that: the other may still be at it, or die, and there must be something to join.
    present, _ = await read_identity(store)
    other = cluster_id is not None and present.cluster_id != cluster_id
    if other or await store.get_range(names.snapshot(0), 0, 1) is not None:
        raise AlreadyInitialized(
            f'{store.url} holds cluster "{present.cluster_id}" already; join it, or use another prefix'
        )
    if (await store.list(names.LOG_PREFIX))[:1]:
        raise AlreadyInitialized(f'{store.url} holds cluster "{present.cluster_id}" and its log already; join it')
    await create_authority(store, present.cluster_id, 1, clock=clock)
    body = await asyncio.to_thread(_first_snapshot, present, clock)
    if not await _created(store, names.snapshot(0), body, clock=clock):
        raise AlreadyInitialized(f"somebody else has initialized {store.url} at this moment; join it")
    return present


async def _created(store: Store, key: str, body: bytes, *, clock: Clock) -> bool:
    """False when somebody else has created it."""
    match await put_if_absent(store, key, body, clock=clock, deadline_seconds=_DEADLINE_SECONDS):
        case Mine():
            return True
        case Theirs():
            return False
        case Unresolved(cause):
            raise StoreUnavailable(
                f"cannot tell whether {key} was written to {store.url}; run init again with the same id ({cause})"
            )


def _first_snapshot(identity: Identity, clock: Clock) -> bytes:
    settings = identity.settings
    created_at = identity.created_at.isoformat()
    system = {
        "cluster_id": identity.cluster_id,
        "format_version": FORMAT_VERSION,
        "epoch": 0,
        "term": 0,
        "last_update": created_at,
    }
    with tempfile.TemporaryDirectory(prefix="lbc-") as directory:
        path = Path(directory) / "initial.db"
        write_initial_database(path, page_size=settings.page_size, system=system)
        raw = path.read_bytes()
    compressor = codec.Compressor(settings.compression)
    stored = b"".join(compressor.feed([raw]))
    checksum = StateChecksum(settings.page_size)
    checksum.feed(raw)
    pages = len(raw) // settings.page_size
    metadata = Metadata(
        kind="db",
        cluster_id=identity.cluster_id,
        epoch=0,
        term=0,
        leader=None,
        created_at=clock.now(),
        nonce=clock.token().hex(),
        transactions=0,
        pages=pages,
        page_size=settings.page_size,
        database_pages=pages,
        raw_size_bytes=compressor.raw_size_bytes,
        raw_sha256=compressor.raw_sha256,
        stored_xxh3=compressor.stored_xxh3,
        previous_sha256="",
        state_checksum=f"{checksum.value:016x}",
        min_sqlite_version="3.35.0",
        compression=settings.compression,
    )
    return codec.encode_header(metadata) + stored
