"""Writes from anywhere: work that is not for this node travels to the leader, and is done once.

Each piece of work carries a key. The leader keeps the key with the answer, in the same transaction; so the same work
sent again, after a lost answer or to a new leader, gets the answer of the first time. A sender that stops trying
without an answer does not know; it has the key, and can ask again as long as keys are kept.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID

from littlebigcluster import errors
from littlebigcluster.clock import Clock
from littlebigcluster.cluster.statements import Work, from_json, to_json
from littlebigcluster.database import REMEMBER_SECONDS, Done
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import (
    Aborted,
    EpochTooLarge,
    Fenced,
    LbcError,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerUnavailable,
    RequestTimeout,
    StoreUnavailable,
)
from littlebigcluster.net import RETRY_LATER, Answer, Client, Crowded, Refused, Request
from littlebigcluster.watch import Watch

_RETRY_SECONDS = 0.1
_FAREWELL_SECONDS = 0.25
"""So long a former leader may still answer."""

_SAFE_SECONDS = MAX_TIMEOUT_SECONDS = REMEMBER_SECONDS / 2
"""So long after the first attempt that may have been written it is sent again, and so long an attempt may wait at the
leader. Later than both its key might be forgotten, and the work done twice."""

MAX_KEY_LENGTH = 64

MAX_BODY_BYTES = 16 << 20
"""So large a request may be, and so a write that travels."""

Run = Callable[[Work, str, float], Awaitable[Done[str]]]
"""Runs work on this leader under a key, with a time-out."""


class Forwarder:
    """Sends work to whoever leads. Holds one connection, to the present leader."""

    def __init__(
        self,
        leader: Watch[Leader | None],
        *,
        me: UUID,
        run_here: Run,
        connect: Callable[[str], Client],
        max_writes: int = 20_000,
        max_bytes: int = 256 << 20,
        clock: Clock,
    ) -> None:
        self._max_writes, self._max_bytes = max_writes, max_bytes
        self._in_flight = self._in_flight_bytes = 0
        self._leader, self._me, self._run_here, self._connect, self._clock = leader, me, run_here, connect, clock
        self._client: Client | None = None
        self._address = ""

    async def run(self) -> None:
        """Give up what is under way at a former leader, until cancelled: frozen or cut off, it would not answer for
        long. Sent again, it is done once."""
        async for leader in self._leader:
            client = self._client
            if client is not None and leader is not None and leader.address != self._address:
                await asyncio.sleep(_FAREWELL_SECONDS)
                if self._client is client:
                    self._client = None
                    await client.close()

    async def send(self, work: Work, *, timeout: float, key: str | None = None) -> Done[Any]:
        """Have the work done by the leader, once for each key; wait for a leader if there is none.

        Raises what the work raises, Overloaded (too much waits, here or there), NotLeader (no leader in time: both
        certainly not written), OutcomeUnknown with the key (a new one if none is given), ValueError for a key that was
        used for other work.
        """
        key, work = key if key is not None else self._clock.token().hex(), work.portable()
        body = to_json({"key": key, "kind": work.kind, "arguments": work.arguments})
        with self._admitted(len(body)):
            return await self._send(work, key, body, timeout)

    @contextlib.contextmanager
    def _admitted(self, size_bytes: int) -> Iterator[None]:
        """Invariant: what is on its way to the leader, or waits for one, is bounded in number and size."""
        if self._in_flight >= self._max_writes:
            full = f"{self._in_flight} writes of this node are waiting for the leader already (max_queued_writes)"
        elif self._in_flight and self._in_flight_bytes + size_bytes > self._max_bytes:
            full = f"{self._in_flight_bytes} bytes of writes are waiting for the leader already (max_queued_bytes)"
        else:
            full = ""
        if full:
            raise Overloaded(f"{full}; this one was not sent, and is not written. Try again a little later")
        self._in_flight += 1
        self._in_flight_bytes += size_bytes
        try:
            yield
        finally:
            self._in_flight -= 1
            self._in_flight_bytes -= size_bytes

    async def _send(self, work: Work, key: str, body: str, timeout: float) -> Done[Any]:
        give_up_at = self._clock.monotonic() + timeout
        maybe_written, last = False, "nobody led"
        while (left := give_up_at - self._clock.monotonic()) > 0:
            try:
                leader = await self._leader.until(lambda leader: leader is not None, timeout=left)
            except TimeoutError:
                break
            except LbcError as error:  # this node stops
                if maybe_written:
                    raise OutcomeUnknown(f"{error}; the write may have taken effect ({last})", key=key) from error
                raise
            assert leader is not None
            if not maybe_written:
                first_sent_at = self._clock.boottime()
            elif self._clock.boottime() - first_sent_at > _SAFE_SECONDS:
                last = f"{last}; by now its key may be forgotten"
                break
            try:
                return await self._once(leader, work, key, body, timeout=left)
            except (NotLeader, Fenced, Aborted) as error:
                last = str(error)  # this attempt is certainly not written
            except Overloaded as error:
                if not maybe_written:
                    raise
                last = str(error)
            except OutcomeUnknown as error:
                maybe_written, last = True, str(error)
            except PeerUnavailable as error:
                maybe_written, last = maybe_written or error.sent, str(error)
            except RequestTimeout as error:
                maybe_written, last = True, str(error)
            except Exception as error:
                if maybe_written:
                    # What this attempt met says nothing of a former one, which may even be late and come after it.
                    raise OutcomeUnknown(f"an answer was lost, and the next one was {error!r}", key=key) from error
                raise
            await asyncio.sleep(min(_RETRY_SECONDS, max(0.0, give_up_at - self._clock.monotonic())))
        if maybe_written:
            raise OutcomeUnknown(
                f"no answer of the leader within {timeout:g} s; the write may have taken effect ({last})", key=key
            )
        raise NotLeader(f"no leader took the write within {timeout:g} s; it is not written ({last})")

    async def _once(self, leader: Leader, work: Work, key: str, body: str, *, timeout: float) -> Done[Any]:
        if leader.uuid == self._me:
            done = await self._run_here(work, key, min(timeout, MAX_TIMEOUT_SECONDS))
            return Done(from_json(done.value), done.epoch)
        if len(body) > MAX_BODY_BYTES:
            raise EpochTooLarge(
                f"the write has {len(body)} bytes on its way to the leader, where bytes take a third more, and may have"
                f" {MAX_BODY_BYTES}; it was not sent, and is not written. Write in several smaller transactions, or on"
                " the leader"
            )
        client = await self._client_of(leader)
        headers = {"content-type": "application/json", "x-lbc-to": str(leader.uuid)}
        response = await client.request("POST", "/.lbc/write", headers=headers, body=body.encode(), timeout=timeout)
        try:
            answer = from_json(response.body)
        except ValueError:
            raise PeerUnavailable(f"{leader.address} answered {response.status} without JSON", sent=True) from None
        if response.status == 200:
            return Done(from_json(answer["value"]), answer["epoch"])
        if response.status == 421:
            raise NotLeader(f"{leader.address} is another node by now")
        raise error_of(answer)

    async def _client_of(self, leader: Leader) -> Client:
        former = self._client
        if former is not None and self._address == leader.address:
            return former
        client = self._client = self._connect(leader.address)
        self._address = leader.address
        if former is not None:
            await former.close()  # meanwhile the leader may change again, and this one be given up
        return client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def check_key(key: Any) -> str:
    """`key`. Raises ValueError for what is no key of a write."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise ValueError(f"the key of a write is 1 to {MAX_KEY_LENGTH} printable characters, not {key!r:.100}")
    return key


async def serve_write(request: Request, run: Run) -> Answer:
    """POST /.lbc/write, on the leader."""
    try:
        value = await request.json()
    except Crowded as refusal:
        return _overloaded(Overloaded(f"the leader holds too much already: {refusal.reason}; the write was not taken"))
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise Refused(400, "a write has a kind")
    try:
        key = check_key(value.get("key"))
        work = Work(kind, from_json(to_json(value.get("arguments"))))
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(400, f"this is no write ({type(error).__name__}: {str(error)[:200]})") from None
    try:
        done = await run(work, key, MAX_TIMEOUT_SECONDS)
    except Overloaded as error:
        return _overloaded(error)
    except Exception as error:  # a procedure may raise anything; the sender is to know
        return Answer.json(describe(error), status=503 if isinstance(error, NotLeader | StoreUnavailable) else 409)
    return Answer.json({"value": done.value, "epoch": done.epoch})


def _overloaded(error: Overloaded) -> Answer:
    return Answer.json(describe(error), 503, RETRY_LATER)


def describe(error: Exception) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error)[:2000]}


_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for module in (sqlite3, errors, builtins)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
}


def error_of(answer: Any) -> Exception:
    """The exception that the leader described; one that is not known here comes as LbcError."""
    name, message = str(answer.get("error")), str(answer.get("message", ""))
    try:
        return _KINDS[name](message)
    except (KeyError, TypeError):
        return LbcError(f"the leader answered {name}: {message}")
