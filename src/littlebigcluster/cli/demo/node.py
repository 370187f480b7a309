"""One node of the demo, in a process of its own: `python -m littlebigcluster.cli.demo.node`.

Its stdin says what to do, beginning with how to join; its stdout tells what it sees. All rows it reports are read
from its own replica. The end of stdin means that the demo has ended or died, and ends this process too, unless it
was told `keep` before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from littlebigcluster.cli.demo.messages import SCHEMA, TABLE, Message, decode, encode
from littlebigcluster.cli.logs import log_to
from littlebigcluster.cli.signals import Stopped, run
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import Cluster, Node
from littlebigcluster.epochs import names
from littlebigcluster.errors import Aborted, Fenced, LbcError, NotLeader, StoreUnavailable
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Created, CreateOutcome, Store, Wrapper, open_store

_REPORT_SECONDS = 0.1
_LONGEST_FAREWELL_SECONDS = 5.0
_NOT_WRITTEN = (NotLeader, Fenced, Aborted, StoreUnavailable, sqlite3.Error)


class Voice:
    """What this process says to the demo, while there is one that listens."""

    def __init__(self) -> None:
        self._silent = False

    def say(self, message: Message) -> None:
        if self._silent:
            return
        try:
            sys.stdout.buffer.write(encode(message))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._silent = True  # the demo has died; the end of stdin comes next

    def hush(self) -> None:
        """Say no more."""
        self._silent = True


class Noting(Wrapper):
    """Tells when the store has answered that an epoch is created: then it is durable."""

    def __init__(self, store: Store, voice: Voice, clock: Clock) -> None:
        super().__init__(store)
        self._voice, self._clock = voice, clock

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        outcome = await super().create(key, body)
        at, name = self._clock.monotonic(), names.parse(key)
        if name is not None and isinstance(outcome, Created):
            self._voice.say({"durable": name[1], "at": at})
        return outcome


class Demonstrator:
    """Does what stdin says, on a node that has joined."""

    def __init__(self, node: Node, voice: Voice, clock: Clock) -> None:
        self._node, self._voice, self._clock = node, voice, clock
        self._leads_since: int | None = None

    async def serve(self, messages: AsyncIterator[Message]) -> None:
        """Returns when stdin ends, unless the node is to be kept: then never."""
        kept = False
        async with asyncio.TaskGroup() as tasks:
            reports = [
                tasks.create_task(report())
                for report in (self._report_leader, self._report_members, self._report_epochs, self._report_state)
            ]
            async for message in messages:
                match message["do"]:
                    case "create":
                        tasks.create_task(self._create())
                    case "write":
                        tasks.create_task(self._write(message["number"]))
                    case "copy":
                        tasks.create_task(self._copy(message["at_least"]))
                    case "keep":
                        self._voice.say({"kept": True})
                        self._voice.hush()
                        kept = True
            if kept:
                await asyncio.Event().wait()
            _leave_soon()
            for report in reports:
                report.cancel()

    async def _create(self) -> None:
        done = await self._node.execute(SCHEMA)
        self._voice.say({"created": done.epoch})

    async def _write(self, number: int) -> None:
        sql = f"INSERT INTO {TABLE}(number, node) VALUES (?, ?)"
        try:
            done = await self._node.execute(sql, (number, str(self._node.id)))
        except _NOT_WRITTEN as error:
            self._voice.say({"number": number, "outcome": "refused", "error": str(error)})
        except LbcError as error:
            self._voice.say({"number": number, "outcome": "unknown", "error": str(error)})
        else:
            self._voice.say({"number": number, "outcome": "acknowledged", "epoch": done.epoch})

    async def _copy(self, at_least: int) -> None:
        """All rows of this replica and its epoch, in one snapshot, once it has reached an epoch."""
        await self._node.epoch.until(lambda epoch: epoch >= at_least)
        with self._node.connection() as db:
            epoch = _epoch(db)
            numbers = [number for (number,) in db.execute(f"SELECT number FROM {TABLE} ORDER BY number")]
        self._voice.say({"copy": [epoch, numbers]})

    async def _report_leader(self) -> None:
        async for leader in self._node.leader:
            leads = leader is not None and leader.uuid == self._node.id
            # The epoch that claimed the leadership, or one that followed it closely.
            self._leads_since = self._node.epoch.value if leads else None
            self._report()

    async def _report_members(self) -> None:
        async for members in self._node.members:
            described = {str(member.id): [member.az, ", ".join(member.roles)] for member in members}
            self._voice.say({"members": described})

    async def _report_epochs(self) -> None:
        async for epoch in self._node.epoch:
            self._voice.say({"visible": epoch, "at": self._clock.monotonic()})

    async def _report_state(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(_REPORT_SECONDS)

    def _report(self) -> None:
        with self._node.connection() as db:
            epoch = _epoch(db)
            known = db.execute("SELECT count(*) FROM sqlite_schema WHERE name = ?", (TABLE,)).fetchone()[0]
            rows = db.execute(f"SELECT count(*) FROM {TABLE}").fetchone()[0] if known else 0
        self._voice.say({"epoch": epoch, "rows": rows, "term": self._node.term, "leads_since": self._leads_since})


def _epoch(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT value FROM _lbc WHERE key = 'epoch'").fetchone()[0])


class Stdin:
    """Messages from stdin. A thread reads it: not every system's event loop can."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while (message := await self._messages.get()) is not None:
            yield message

    async def first(self) -> Message | None:
        return await self._messages.get()

    def _read(self) -> None:
        rest = b""
        # Not sys.stdin: its lock would be held at exit.
        while piece := os.read(0, 1 << 16):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._put(decode(line))
        self._put(None)

    def _put(self, message: Message | None) -> None:
        self._loop.call_soon_threadsafe(self._messages.put_nowait, message)


async def main() -> None:
    stdin = Stdin()
    options = await stdin.first()
    if options is None:
        return
    settings = NodeSettings(directory=Path(options["directory"]), **options["settings"])
    clock, voice = Clock(), Voice()
    cluster = Cluster(Noting(open_store(options["store"], clock=clock), voice, clock))
    async with cluster.join(
        az=options["az"],
        roles=options["roles"],
        can_lead=options["can_lead"],
        address="127.0.0.1",
        settings=settings,
    ) as node:
        voice.say({"joined": str(node.id)})
        await Demonstrator(node, voice, clock).serve(aiter(stdin))


def _leave_soon() -> None:
    """End the process for certain, however long the farewell to the cluster takes."""
    timer = threading.Timer(_LONGEST_FAREWELL_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    log_to(sys.stderr, verbose=True)
    logging.getLogger("littlebigcluster").setLevel(logging.INFO)
    try:
        run(main())
    except Stopped:
        sys.exit(0)
