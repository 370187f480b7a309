"""What `cluster.json` says, or what it has said when it is damaged, missing, or another cluster's: as the log tells it.

Every object of the log names the cluster, the size of its pages and how it is compressed. Whether foreign keys are
enforced stands nowhere else. While no table has any, that makes no difference yet, and off is what `init` takes.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, replace

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.verify import Finding
from littlebigcluster.database import Replica
from littlebigcluster.epochs import Identity, Metadata, names, read_identity, read_metadata, survey_all
from littlebigcluster.errors import CorruptLog, StoreUnavailable, WrongCluster
from littlebigcluster.settings import ClusterSettings
from littlebigcluster.store import Store, Unresolved, put_if_absent

_EPOCHS_READ = 16
_DEADLINE_SECONDS = 60.0
_FOREIGN_KEYS = re.compile(rb'"foreign_keys"\s*:\s*(true|false)')


@dataclass(frozen=True, slots=True)
class Identified:
    """Who lives here."""

    identity: Identity
    """As it is; if there is a `finding`, as it must have been, but for `foreign_keys`, if that is None."""
    finding: Finding | None = None
    """What is wrong with the object."""
    foreign_keys: bool | None = None
    """Whether they were enforced, as far as a damaged object still tells."""

    def as_said(self, foreign_keys: bool | None) -> Identity:
        """With what somebody says who knows it; else with what is told, or off."""
        chosen = self.foreign_keys if foreign_keys is None else foreign_keys
        settings = replace(self.identity.settings, foreign_keys=bool(chosen))
        return replace(self.identity, settings=settings)


async def identify(store: Store, expected_id: str | None) -> Identified:
    """Raises NotInitialized where there is no log either, WrongCluster, CorruptLog when neither the object nor the log
    tells, FormatTooNew, StoreUnavailable."""
    body, present, problem = await store.get(names.CLUSTER), None, "expected the identity of this cluster, found none"
    try:
        present, _ = await read_identity(store)
    except CorruptLog as error:
        problem = problem if body is None else f"expected {error.expected}"
    told = await _told(store, present)
    if present is not None and not told:
        if expected_id not in (None, present.cluster_id):
            raise WrongCluster(f'{store.url} holds cluster "{present.cluster_id}", not "{expected_id}"')
        return Identified(present)
    newest = max(_of_one_cluster(store, told, expected_id), key=lambda each: each.epoch)
    said = _FOREIGN_KEYS.search(body or b"")
    if present is not None:
        problem = f"expected that of {_described(newest)}, as the log has it, found that of {_described(present)}"
        said = said if present.cluster_id == newest.cluster_id else None
    settings = ClusterSettings(page_size=newest.page_size, compression=newest.compression)
    created_at = min(each.created_at for each in told if each.cluster_id == newest.cluster_id)
    return Identified(
        Identity(newest.cluster_id, created_at, settings),
        Finding(names.CLUSTER, problem),
        said[1] == b"true" if said else None,
    )


def _of_one_cluster(store: Store, told: list[Metadata], expected_id: str | None) -> list[Metadata]:
    ids = sorted({each.cluster_id for each in told})
    if expected_id is not None and ids and expected_id not in ids:
        raise WrongCluster(f'{store.url} holds the log of {" and ".join(ids)}, not of "{expected_id}"')
    chosen = [each for each in told if expected_id in (None, each.cluster_id)]
    clusters = sorted({_described(each) for each in chosen})
    if len(clusters) == 1:
        return chosen
    tells = "no object that can be read"
    if clusters:
        tells = f"objects of {' and of '.join(clusters)}; give the id of the right one"
    raise CorruptLog(
        names.CLUSTER,
        "the identity of this cluster; its id and the size of its pages can be told by the log, but that has"
        f" {tells}. Put this object back from a versioned bucket, or from another copy of it",
    )


def _described(what: Identity | Metadata) -> str:
    page_size = what.settings.page_size if isinstance(what, Identity) else what.page_size
    return f'"{what.cluster_id}" with pages of {page_size} bytes'


async def _told(store: Store, present: Identity | None) -> list[Metadata]:
    """By all snapshots and the newest epochs, as far as they can be read; nothing when one agrees with `present`."""
    found, told = await survey_all(store), []
    for info in [*found.snapshots, *found.epochs[-_EPOCHS_READ:]]:
        try:
            metadata = await read_metadata(store, info.key)
        except CorruptLog:
            continue  # others tell
        if present is not None and _described(present) == _described(metadata):
            return []
        told.append(metadata)
    return told


def has_foreign_keys(replica: Replica) -> bool:
    """Whether any table has."""
    with closing(replica.connect()) as connection:
        tables = "FROM sqlite_schema AS s, pragma_foreign_key_list(s.name) WHERE s.type = 'table'"
        return connection.execute(f"SELECT 1 {tables} LIMIT 1").fetchone() is not None


async def write_identity(store: Store, identity: Identity, *, clock: Clock) -> None:
    """Write it anew; what is there is kept aside. Done twice, or by two at once, it comes to the same.
    Raises StoreUnavailable."""
    damaged = await store.get(names.CLUSTER)
    if damaged is not None:
        await store.put(names.aside(names.CLUSTER), damaged)
        await store.put(names.CLUSTER, identity.encode())
        return
    result = await put_if_absent(
        store, names.CLUSTER, identity.encode(), clock=clock, deadline_seconds=_DEADLINE_SECONDS
    )
    if isinstance(result, Unresolved):
        raise StoreUnavailable(f"cannot tell whether {names.CLUSTER} was written ({result.cause})")
