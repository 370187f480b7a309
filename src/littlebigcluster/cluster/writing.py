"""The writing face of a node: transactions on the leader, plain statements from anywhere."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import statements
from littlebigcluster.cluster.forward import Forwarder, check_key
from littlebigcluster.cluster.home import Home
from littlebigcluster.cluster.session import wrote
from littlebigcluster.cluster.statements import Parameters, Procedures, Result, Work
from littlebigcluster.database import Done, Pending, Writer
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import Aborted, Fenced, NotLeader
from littlebigcluster.roles import Leadership, LocalCopy
from littlebigcluster.settings import Duration, NodeSettings, seconds
from littlebigcluster.watch import Watch

T = TypeVar("T")


class Writing(Home):
    """What a `Node` does with writes."""

    settings: NodeSettings
    can_lead: bool
    leader: Watch[Leader | None]
    _leadership: Leadership | None
    _procedures: Procedures
    _forwarder: Forwarder
    _local: LocalCopy
    _clock: Clock

    def submit(self, fn: Callable[[sqlite3.Connection], T], *, timeout: Duration | None = None) -> Pending[T]:
        """Queue a transaction: `fn(db)` runs once, on the writer thread of this leader, between BEGIN and COMMIT.

        `await` the result for a `Done(value, epoch)` when it is durable; `await pending.peek()` for the value as
        soon as it is executed, which may still be lost. `fn` should only use `db`, and be quick: it holds up all
        other writes. Raises NotLeader, Overloaded (too many writes wait).
        """
        if not callable(fn):
            raise TypeError(f"a transaction is a function that takes the connection, not {fn!r}")
        self._check_home()
        limit = self.settings.write_timeout if timeout is None else timeout
        writer = self._leadership.writer if self._leadership is not None else None
        if writer is None:
            raise self._does_not_lead("A function cannot travel; `execute`, `batch` and `call` can")
        return writer.submit(fn, timeout=seconds(limit))

    async def transaction(self, fn: Callable[[sqlite3.Connection], T], *, timeout: Duration | None = None) -> Done[T]:
        """Run `fn(db)` as one transaction; return its value and epoch when it is durable.

        An exception of `fn` rolls the transaction back and comes out here, when everything that it may have seen
        is durable. Raises NotLeader, Fenced, Aborted, Overloaded (certainly not written), OutcomeUnknown,
        DeadlineExceeded, EpochTooLarge, NotAllowed, StoreUnavailable.
        """
        await self._ready()
        done = await self.submit(fn, timeout=timeout)
        wrote(done.epoch)
        return done

    async def execute(
        self, sql: str, parameters: Parameters = (), *, timeout: Duration | None = None, key: str | None = None
    ) -> Done[Result]:
        """Run one statement as a transaction, on any node; return when it is durable and visible to reads here.

        `.value` has `rows` (of RETURNING), `rowcount` and `lastrowid`. On a node that does not lead, or does not any
        more before it is written, it travels to the leader, and is done once however often it has to be sent; 16 MiB
        of it, in which bytes take a third more, else EpochTooLarge. `VACUUM` works too, on the leader.

        `key`: 1 to 64 characters of your own that name this write, or the `key` of the `OutcomeUnknown` that an
        earlier call raised. The same write with the same key, on any node, within 10 minutes, is done once: a
        repetition gets the value of the first time, and an epoch that includes it.

        Raises sqlite3.Error, and what `transaction` raises; NotLeader only when no leader took it in time, Fenced and
        Aborted only when there was no time left to send it on; ValueError when another write had the key. What is
        raised tells of this call, not of earlier ones with the same key.
        """
        return await self._write(statements.execute(sql, parameters), timeout, key)

    async def executemany(
        self, sql: str, parameters: Iterable[Parameters], *, timeout: Duration | None = None, key: str | None = None
    ) -> Done[Result]:
        """Run one statement for each of `parameters`, all in one transaction. Like `execute`."""
        return await self._write(statements.many(sql, list(parameters)), timeout, key)

    async def executescript(
        self, script: str, *, timeout: Duration | None = None, key: str | None = None
    ) -> Done[None]:
        """Run the statements of a script, all in one transaction: schemas, for example. Like `execute`."""
        return await self._write(statements.script(script), timeout, key)

    async def batch(
        self,
        statements_: Iterable[tuple[str, Parameters]],
        *,
        timeout: Duration | None = None,
        key: str | None = None,
    ) -> Done[list[Result]]:
        """Run several statements with their parameters, all in one transaction. Like `execute`."""
        return await self._write(statements.batch(list(statements_)), timeout, key)

    async def call(self, name: str, key: str | None = None, /, **arguments: Any) -> Done[Any]:
        """Run the procedure that was registered under this name (`@cluster.procedure`) as a transaction on the
        leader. Arguments and result are JSON and bytes: tuples become lists, wherever it is called. `key` as for
        `execute`; by position, so that arguments can have any name. Raises what the procedure raises, if that is a
        builtin exception or one of this library or sqlite3 (else LbcError); and like `execute`."""
        return await self._write(statements.call(name, arguments), None, key)

    async def _write(self, work: Work, timeout: Duration | None, key: str | None) -> Done[Any]:
        if key is not None:
            check_key(key)
        limit = seconds(self.settings.write_timeout if timeout is None else timeout)
        await self._ready()
        writer = self._leadership.writer if self._leadership is not None else None
        if writer is not None and work.vacuum():
            done = Done(Result([], -1, None), (await writer.vacuum(timeout=limit)).epoch)
        elif work.vacuum():
            raise self._does_not_lead("VACUUM cannot travel; run it there")
        elif writer is not None and key is None:
            done = await self._write_here(writer, work, limit)
        else:
            done = await self._forward(work, limit, key)
        wrote(done.epoch)
        return done

    def _does_not_lead(self, advice: str) -> NotLeader:
        leader = self.leader.value
        who = f"{leader.uuid} at {leader.address or '?'} leads" if leader else "nobody leads at the moment"
        wait = ", and `wait_until_leader` waits for this node to lead" if self.can_lead else ""
        return NotLeader(f"this node does not lead; {who}. The write is not written. {advice}{wait}", leader=leader)

    async def _write_here(self, writer: Writer, work: Work, limit: float) -> Done[Any]:
        """On this leader, without a key to keep; what it loses with its leadership travels like any other write."""
        until = self._clock.monotonic() + limit
        try:
            run = work.transaction(self._procedures)
            return await writer.submit(run, timeout=limit, size_bytes=work.size_bytes())
        except (NotLeader, Fenced, Aborted):  # certainly not written
            left = until - self._clock.monotonic()
            if left <= 0:
                raise
            return await self._forward(work, left, None)

    async def _ready(self) -> None:
        """While this leader replaces its primary, a write that begins waits; one that is under way is Aborted."""
        self._check_home()
        if self._leadership is not None:
            await self._leadership.ready()

    async def _forward(self, work: Work, limit: float, key: str | None) -> Done[Any]:
        until = self._clock.monotonic() + limit
        done = await self._forwarder.send(work, timeout=limit, key=key)
        left = max(0.0, until - self._clock.monotonic())
        with contextlib.suppress(TimeoutError):  # durable it is; reads here may be a moment behind
            await self._local.epoch.until(lambda epoch: epoch >= done.epoch, timeout=left)
        return done

    async def _run_with_key(self, work: Work, key: str, timeout: float) -> Done[str]:
        """For work that has travelled: its answer is text, and kept with the key. Raises ValueError when it is kept
        for other work."""
        run = work.transaction(self._procedures)
        writer = self._leadership.writer if self._leadership is not None else None
        if writer is None:
            raise NotLeader("this node does not lead", leader=self.leader.value)
        limit = min(timeout, seconds(self.settings.write_timeout))
        digest = work.digest()
        done = await writer.submit(
            lambda db: f"{digest} {statements.to_json(run(db))}", timeout=limit, key=key, size_bytes=work.size_bytes()
        )
        kept, _, answer = done.value.partition(" ")
        if kept != digest:
            raise ValueError(f"the key {key!r} is that of another write; this one is not written")
        return Done(answer, done.epoch)
