"""The feed of one leader to many followers: how soon an epoch reaches all of them, and what that takes of memory.

    python benchmarks/feed.py [--followers 500] [--frozen 50] [--epochs 20]

The leader is a whole node, in this process, on a directory as store. The followers are simulated, in processes of
their own: each has a certificate, an HTTP/2 connection and a feed of its own, and reports like a node, but holds no
database. Durable is when the store has answered the create of the epoch; all processes share the machine's clock.

Then some of the followers are frozen (SIGSTOP) while large epochs go out, and wake again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from littlebigcluster import Cluster, Node, NodeSettings
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import frames
from littlebigcluster.cluster.certificates import Authorities, load_authorities
from littlebigcluster.cluster.fed import HEARTBEAT_SECONDS
from littlebigcluster.cluster.membership import Member
from littlebigcluster.epochs import codec, names
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client
from littlebigcluster.store import CreateOutcome, open_store
from littlebigcluster.store.wrappers import Wrapper

ALL_HAVE_IT_TARGET_MS, MEMORY_TARGET_MB = 250.0, 300.0
LARGE_BYTES = 500_000
BURST = 30
"""So many of them are written in a row while some followers are frozen: more than may wait for one of them."""
DROPPED_SECONDS = 12.0
"""So long, at most, until one that does not read is dropped."""
AT_ONCE = 50
"""So many followers connect at a time."""


class Noting(Wrapper):
    """Notes when the store has answered a create."""

    def __init__(self, place: str) -> None:
        super().__init__(open_store(place, clock=Clock()))
        self.answered: dict[str, float] = {}

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        outcome = await super().create(key, body)
        self.answered[key] = time.monotonic()
        return outcome


# -- the followers, in a process of their own ------------------------------------------------------------------------


class Follower:
    """What a node is to the leader's feed."""

    def __init__(self, leader: str, member: Member, client: Client) -> None:
        self.member = member
        self.had: dict[int, float] = {}
        """When it had which epoch."""
        self.fed = asyncio.Event()
        self._leader, self._client = leader, client
        self._advanced = asyncio.Event()

    async def run(self, gate: asyncio.Semaphore) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report())
            while True:
                with contextlib.suppress(PeerUnavailable, RequestTimeout):
                    await self._read(gate)
                self.fed.clear()
                await asyncio.sleep(0.5)

    def _body(self) -> bytes:
        return json.dumps({"member": self.member.to_json(), "session": "benchmark"}).encode()

    async def _read(self, gate: asyncio.Semaphore) -> None:
        unpacker = frames.Unpacker()
        async with contextlib.AsyncExitStack() as stack:
            async with gate:
                stream = await stack.enter_async_context(
                    self._client.stream(
                        "POST", "/.lbc/feed", headers={"x-lbc-to": self._leader}, body=self._body(),
                        timeout=30.0, heartbeat=4 * HEARTBEAT_SECONDS,
                    )
                )  # fmt: skip
            if stream.status != 200:
                raise PeerUnavailable(f"refused: {stream.status}", sent=True)
            self.fed.set()
            async for piece in stream:
                now = time.monotonic()
                for kind, payload in unpacker.feed(piece):
                    if kind == frames.EPOCH:
                        self._has(codec.decode_header(payload, name="an epoch")[0].epoch, now)
                    elif kind == frames.NAMED:
                        self._has(int(payload), now)

    def _has(self, epoch: int, now: float) -> None:
        self.had[epoch] = now
        self.member = replace(self.member, epoch=epoch)
        self._advanced.set()

    async def _report(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._advanced.wait()
            self._advanced.clear()
            if self.fed.is_set():
                with contextlib.suppress(PeerUnavailable, RequestTimeout):
                    await self._client.request("POST", "/.lbc/report", body=self._body(), timeout=5.0)
            await asyncio.sleep(1.0)


def simulated(authorities: Authorities, leader: str, address: str, clock: Clock) -> Follower:
    me = clock.uuid7()
    tls = authorities.mint(str(me), ["127.0.0.1"], clock)
    return Follower(leader, Member(me, "127.0.0.1:1"), Client(f"https://{address}", tls=tls, clock=clock))


async def follow(place: str, leader: str, address: str, count: int) -> None:
    """Answer each epoch on standard input with the times at which it was there, when all have it."""
    clock = Clock()
    authorities = await load_authorities(open_store(place, clock=clock))
    followers = [simulated(authorities, leader, address, clock) for _ in range(count)]
    gate = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.create_task(follower.run(gate)) for follower in followers]
    for follower in followers:
        await follower.fed.wait()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        epoch = int(line)
        while not all(epoch in follower.had for follower in followers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        print(json.dumps([follower.had[epoch] for follower in followers]), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Followers:
    """The process, as the leader's sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def had(self, epoch: int) -> list[float]:
        """When each had it, once all do. Raises TimeoutError."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % epoch)
        times: list[float] = json.loads(await self._line())
        return times

    async def ready(self) -> None:
        assert await self._line() == b"ready\n"

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        async with asyncio.timeout(120):
            return await self.process.stdout.readline()


@contextlib.asynccontextmanager
async def followers_of(node: Node, place: str, count: int) -> AsyncIterator[Followers]:
    command = (sys.executable, __file__, "--follow", place, str(node.id), node.address, str(count))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 24)
    try:
        yield Followers(process)
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# -- the leader ------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Seconds and bytes."""

    connecting: float
    small: list[float]
    """From durable to the last follower, for each small epoch."""
    memory_small: int
    large: list[float]
    memory_large: int
    memory_frozen: int
    dropped: int
    awake_again: float


def peak_resident_bytes(*, start_anew: bool = False) -> int:
    """The most memory this process has had since the last call that starts anew. Linux only."""
    status = Path("/proc/self/status").read_text()
    [peak] = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    if start_anew:
        Path("/proc/self/clear_refs").write_text("5")
    return int(peak) * 1024


async def measure(place: str, *, followers: int, frozen: int, epochs: int) -> Measured:
    store = Noting(place)
    cluster = Cluster(store)
    await cluster.init("feed")
    settings = NodeSettings(epoch_interval=0)
    async with cluster.join(can_lead=True, address="127.0.0.1:0", settings=settings) as node:
        await node.wait_until_leader()
        await node.execute("CREATE TABLE t(x)")
        async with followers_of(node, place, followers - frozen) as many, followers_of(node, place, frozen) as few:
            start = time.monotonic()
            await many.ready()
            await few.ready()
            await node.members.until(lambda members: len(members) == followers + 1, timeout=30)
            connecting = time.monotonic() - start

            async def write(bytes_: int) -> float:
                epoch = (await node.execute("INSERT INTO t VALUES (randomblob(?))", (bytes_,))).epoch
                last = max([*await many.had(epoch), *await few.had(epoch)])
                return last - store.answered[names.wal(epoch)]

            await asyncio.sleep(3)
            small = []
            for _ in range(epochs):
                small.append(await write(10))
                await asyncio.sleep(0.3)
            memory_small = peak_resident_bytes(start_anew=True)
            large = [await write(LARGE_BYTES) for _ in range(5)]
            memory_large = peak_resident_bytes(start_anew=True)
            few.process.send_signal(signal.SIGSTOP)
            for _ in range(BURST):
                done = await node.execute("INSERT INTO t VALUES (randomblob(?))", (LARGE_BYTES,))
            await many.had(done.epoch)
            await asyncio.sleep(DROPPED_SECONDS)
            memory_frozen = peak_resident_bytes(start_anew=True)
            assert node._presence is not None
            dropped = followers - len(node._presence._feed)
            few.process.send_signal(signal.SIGCONT)
            start = time.monotonic()
            done = await node.execute("INSERT INTO t VALUES (1)")
            await few.had(done.epoch)
            awake_again = time.monotonic() - start
            return Measured(connecting, small, memory_small, large, memory_large, memory_frozen, dropped, awake_again)


def print_all(measured: Measured, followers: int, frozen: int) -> None:
    def row(what: str, value: float, unit: str, target: float | None = None) -> None:
        print(f"{what:44} {value:9.1f} {unit}" + ("" if target is None else f"   target <= {target:g} {unit}"))

    print(f"{followers} followers on one leader's feed, {len(measured.small)} small epochs")
    row("all connected, and members, after", measured.connecting, "s")
    row("durable to the last follower, p50", statistics.median(measured.small) * 1e3, "ms", ALL_HAVE_IT_TARGET_MS)
    row("durable to the last follower, max", max(measured.small) * 1e3, "ms", ALL_HAVE_IT_TARGET_MS)
    row("memory of the leader, peak", measured.memory_small / 1e6, "MB", MEMORY_TARGET_MB)
    row(
        f"an epoch of {LARGE_BYTES // 1000} kB, to the last follower, p50",
        statistics.median(measured.large) * 1e3,
        "ms",
    )
    row("memory of the leader meanwhile, peak", measured.memory_large / 1e6, "MB", MEMORY_TARGET_MB)
    row(f"memory while {frozen} read nothing, peak", measured.memory_frozen / 1e6, "MB", MEMORY_TARGET_MB)
    print(f"{'of these, dropped':44} {measured.dropped:9}")
    row("the frozen ones are fed again after", measured.awake_again, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, default=500)
    parser.add_argument("--frozen", type=int, default=50, help="so many of them read nothing for a while")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--follow", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        place, leader, address, count = options.follow
        asyncio.run(follow(place, leader, address, int(count)))
        return
    with tempfile.TemporaryDirectory() as directory:
        place = str(Path(directory) / "cluster")
        measured = asyncio.run(
            measure(place, followers=options.followers, frozen=options.frozen, epochs=options.epochs)
        )
    print_all(measured, options.followers, options.frozen)


if __name__ == "__main__":
    main()
