"""Making a cluster: identity, certificate authority, then the snapshot of epoch 0, of nothing or of a database."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.certificates import create_authority
from littlebigcluster.database import StateChecksum, write_initial_database
from littlebigcluster.epochs import (
    FORMAT_VERSION,
    Identity,
    Metadata,
    codec,
    names,
    read_identity,
    snapshots,
    unfinished,
)
from littlebigcluster.errors import AlreadyInitialized, CorruptLog, StoreUnavailable
from littlebigcluster.settings import ClusterSettings
from littlebigcluster.store import Mine, Store, Theirs, Unresolved, probe_race, put_if_absent, retried
from littlebigcluster.temporary import temporary_directory
from littlebigcluster.threads import in_thread

MakeDatabase = Callable[[Path], Awaitable[object]]

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

    Raises AlreadyInitialized (there is a cluster to join, one with another id, or an import has begun), UnsafeStore,
    StoreUnavailable.
    """
    identity = Identity(check_id(cluster_id or str(clock.uuid7())), clock.now(), settings)
    if await store.get(names.CLUSTER) is None:
        await _check_nothing_is_left(store)
        await probe_race(store, clock=clock)
        await _created(store, names.CLUSTER, identity.encode(), clock=clock)
    # Whoever has created the identity, it counts, and the first epoch follows from it. Who was slower does not leave
    # it at that: the other may still be at it, or die, and there must be something to join.
    present, _ = await read_identity(store)
    other = cluster_id is not None and present.cluster_id != cluster_id
    if other or (await store.list(names.LOG_PREFIX))[:1]:
        raise _taken(store, present)
    if present.imported:
        # Only its creator has the database that belongs there: an empty one in its place would be a loss.
        raise AlreadyInitialized(str(unfinished(store, present)))
    await create_authority(store, present.cluster_id, 1, clock=clock)
    async with temporary_directory() as directory:
        packed = await in_thread(_pack, present, directory / "initial.db", clock)
        body = codec.encode_header(packed.metadata) + await in_thread(packed.path.read_bytes)
    if not await _created(store, names.snapshot(0), body, clock=clock):
        raise AlreadyInitialized(f"somebody else has initialized {store.url} at this moment; join it")
    return present


async def initialize_from(
    store: Store,
    cluster_id: str | None,
    settings: ClusterSettings,
    make: MakeDatabase,
    *,
    clock: Clock,
    on_bytes: snapshots.OnBytes,
) -> Identity:
    """Make a cluster that begins with a database: what `make` writes to the path it is given, with the page size of
    the settings, plain and checked. It is called when the place is known to be free, before anything is written there.
    `on_bytes` is told of the upload: it is read back, so that twice its size is moved.

    One that died half way leaves an identity that nobody can join and nothing completes, not even this: another one
    may still be on its way, with a database of its own. It says what to delete.

    Raises AlreadyInitialized, UnsafeStore, StoreUnavailable, OSError, sqlite3.Error, and what `make` raises.
    """
    identity = Identity(check_id(cluster_id or str(clock.uuid7())), clock.now(), settings, clock.token().hex())
    await _check_vacant(store)
    async with temporary_directory() as directory:
        database = directory / "database.db"
        await make(database)
        packed = await in_thread(_pack, identity, database, clock)
        await probe_race(store, clock=clock)
        if not await _created(store, names.CLUSTER, identity.encode(), clock=clock):
            raise _taken(store, (await read_identity(store))[0])
        try:
            await create_authority(store, identity.cluster_id, 1, clock=clock)
            # Nobody else writes this object, so that sending it again is harmless, and so is one that comes late.
            await retried(
                lambda: snapshots.upload(store, packed, on_bytes=on_bytes),
                clock=clock,
                deadline_seconds=_DEADLINE_SECONDS,
            )
        except (StoreUnavailable, CorruptLog) as error:
            raise StoreUnavailable(
                f"the import to {store.url} was broken off; unless it can be joined, delete all of {names.DIRECTORY}"
                f" there, and begin again ({error})",
                transient=isinstance(error, StoreUnavailable) and error.transient,
            ) from error
    return identity


async def _check_vacant(store: Store) -> None:
    """Raises AlreadyInitialized for a cluster, and for what is left of one. Changes nothing."""
    if await store.get(names.CLUSTER) is not None:
        identity, _ = await read_identity(store)
        raise (
            _taken(store, identity)
            if await store.list(names.LOG_PREFIX)
            else AlreadyInitialized(str(unfinished(store, identity)))
        )
    await _check_nothing_is_left(store)


async def _check_nothing_is_left(store: Store) -> None:
    """Raises AlreadyInitialized for what is left of a cluster that has no identity any more."""
    for info in await store.list(names.DIRECTORY):
        if names.parse(info.key) or names.parse_merged(info.key) or names.parse_authority(info.key):
            if await store.get(names.CLUSTER) is not None:  # it is being initialized at this moment
                return
            raise AlreadyInitialized(
                f"{store.url} holds {info.key} of a former cluster; delete all of {names.DIRECTORY}, or use another"
                f" prefix; or if only {names.CLUSTER} was lost, let `lbc -p {store.url} repair` write it anew"
            )


def _taken(store: Store, identity: Identity) -> AlreadyInitialized:
    return AlreadyInitialized(
        f'{store.url} holds cluster "{identity.cluster_id}" already; join it, or use another prefix'
    )


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


def _pack(identity: Identity, database: Path, clock: Clock) -> snapshots.Packed:
    """The file `database`, plain or absent, with what makes it the state of epoch 0; compressed beside it."""
    settings = identity.settings
    system = {
        "cluster_id": identity.cluster_id,
        "format_version": FORMAT_VERSION,
        "epoch": 0,
        "term": 0,
        "last_update": identity.created_at.isoformat(),
    }
    min_sqlite_version = write_initial_database(database, page_size=settings.page_size, system=system)
    checksum = StateChecksum(settings.page_size)
    pages = database.stat().st_size // settings.page_size
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
        raw_size_bytes=0,
        raw_sha256="",
        stored_xxh3="",
        previous_sha256="",
        state_checksum="",
        min_sqlite_version=min_sqlite_version,
        compression=settings.compression,
    )

    def chunks(file: BinaryIO) -> Iterator[bytes]:
        while chunk := file.read(snapshots.CHUNK_BYTES):
            checksum.feed(chunk)
            yield chunk

    with database.open("rb") as file:
        packed = snapshots.pack(chunks(file), metadata, database.with_name("packed"))
    database.unlink()
    return replace(packed, metadata=replace(packed.metadata, state_checksum=f"{checksum.value:016x}"))
