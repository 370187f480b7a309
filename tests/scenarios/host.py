"""A node as a process of its own that does what it is told: `python -m tests.scenarios.host STORE JOIN SETTINGS
STORE_TIMEOUT`.

It reads requests from its standard input and answers on its standard output, in JSON lines, many at a time; at the end
of its input it leaves the cluster. `Host` is the other side, and enough of a `Node` for a `Recorder`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import littlebigcluster
from littlebigcluster import Cluster, LbcError, Node, NodeSettings, OutcomeUnknown
from littlebigcluster.clock import Clock
from littlebigcluster.store import open_store
from littlebigcluster.store.wrappers import Counting
from tests.scenarios.checker import Recorder
from tests.scenarios.member import Deadly, die_after_apply, say
from tests.scenarios.stage import WAIT

REPOSITORY = Path(__file__).parents[2]
LOOPBACK = {"address": "127.0.0.1:0"}
MOST_SECONDS = 0.2
"""From one look at a host to the next, on a machine that is not standing still."""


class Host:
    """A process that runs a node."""

    id: UUID
    address: str

    @classmethod
    async def spawn(
        cls,
        place: Path | str,
        join: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        prefix: tuple[str, ...] = (),
        store_timeout: float = 10,
        log: IO[bytes] | None = None,
    ) -> Host:
        """It begins to join, in a process whose command line begins with `prefix`. `log` gets what it logs."""
        # What the tests say about addresses in general is not for hosts that have their own.
        environment = {name: value for name, value in os.environ.items() if name != "LBC_ADDRESS"}
        if log is not None:
            environment["LBC_TEST_LOG"] = "INFO"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *prefix, sys.executable, "-m", "tests.scenarios.host", str(place), json.dumps(dict(join)),
            json.dumps(dict(settings)), str(store_timeout), stdin=pipe, stdout=pipe, stderr=log, cwd=REPOSITORY,
            env=environment, limit=1 << 24,
        )  # fmt: skip
        return cls(process)

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.epoch = _RemoteEpoch(self)
        self._numbers = count(1)
        self._open: dict[int, asyncio.Future[Any]] = {0: asyncio.get_running_loop().create_future()}
        self._listening = asyncio.create_task(self._listen())

    async def joined(self, *, within_seconds: float = WAIT) -> None:
        async with asyncio.timeout(within_seconds):
            value = await self._open[0]
        self.id, self.address = UUID(value["id"]), value["address"]

    async def ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Have it done. Raises what was raised there; LbcError when the process ends before the answer."""
        number = next(self._numbers)
        future = self._open[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        if self._listening.done() or self.process.stdin.is_closing():
            future.set_exception(LbcError("the process has ended"))
            return await future
        self.process.stdin.write(json.dumps([number, what, arguments, options]).encode() + b"\n")
        return await future

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        value, epoch = await self.ask("execute", *arguments, **options)
        return littlebigcluster.Done(value, epoch)

    async def read(self, *arguments: Any, **options: Any) -> Any:
        return await self.ask("read", *arguments, **options)

    async def status(self) -> Any:
        """That of the node; whether it is `fed`, and how many `gets` it has sent to the store."""
        return await self.ask("status")

    async def sees(self, condition: Callable[[Any], object], *, within_seconds: float = WAIT) -> None:
        """Until its status fulfils the condition. A time in which this process or that one stands still hardly
        counts."""
        status: Any = None
        now = asyncio.get_running_loop().time
        waited, looked_at = 0.0, now()
        try:
            async with asyncio.timeout(max(within_seconds, WAIT)):
                while not condition(status := await self.status()):
                    waited, looked_at = waited + min(now() - looked_at, MOST_SECONDS), now()
                    if waited > within_seconds:
                        raise TimeoutError
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never seen; last: {status}") from None

    async def leads(self) -> None:
        await self.sees(lambda status: status["is_leader"])

    async def sees_members(self, *hosts: Host) -> None:
        """Until its list of members consists of these."""
        ids = {str(host.id) for host in hosts}
        await self.sees(lambda status: {member["id"] for member in status["members"]["members"]} == ids)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def leave(self) -> int:
        """Leave the cluster, and end; with what exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.ends()

    async def ends(self) -> int:
        async with asyncio.timeout(WAIT):
            await self._listening
            return await self.process.wait()

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            number, value, error = json.loads(line)
            future = self._open.pop(number)
            if future.cancelled():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(_error_of(*error))
        for future in self._open.values():
            if not future.done():
                future.set_exception(LbcError("the process has ended"))


class _RemoteEpoch:
    """As much of the watch on a node's epoch as is needed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def until(self, condition: Callable[[int], object], *, timeout: float) -> None:
        await self._host.sees(lambda status: condition(status["epoch"]), within_seconds=timeout)


class Hosts:
    """A cluster in a directory, of nodes that are processes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.cluster = Cluster(place)
        self.recorder = Recorder(self.cluster)
        self.all: list[Host] = []

    async def start(self, *, prefix: tuple[str, ...] = (), join: Mapping[str, Any] = LOOPBACK, **settings: Any) -> Host:
        """A node joins, in a process whose command line begins with `prefix`."""
        values = {"epoch_interval": 0, "leader_timeout": 3, "poll_interval": 0.2, "member_timeout": 2, "readers": 1}
        host = await Host.spawn(self.place, join, {**values, **settings}, prefix=prefix)
        self.all.append(host)
        await host.joined()
        return host

    async def leader(self, *, join: Mapping[str, Any] = LOOPBACK, **how: Any) -> Host:
        """A node joins and leads, and there is a table to write to."""
        host = await self.start(join={**join, "can_lead": True}, **how)
        await host.leads()
        await self.recorder.prepare(host)  # type: ignore[arg-type]
        return host

    async def forward(self, host: Host, **how: Any) -> str:
        return await self.recorder.forward(host, **how)  # type: ignore[arg-type]

    async def read(self, host: Host, **how: Any) -> Any:
        return await self.recorder.read(host, **how)  # type: ignore[arg-type]

    async def check(self, *hosts: Host) -> None:
        """The checker's verdict on the store and on these hosts."""
        await self.recorder.check(*hosts)  # type: ignore[arg-type]

    async def close(self) -> None:
        for host in self.all:
            with contextlib.suppress(ProcessLookupError):
                host.process.kill()
            await host.ends()


@contextlib.asynccontextmanager
async def hosts(place: Path) -> AsyncIterator[Hosts]:
    """A new cluster. At the end whatever still lives is killed."""
    made = Hosts(place)
    await made.cluster.init("lol")
    try:
        yield made
    finally:
        await made.close()


async def all_know(*hosts: Host) -> None:
    """Until each has all of them on its list."""
    for host in hosts:
        await host.sees_members(*hosts)


def _error_of(name: str, message: str, key: str | None) -> Exception:
    kind = getattr(littlebigcluster, name, None) or getattr(sqlite3, name, None)
    if kind is OutcomeUnknown:
        return OutcomeUnknown(message, key=key)
    return kind(message) if kind is not None else AssertionError(f"{name}: {message}")


# What follows runs in the process.


class _Obedience:
    def __init__(self, node: Node, store: Deadly, counts: Counting) -> None:
        self._node, self._store, self._counts = node, store, counts

    async def obey(self, number: int, what: str, arguments: list[Any], options: dict[str, Any]) -> None:
        try:
            value, error = await getattr(self, what)(*arguments, **options), None
        except Exception as raised:
            value, error = None, (type(raised).__name__, str(raised), getattr(raised, "key", None))
        say(json.dumps([number, value, error]))

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        done = await self._node.execute(*arguments, **options)
        return done.value.rows, done.epoch

    async def transaction(self, sql: str, parameters: list[Any], **options: Any) -> int:
        """On the leader only; answers the epoch."""
        done = await self._node.transaction(lambda db: db.execute(sql, parameters) and None, **options)
        return done.epoch

    async def step_down(self) -> None:
        await self._node.step_down()

    async def read(self, *arguments: Any, **options: Any) -> Any:
        return await self._node.read(*arguments, **options)

    async def status(self) -> Any:
        gets = self._counts.requests["get"] + self._counts.requests["get_range"]
        return {**self._node.status(), "fed": self._node._reporter.connected.value, "gets": gets}

    async def die(self, step: str) -> None:
        """At this step of the next append."""
        self._store.step, self._store.armed = step, True
        if step == "after-apply":
            die_after_apply(self._store)


def _die_with_parent() -> None:
    """A process that is stopped does not notice that nobody tells it anything any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


async def main() -> None:
    _die_with_parent()
    if level := os.environ.get("LBC_TEST_LOG"):
        logging.basicConfig(level=level, format="%(asctime)s.%(msecs)03d %(name)s: %(message)s", datefmt="%H:%M:%S")
    place, join, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    counts = Counting(open_store(place, timeout_seconds=float(sys.argv[4]), clock=Clock()))
    store = Deadly(counts, None)
    requests = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(requests), os.fdopen(0, "rb")
    )
    tasks: set[asyncio.Task[None]] = set()
    async with Cluster(store).join(settings=NodeSettings(**settings), **join) as node:
        say(json.dumps([0, {"id": str(node.id), "address": node.address}, None]))
        obedience = _Obedience(node, store, counts)
        async for line in requests:
            task = asyncio.create_task(obedience.obey(*json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())
