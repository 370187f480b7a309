"""Failover: from what ends a leadership to the first durable write of the next leader, by default settings.

    python benchmarks/failover.py [--runs 30] [--kinds kill,stop,cut,term,step-down] [--put-ms 30] [--get-ms 20]

Three processes: a leader, a standby, and a follower through which a client writes one row after the other. The store
is a directory that is as slow as one far away. In each run the leader is ended, and comes back as a standby for the
next one. `kill` is SIGKILL, `stop` SIGSTOP (and SIGCONT after the run), `cut` pulls the cable of the leader's host, a
network namespace (it still reaches the store; needs root and `ip`), `term` is SIGTERM, `step-down` a call. The new
leader writes a row as soon as it leads; times are from the event until that write is durable, and until the client has
the answer to a write that the new leader made. They are compared with the bare PUT of an object of 1 KiB on that store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from littlebigcluster import Cluster, LbcError, Node
from littlebigcluster.clock import Clock
from littlebigcluster.store import Slow, Store, open_store

KINDS = ("kill", "stop", "cut", "term", "step-down")
TARGET_SECONDS = 2.5
PATIENCE_SECONDS = 60.0
WRITE_PAUSE_SECONDS = 0.5
HOSTS = 3


def slow_store(place: str, put_ms: float, get_ms: float) -> Store:
    return Slow(open_store(place, clock=Clock()), put=put_ms / 1000, get=get_ms / 1000)


# -- in the process of a node ------------------------------------------------------------------------------------------


def say(**message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


async def run_node(place: str, put_ms: float, get_ms: float, can_lead: bool, address: str) -> None:
    """A node that tells what it sees, with moments of the clock that all processes of the machine share."""
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set_result, None)
    cluster = Cluster(slow_store(place, put_ms, get_ms))
    async with cluster.join(can_lead=can_lead, address=address) as node:
        say(joined=str(node.id))
        tasks = [asyncio.create_task(run(node)) for run in (report, obey, lead if can_lead else write)]
        await ended
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def report(node: Node) -> None:
    last: dict[str, Any] = {}
    while True:
        leader = node.leader.value
        state = {
            "leads": node.is_leader,
            "leader": str(leader.uuid) if leader else None,
            "members": len(node.members.value),
            "fed": node.is_leader or node._reporter.connected.value,
        }
        if state != last:
            last = state
            say(state=state)
        await asyncio.sleep(0.05)


async def obey(node: Node) -> None:
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(0, "rb"))
    async for _ in lines:
        with contextlib.suppress(LbcError):
            await node.step_down()


async def lead(node: Node) -> None:
    """One write as soon as it leads, each time."""
    while True:
        await node.wait_until_leader()
        with contextlib.suppress(LbcError):
            done = await node.execute("INSERT INTO t VALUES ('leader')")
            say(durable=time.monotonic(), epoch=done.epoch)
        await node._leads.until(lambda leads: not leads)


async def write(node: Node) -> None:
    """The client: one write after the other, through this node."""
    while True:
        with contextlib.suppress(LbcError):
            done = await node.execute("INSERT INTO t VALUES ('client')")
            say(answered=time.monotonic(), epoch=done.epoch)
        await asyncio.sleep(WRITE_PAUSE_SECONDS)


# -- outside -----------------------------------------------------------------------------------------------------------


class Wire:
    """Hosts with a cable each, from a bridge in a network namespace of its own."""

    def __init__(self) -> None:
        self._name = f"lbc-failover-{os.getpid()}"

    def build(self) -> None:
        """Raises OSError, CalledProcessError."""
        switch = f"{self._name}-0"
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for host in range(1, HOSTS + 1):
            name, port = f"{self._name}-{host}", f"port{host}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", "eth0", "up")

    def address(self, host: int) -> str:
        return f"10.213.78.{host}"

    def inside(self, host: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", f"{self._name}-{host}")

    def plug(self, host: int, state: str) -> None:
        _run("ip", "-n", f"{self._name}-0", "link", "set", f"port{host}", state)

    def remove(self) -> None:
        for host in range(HOSTS + 1):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _run("ip", "netns", "delete", f"{self._name}-{host}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)


@dataclass
class Process:
    """A node, from outside."""

    host: int
    process: asyncio.subprocess.Process
    id: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    moments: list[tuple[float, int]] = field(default_factory=list)
    """Its own writes that are durable: when, and in which epoch."""

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            match json.loads(line):
                case {"joined": id}:
                    self.id = id
                case {"state": state}:
                    self.state = state
                case {"durable": at, "epoch": epoch} | {"answered": at, "epoch": epoch}:
                    self.moments.append((at, epoch))

    def first_after(self, at: float, epoch: int = 0) -> tuple[float, int] | None:
        return next((moment for moment in self.moments if moment[0] > at and moment[1] >= epoch), None)


class Trio:
    """A leader, a standby and a follower, in this order on the hosts 1 to 3 at the beginning."""

    def __init__(self, place: str, options: argparse.Namespace, wire: Wire | None) -> None:
        self._place, self._options, self._wire = place, options, wire
        self._listening: list[asyncio.Task[None]] = []
        self.nodes: dict[int, Process] = {}

    async def start(self, host: int) -> None:
        wire, options = self._wire, self._options
        address = f"{wire.address(host)}:0" if wire else "127.0.0.1:0"
        process = await asyncio.create_subprocess_exec(
            *(wire.inside(host) if wire else ()), sys.executable, __file__, "--node", self._place, address,
            "--put-ms", str(options.put_ms), "--get-ms", str(options.get_ms), *(["--leads"] if host < HOSTS else []),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        node = self.nodes[host] = Process(host, process)
        self._listening.append(asyncio.create_task(node.listen()))

    @property
    def leader(self) -> Process | None:
        return next((node for node in self.nodes.values() if node.state.get("leads")), None)

    def settled(self) -> bool:
        """All are members of all, and fed by the same leader, and there is no other."""
        states = [node.state for node in self.nodes.values()]
        leads = sum(bool(state.get("leads")) for state in states)
        alike = len({state.get("leader") for state in states}) == 1
        return leads == 1 and alike and all(state["members"] == HOSTS and state["fed"] for state in states)

    async def run(self, kind: str) -> tuple[float, float]:
        """End the leadership; seconds until the new leader has written, and until the client has its answer."""
        await until(self.settled, "all are together")
        await asyncio.sleep(1.0 + self._options.clock.random())  # at any moment of the half second between heartbeats
        leader = self.leader
        assert leader is not None
        other, client = self.nodes[HOSTS - leader.host], self.nodes[HOSTS]
        began = time.monotonic()
        self._end(kind, leader)
        durable_at, epoch = await until(lambda: other.first_after(began), f"{kind}: the next leader writes")
        answered_at, _ = await until(lambda: client.first_after(began, epoch - 1), f"{kind}: the client writes")
        await self._bring_back(kind, leader)
        return durable_at - began, answered_at - began

    def _end(self, kind: str, leader: Process) -> None:
        if kind == "step-down":
            assert leader.process.stdin is not None
            leader.process.stdin.write(b"step down\n")
        elif kind == "cut":
            assert self._wire is not None
            self._wire.plug(leader.host, "down")
        else:
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[kind]
            leader.process.send_signal(number)

    async def _bring_back(self, kind: str, former: Process) -> None:
        if kind == "stop":
            former.process.send_signal(signal.SIGCONT)
        elif kind == "cut":
            assert self._wire is not None
            self._wire.plug(former.host, "up")
        elif kind in ("kill", "term"):
            await former.process.wait()
            await self.start(former.host)

    async def close(self) -> None:
        for node in self.nodes.values():
            with contextlib.suppress(ProcessLookupError):
                node.process.kill()
            await node.process.wait()
        await asyncio.gather(*self._listening)


async def until(condition: Callable[[], Any], what: str) -> Any:
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            while not (found := condition()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            print(f"waited in vain until: {what}", file=sys.stderr)
            raise
    return found


@contextlib.asynccontextmanager
async def trio(options: argparse.Namespace, wire: Wire | None) -> AsyncIterator[Trio]:
    place = tempfile.mkdtemp(prefix="lbc-failover-")
    made = Trio(place, options, wire)
    try:
        cluster = Cluster(place)
        await cluster.init("failover")
        async with cluster.join(can_lead=True, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=PATIENCE_SECONDS)
            await node.execute("CREATE TABLE t(who)")
        await made.start(1)
        await until(lambda: made.leader, "somebody leads")
        await made.start(2)
        await made.start(3)
        yield made
    finally:
        await made.close()
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


async def bare_puts(options: argparse.Namespace) -> float:
    """The median PUT, in seconds."""
    with tempfile.TemporaryDirectory(prefix="lbc-failover-") as place:
        store, taken = slow_store(place, options.put_ms, options.get_ms), []
        for number in range(20):
            began = time.perf_counter()
            await store.create(f"bare/{number}", bytes(1024))
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@contextlib.contextmanager
def wired() -> Iterator[Wire]:
    wire = Wire()
    try:
        wire.build()
        yield wire
    finally:
        wire.remove()


async def measure(kind: str, options: argparse.Namespace) -> None:
    with wired() if kind == "cut" else contextlib.nullcontext() as wire:
        async with trio(options, wire) as three:
            runs = [await three.run(kind) for _ in range(options.runs)]
    bare = await bare_puts(options)
    print(f"{kind}: {len(runs)} runs, bare PUT p50 {bare * 1000:.0f} ms")
    for who, taken in zip(("new leader", "client"), zip(*runs, strict=True), strict=True):
        p50, p95, worst = statistics.median(taken), sorted(taken)[int(len(taken) * 0.95)], max(taken)
        print(
            f"  {who:10}  p50 {p50:5.2f} s ({p50 / bare:5.1f} bare PUTs), p95 {p95:5.2f} s, max {worst:5.2f} s",
            flush=True,
        )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--put-ms", type=float, default=30.0)
    parser.add_argument("--get-ms", type=float, default=20.0)
    parser.add_argument("--node", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--leads", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        await run_node(options.node[0], options.put_ms, options.get_ms, options.leads, options.node[1])
        return
    options.clock = Clock()
    print(f"a PUT of {options.put_ms:g} ms, a GET of {options.get_ms:g} ms, default settings")
    print(f"target: kill p50 <= {TARGET_SECONDS:g} s to the first durable write of the new leader")
    for kind in options.kinds.split(","):
        try:
            await measure(kind, options)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            print(f"{kind}: NOT MEASURED, network namespaces are needed: {error}")


if __name__ == "__main__":
    asyncio.run(main())
