"""What lies in the bucket, seen from outside: for a joiner, and for tools that only read."""

from __future__ import annotations

from dataclasses import dataclass, field

from littlebigcluster.epochs import codec, names
from littlebigcluster.epochs.metadata import Identity, Metadata
from littlebigcluster.errors import CorruptLog, NotInitialized, WrongCluster
from littlebigcluster.store import ObjectInfo, Store


@dataclass(frozen=True, slots=True)
class Survey:
    """What a listing showed."""

    snapshots: list[ObjectInfo]
    """Newest first."""
    epochs: list[ObjectInfo]
    """Oldest first."""
    merged: list[ObjectInfo] = field(default_factory=list)
    """Objects that hold several epochs as one; by their first, oldest first. None of them proves that an epoch exists,
    and nobody has to believe in one: the epochs are there too."""

    @property
    def head(self) -> int:
        """The newest epoch there is."""
        last = [epoch_of(info) for info in (self.snapshots[:1] + self.epochs[-1:])]
        return max(last, default=0)


def epoch_of(info: ObjectInfo) -> int:
    """The epoch that a listed object of the log belongs to."""
    parsed = names.parse(info.key)
    assert parsed is not None
    return parsed[1]


async def read_identity(store: Store, *, expected_id: str | None = None) -> tuple[Identity, bytes]:
    """Which cluster lives here, and the object that says so.

    Raises NotInitialized, WrongCluster, CorruptLog, FormatTooNew, StoreUnavailable.
    """
    body = await store.get(names.CLUSTER)
    if body is None:
        if await _is_former(store):
            what = f"the identity of a cluster, found none, but the rest of it; run `lbc -p {store.url} repair`"
            raise CorruptLog(names.CLUSTER, what)
        raise NotInitialized(f"no cluster at {store.url}: initialize one first, with `lbc -p {store.url} init`")
    identity = Identity.decode(body, name=names.CLUSTER)
    if expected_id is not None and identity.cluster_id != expected_id:
        raise WrongCluster(f'{store.url} holds cluster "{identity.cluster_id}", not "{expected_id}"')
    return identity, body


async def _is_former(store: Store) -> bool:
    """Whether there is a cluster, or what is left of one, without an identity, which is what a cluster begins with."""
    left = await store.list(names.AUTHORITIES) or await store.list(names.LOG_PREFIX)
    return bool(left) and await store.get(names.CLUSTER) is None  # still: somebody may initialize it at this moment


def unfinished(store: Store, identity: Identity) -> NotInitialized:
    """What to raise where there is an identity and nothing else yet."""
    if identity.imported:
        return NotInitialized(
            f'{store.url} holds the beginning of an import as "{identity.cluster_id}", and no database yet; wait, or if'
            f" nobody is at it any more, delete all of {names.DIRECTORY} there and import again"
        )
    return NotInitialized(f"the initialization of {store.url} did not finish; run `lbc -p {store.url} init` again")


async def survey(store: Store) -> Survey:
    """The newest snapshot and the epochs after it, by one GET and one LIST.

    The hint may be stale or absent; then, everything. Raises StoreUnavailable.
    """
    hint = names.parse_marker(await store.get(names.LAST_SNAPSHOT))
    if hint:
        # In order: N.db, N.wal, N+1.wal ...; the name that sorts just before N.db ends in a smaller character.
        found = await _listing(store, start_after=names.snapshot(hint)[:-2])
        if found.snapshots:
            return found
    return await survey_all(store)


async def survey_all(store: Store) -> Survey:
    """All snapshots and all epochs. Raises StoreUnavailable."""
    return await _listing(store, start_after="")


async def survey_after(store: Store, epoch: int) -> Survey:
    """What comes after `epoch`. Raises StoreUnavailable."""
    return await _listing(store, start_after=names.wal(epoch))


async def _listing(store: Store, *, start_after: str) -> Survey:
    found = Survey([], [], [])
    for info in await store.list(names.LOG_PREFIX, start_after=start_after):
        match names.parse(info.key):
            case ("db", _):
                found.snapshots.append(info)
            case ("wal", _):
                found.epochs.append(info)
            case _ if names.parse_merged(info.key):
                found.merged.append(info)
    found.snapshots.reverse()
    return found


async def read_metadata(store: Store, name: str) -> Metadata:
    """The metadata of one object of the log, by one small range read. Raises CorruptLog, FormatTooNew."""
    prefix = await store.get_range(name, 0, 4096)
    if prefix is None:
        raise CorruptLog(name, "an object, found none")
    end = codec.header_size(prefix, name=name)
    if end > len(prefix):
        prefix = await store.get_range(name, 0, end) or b""
    return codec.decode_header(prefix, name=name)[0]
