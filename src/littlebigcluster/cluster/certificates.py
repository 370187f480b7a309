"""The cluster's certificate authority: it lies in the bucket, and whoever can read it is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.errors import CorruptLog, StoreUnavailable
from littlebigcluster.net import Authority, NodeIdentity
from littlebigcluster.store import Store, Unresolved, put_if_absent
from littlebigcluster.threads import in_thread

LIFETIME = timedelta(days=7)
"""Of a node's certificate. It is renewed long before."""

LOOK_SECONDS = 600.0
"""Between two looks of a node whether the authority was rotated, or its certificate is to be renewed."""

SETTLED_SECONDS = 3 * LOOK_SECONDS
"""A new authority signs when it is older than this: before, there may be nodes that do not trust it yet."""

ENDED_SECONDS = 2 * SETTLED_SECONDS
"""Who looks when a new authority is older than this trusts the former ones no more: by then it has signed for all."""

_DEADLINE_SECONDS = 30.0
_LISTINGS = 3


@dataclass(frozen=True)
class Authorities:
    """All authorities in the bucket, newest first.

    Who signs and who is trusted goes by the time of day. When clocks differ by more than the margins, nodes may refuse
    each other for a while, and go on over the store.
    """

    all: Sequence[Authority]
    numbers: Sequence[int]

    def signer(self, now: datetime) -> Authority:
        """The newest one that all nodes know by now."""
        return next((each for each in self.all if _age(each, now) >= SETTLED_SECONDS), self.all[-1])

    def trusted(self, now: datetime) -> Sequence[Authority]:
        """Those whose signatures are accepted: several during a rotation."""
        ended = next((index for index, each in enumerate(self.all) if _age(each, now) >= ENDED_SECONDS), len(self.all))
        return self.all[: ended + 1]

    def mint(self, node: UUID, hosts: Sequence[str], clock: Clock) -> NodeIdentity:
        """A certificate for a node."""
        return self.signer(clock.now()).mint(str(node), hosts, LIFETIME, clock, trust=self.trusted(clock.now()))


def _age(authority: Authority, now: datetime) -> float:
    return (now - authority.created_at).total_seconds()


async def create_authority(store: Store, cluster_id: str, number: int, *, clock: Clock) -> None:
    """Make authority `number`, unless somebody else has made it. Raises StoreUnavailable."""
    authority = await in_thread(Authority.create, cluster_id, clock)
    result = await put_if_absent(
        store, names.authority(number), authority.to_json().encode(), clock=clock, deadline_seconds=_DEADLINE_SECONDS
    )
    if isinstance(result, Unresolved):
        raise StoreUnavailable(f"cannot tell whether {names.authority(number)} was written ({result.cause})")


async def load_authorities(store: Store) -> Authorities:
    """Raises CorruptLog when there is none, or one is damaged; StoreUnavailable."""
    for _ in range(_LISTINGS):
        found = [info.key for info in await store.list(names.AUTHORITIES)]
        numbered = sorted(((number, key) for key in found if (number := names.parse_authority(key))), reverse=True)
        bodies = [await store.get(key) for _, key in numbered]
        if None in bodies:
            continue  # retired since; there is a newer one, maybe too new for this listing
        if not numbered:
            break
        return Authorities(
            [_parse(key, body or b"") for (_, key), body in zip(numbered, bodies, strict=True)],
            [number for number, _ in numbered],
        )
    raise CorruptLog(names.authority(1), "the cluster's certificate authority, found none")


def _parse(key: str, body: bytes) -> Authority:
    try:
        return Authority.from_json(body)
    except ValueError as error:
        raise CorruptLog(key, f"a certificate authority ({error})") from None


@dataclass(frozen=True)
class Rotation:
    """A change of the authority, and when what happens."""

    number: int
    """Of the new authority."""
    begun_now: bool
    """False when it was under way already."""
    signs_at: datetime
    """From then on it signs; until `signs_at` and `LOOK_SECONDS` later all nodes have a certificate by it."""
    former_end_at: datetime | None
    """From then on nodes that look trust the former authorities no more. None when there is none any more."""


async def rotate_authority(store: Store, cluster_id: str, *, at_once: bool = False, clock: Clock) -> Rotation:
    """Make a new authority beside the present one. Nodes trust it when they look next, which they do every
    `LOOK_SECONDS`; it signs after `SETTLED_SECONDS`; the former one is trusted no more after `ENDED_SECONDS`. While
    that goes on, no second one is made. What is left of former rotations is deleted.

    `at_once` is for a key that has leaked: the former ones are deleted, so that the new one signs and is trusted alone,
    by each node from its next look on. Until all have looked, some refuse each other, and go on over the store.

    May be repeated when it failed. Raises CorruptLog, StoreUnavailable.
    """
    before, now = await load_authorities(store), clock.now()
    under_way = len(before.trusted(now)) > 1
    if at_once or not under_way:
        await create_authority(store, cluster_id, max(before.numbers) + 1, clock=clock)
    ended = before.numbers if at_once else before.numbers[len(before.trusted(now)) :]
    await store.delete([names.authority(number) for number in ended])
    after = await load_authorities(store)
    created_at = after.all[0].created_at
    return Rotation(
        after.numbers[0],
        at_once or not under_way,
        now if at_once else created_at + timedelta(seconds=SETTLED_SECONDS),
        None if at_once else created_at + timedelta(seconds=ENDED_SECONDS),
    )
