"""One node of the demo, in a process of its own: `python -m littlebigcluster.cli.demo.node`.

Its stdin says what to do, beginning with how to join; its stdout tells what it sees. All rows it reports are read
from its own replica. The end of stdin means that the demo has ended or died, and ends this process too, unless it
was told `keep` before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from littlebigcluster.cli.demo.messages import TABLE, Message, decode, encode
from littlebigcluster.cli.logs import log_to
from littlebigcluster.cli.signals import Stopped, run
from littlebigcluster.cluster import Cluster, Node
from littlebigcluster.errors import Aborted, Fenced, LbcError, NotLeader, StoreUnavailable
from littlebigcluster.settings import NodeSettings

_REPORT_SECONDS = 0.1
_LONGEST_FAREWELL_SECONDS = 5.0
_NOT_WRITTEN = (NotLeader, Fenced, Aborted, StoreUnavailable, sqlite3.Error)


class Demonstrator:
    """Does what stdin says, on a node that has joined."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._takes_writes = False
        self._kept = False

    async def serve(self, messages: AsyncIterator[Message]) -> None:
        """Returns when stdin ends, unless the node is to be kept: then never."""
        async with asyncio.TaskGroup() as tasks:
            reports = [
                tasks.create_task(report()) for report in (self._report_leader, self._report_epochs, self._report_state)
            ]
            async for message in messages:
                match message["do"]:
                    case "write":
                        tasks.create_task(self._write(message["number"]))
                    case "numbers":
                        tasks.create_task(self._numbers(message["at_least"]))
                    case "keep":
                        self._keep()
            if self._kept:
                await asyncio.Event().wait()
            _leave_soon()
            for report in reports:
                report.cancel()

    def _tell(self, message: Message) -> None:
        if not self._kept:
            _say(message)

    def _keep(self) -> None:
        self._tell({"kept": True})
        self._kept = True

    async def _write(self, number: int) -> None:
        sql = f"INSERT INTO {TABLE}(number, node) VALUES (?, ?)"
        try:
            done = await self._node.execute(sql, (number, str(self._node.id)))
        except _NOT_WRITTEN as error:
            self._tell({"number": number, "outcome": "refused", "error": str(error)})
        except LbcError as error:
            self._tell({"number": number, "outcome": "unknown", "error": str(error)})
        else:
            self._tell({"number": number, "outcome": "acknowledged", "epoch": done.epoch})

    async def _numbers(self, at_least: int) -> None:
        """All rows of this replica, once it has reached an epoch."""
        rows = await self._node.read(f"SELECT number FROM {TABLE} ORDER BY number", at_least=at_least)
        self._tell({"numbers": [number for (number,) in rows]})

    async def _report_leader(self) -> None:
        async for leader in self._node.leader:
            self._takes_writes = False
            if leader is not None and leader.uuid == self._node.id:
                with contextlib.suppress(LbcError):  # not the leader any more: the next one sees to it
                    await self._prepare()
            await self._report()

    async def _prepare(self) -> None:
        await self._node.wait_until_leader()
        if not await self._node.read("SELECT 1 FROM sqlite_schema WHERE name = ?", (TABLE,)):
            await self._node.execute(f"CREATE TABLE {TABLE}(number INTEGER PRIMARY KEY, node TEXT)")
        self._takes_writes = True

    async def _report_epochs(self) -> None:
        async for epoch in self._node.epoch:
            self._tell({"reached": epoch})

    async def _report_state(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(_REPORT_SECONDS)

    async def _report(self) -> None:
        node = self._node
        if self._kept:
            return
        with node.connection() as db:
            epoch = int(db.execute("SELECT value FROM _lbc WHERE key = 'epoch'").fetchone()[0])
            known = db.execute("SELECT count(*) FROM sqlite_schema WHERE name = ?", (TABLE,)).fetchone()[0]
            rows = db.execute(f"SELECT count(*) FROM {TABLE}").fetchone()[0] if known else 0
        self._tell({"epoch": epoch, "rows": rows, "term": node.term, "leads": self._takes_writes})


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
    cluster = Cluster(options["store"])
    try:
        async with cluster.join(az=options["az"], can_lead=options["can_lead"], settings=settings) as node:
            _say({"joined": str(node.id)})
            await Demonstrator(node).serve(aiter(stdin))
    except* BrokenPipeError:
        pass  # the demo has died while we told it something


def _say(message: Message) -> None:
    sys.stdout.buffer.write(encode(message))
    sys.stdout.buffer.flush()


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
