"""Does a store keep all that a cluster needs? Tried out below a prefix of its own, which is cleaned up."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from obstore.store import MemoryStore

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable, UnsafeStore
from littlebigcluster.store.base import Store
from littlebigcluster.store.directory import DirectoryStore
from littlebigcluster.store.open import CLOUDS, Location, open_store
from littlebigcluster.store.probe import Broken
from littlebigcluster.store.scoped import Scoped
from littlebigcluster.store.wrappers import Counting, Operation

from .bench import Bench, Doubtful, NotTried
from .promises import PROMISES, Promise

logger = logging.getLogger(__name__)

Outcome = Literal["pass", "warning", "fail", "unknown", "not tried"]

CLIENTS = 4
CLEANING_ROUNDS = 5
LATE_SECONDS = 1.0
"""What was sent when somebody interrupted may still arrive for a while."""

PUT_DOLLARS = 0.005 / 1000
GET_DOLLARS = 0.0004 / 1000
"""S3 Standard's list prices; a LIST costs as much as a PUT, deleting nothing."""

PARTS_OF_A_STREAM = 5
"""Requests of an upload in parts, about."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one promise of a store has come to.

    `fail` makes the store unsafe or unusable, a `warning` does not; `unknown` means that the store did not answer,
    or that an earlier check has failed so that there was nothing to look at.
    """

    name: str
    outcome: Outcome
    seen: str
    meaning: str
    """What it would mean for a cluster if it failed."""
    advice: str


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found out about a store."""

    store: str
    checks: tuple[Check, ...]
    figures: dict[str, float]
    """`put_p50_seconds`, `put_p99_seconds`, the same for get and list, `clock_difference_seconds` (positive when the
    store is ahead); what could not be measured is absent."""
    requests: dict[Operation, int]
    cost_dollars: float
    """Of these requests, about, at S3 Standard's list prices."""

    @property
    def sound(self) -> bool:
        """Whether a cluster can live there: nothing failed, and nothing is unknown."""
        return all(check.outcome in ("pass", "warning", "not tried") for check in self.checks)


async def examine_store(
    location: Location, *, store_timeout: float = 10.0, on_check: Callable[[str], None] | None = None
) -> Examination:
    """Try out whether the store at `location` keeps all that a cluster needs.

    May be done beside a running cluster: everything happens below `.lbc/doctor-<random>/`, which is deleted at the
    end, also when it is cancelled. `on_check` is told the name of each check as it begins. About 2,000 requests.

    Raises ValueError or TypeError for what is no location; whatever the store does wrong is in the result.
    """
    clock = Clock()
    if location == "memory://":
        location = MemoryStore()  # else each opening would be another one
    clients = [open_store(location, timeout_seconds=store_timeout, clock=clock) for _ in range(CLIENTS)]
    strangers = [
        open_store(url, timeout_seconds=store_timeout, clock=clock) if url else None
        for url in (_absent_bucket(location, clock), _made_up_credentials(location, clock))
    ]
    try:
        return await examine(clients, clock=clock, absent=strangers[0], nobody=strangers[1], on_check=on_check)
    finally:
        for store in (*clients, *strangers):
            if store is not None:
                await store.close()


async def examine(
    clients: Sequence[Store],
    *,
    clock: Clock,
    absent: Store | None = None,
    nobody: Store | None = None,
    on_check: Callable[[str], None] | None = None,
) -> Examination:
    """The same for a store that several clients have opened already."""
    counting = [Counting(client) for client in clients]
    prefix = f".lbc/doctor-{clock.token(8).hex()}"
    bench = Bench([Scoped(each, prefix) for each in counting], clock, absent, nobody)
    checks: list[Check] = []
    try:
        for promise in PROMISES:
            if _is_hopeless(checks):
                checks.append(_check(promise, "unknown", "not tried after what came before"))
                continue
            if on_check is not None:
                on_check(promise.name)
            checks.append(await _examined(promise, bench))
        checks.append(await _cleaned_up(bench.first))
    except BaseException:  # the cleaning up may be what was interrupted
        await _cleaned_up(bench.first, interrupted=True)
        raise
    finally:
        if isinstance(clients[0], DirectoryStore):
            await clients[0].prune(prefix)
    requests = sum((each.requests for each in counting), Counter[Operation]())
    return Examination(clients[0].url, tuple(checks), bench.figures, dict(requests), _cost_dollars(requests))


def _is_hopeless(checks: Sequence[Check]) -> bool:
    """Whether to spare the rest: nothing can be written, or the store has stopped answering."""
    nothing_written = bool(checks) and checks[0].outcome in ("fail", "unknown")
    return nothing_written or [check.outcome for check in checks[-2:]] == ["unknown", "unknown"]


async def _examined(promise: Promise, bench: Bench) -> Check:
    try:
        return _check(promise, "pass", await promise.trial(bench))
    except (Broken, UnsafeStore) as broken:
        return _check(promise, "fail", str(broken))
    except Doubtful as doubtful:
        return _check(promise, "warning", str(doubtful))
    except NotTried as reason:
        return _check(promise, "not tried", str(reason))
    except StoreUnavailable as error:
        return _check(promise, "unknown" if error.transient else "fail", str(error))


def _check(promise: Promise, outcome: Outcome, seen: str) -> Check:
    return Check(promise.name, outcome, seen, promise.meaning, promise.advice)


async def _cleaned_up(store: Store, *, interrupted: bool = False) -> Check:
    """Delete everything below the prefix until nothing is listed; twice more a little later when `interrupted`."""

    def check(outcome: Outcome, seen: str) -> Check:
        advice = f"Delete what is below {store.url}; nothing needs it."
        return Check("clean-up", outcome, seen, "Some small objects stay in the bucket, and cost a little.", advice)

    try:
        for round in range(CLEANING_ROUNDS):
            found = await store.list("")
            if not found and (not interrupted or round >= 2):
                return check("pass", "nothing is left")
            await store.delete([info.key for info in found])
            if interrupted:
                await asyncio.sleep(LATE_SECONDS)
        found = await store.list("")
    except StoreUnavailable as error:
        logger.warning("could not clean up %s: %s", store.url, error)
        return check("warning", str(error))
    return check("warning", f"{len(found)} objects are still listed") if found else check("pass", "nothing is left")


def _cost_dollars(requests: Counter[Operation]) -> float:
    puts = requests["create"] + requests["put"] + requests["list"] + PARTS_OF_A_STREAM * requests["put_stream"]
    return puts * PUT_DOLLARS + (requests["get"] + requests["get_range"]) * GET_DOLLARS


def _absent_bucket(location: Location, clock: Clock) -> str | None:
    """The location, but in a bucket that nobody has."""
    if not isinstance(location, str) or (url := urlsplit(location)).scheme not in CLOUDS:
        return None
    return url._replace(netloc=f"lbc-doctor-{clock.token(12).hex()}").geturl()


def _made_up_credentials(location: Location, clock: Clock) -> str | None:
    """The location, but with credentials that nobody was given."""
    if not isinstance(location, str) or (url := urlsplit(location)).scheme not in ("s3", "az"):
        return None
    secret = base64.b64encode(clock.token(32)).decode()
    query = [
        (name, value)
        for name, value in parse_qsl(url.query)
        if not any(word in name for word in ("access_key", "account_key", "token", "secret", "sas", "skip_signature"))
    ]
    if url.scheme == "s3":
        query += [("access_key_id", "LBCDOCTORNOBODY"), ("secret_access_key", secret)]
    else:
        query += [("account_key", secret)]
    return url._replace(query=urlencode(query)).geturl()
