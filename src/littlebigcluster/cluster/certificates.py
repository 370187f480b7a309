"""The cluster's certificate authority: it lies in the bucket, and whoever can read it is trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.errors import CorruptLog, StoreUnavailable
from littlebigcluster.net import Authority, NodeIdentity
from littlebigcluster.store import Store, Unresolved, put_if_absent

LIFETIME = timedelta(days=7)
"""Of a node's certificate. It is renewed long before."""

LOOK_SECONDS = 600.0
"""Between two looks of a node whether the authority was rotated, or its certificate is to be renewed."""

SETTLED_SECONDS = 3 * LOOK_SECONDS
"""A new authority signs when it is older than this: before, there may be nodes that do not trust it yet."""

_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class Authorities:
    """All authorities that the cluster trusts, newest first."""

    all: Sequence[Authority]
    numbers: Sequence[int]

    def signer(self, clock: Clock) -> Authority:
        """The newest one that all nodes know by now. By the time of day: when clocks differ by more than the margin,
        nodes may refuse each other for a while, and go on over the store."""
        settled = timedelta(seconds=SETTLED_SECONDS)
        known = (each for each in self.all if clock.now() - each.created_at >= settled)
        return next(known, self.all[-1])

    def mint(self, node: UUID, hosts: Sequence[str], clock: Clock) -> NodeIdentity:
        """A certificate for a node. During a rotation all authorities are trusted."""
        signer = self.signer(clock)
        return signer.mint(str(node), hosts, LIFETIME, clock, trust=[each for each in self.all if each is not signer])


async def create_authority(store: Store, cluster_id: str, number: int, *, clock: Clock) -> None:
    """Make authority `number`, unless somebody else has made it. Raises StoreUnavailable."""
    authority = await asyncio.to_thread(Authority.create, cluster_id, clock)
    result = await put_if_absent(
        store, names.authority(number), authority.to_json().encode(), clock=clock, deadline_seconds=_DEADLINE_SECONDS
    )
    if isinstance(result, Unresolved):
        raise StoreUnavailable(f"cannot tell whether {names.authority(number)} was written ({result.cause})")


async def load_authorities(store: Store) -> Authorities:
    """Raises CorruptLog when there is none, or one is damaged; StoreUnavailable."""
    found = [info.key for info in await store.list(names.AUTHORITIES)]
    numbered = sorted(((number, key) for key in found if (number := names.parse_authority(key))), reverse=True)
    if not numbered:
        raise CorruptLog(names.authority(1), "the cluster's certificate authority, found none")
    authorities = []
    for _, key in numbered:
        try:
            authorities.append(Authority.from_json(await store.get(key) or b""))
        except ValueError as error:
            raise CorruptLog(key, f"a certificate authority ({error})") from None
    return Authorities(authorities, [number for number, _ in numbered])


async def rotate_authority(store: Store, cluster_id: str, *, clock: Clock) -> int:
    """Make a new authority beside the present ones; returns its number. Nodes trust it when they look next, and let
    it sign when `SETTLED_SECONDS` are over. After another `LOOK_SECONDS` nobody needs the former one any more.

    Raises CorruptLog, StoreUnavailable.
    """
    number = max((await load_authorities(store)).numbers) + 1
    await create_authority(store, cluster_id, number, clock=clock)
    return number
