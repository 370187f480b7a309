"""Switchover: from the call that hands the leadership over to the first durable write of the next leader.

    python benchmarks/switchover.py [--rounds 20] [--put-ms 30] [--get-ms 20]

Two nodes that can lead and a follower, in one process, on a store in memory that is as slow as one far away. They take
turns: in one half of the rounds the leader steps down and stays, in the other it leaves, as at SIGTERM. The next leader
is given a write as soon as it leads. Three PUTs must follow each other: the release, the claim and that write; times
are compared with the bare PUT of an object of the same size on the same store. Meanwhile the follower writes one row
after the other: the longest of these writes is the pause that an application sees.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from littlebigcluster import Cluster, Node, NodeSettings
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.store import CreateOutcome, Slow, open_store
from littlebigcluster.store.wrappers import Wrapper

PUTS_TARGET, BEYOND_TARGET_MS = 3, 100.0
SETTINGS = NodeSettings(epoch_interval=0)


class Noting(Wrapper):
    """Notes when which object was created, and of what size."""

    def __init__(self, put_seconds: float, get_seconds: float) -> None:
        super().__init__(Slow(open_store("memory://", clock=Clock()), put=put_seconds, get=get_seconds))
        self.created: list[tuple[float, str, int]] = []

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        began = time.perf_counter()
        outcome = await super().create(key, body)
        self.created.append((began, key, len(body)))
        return outcome


@dataclass
class Rounds:
    """What was measured: seconds, and PUTs of the log in each round."""

    handed_over: list[float] = field(default_factory=list)
    puts: list[int] = field(default_factory=list)
    longest_writes: list[float] = field(default_factory=list)


class Standby:
    """A node that can lead, and can leave and come back."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stack = contextlib.AsyncExitStack()
        self.node: Node

    async def join(self) -> None:
        joining = self._cluster.join(can_lead=True, address="127.0.0.1:0", settings=SETTINGS)
        self.node = await self._stack.enter_async_context(joining)

    async def leave(self) -> None:
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def writing(node: Node) -> AsyncIterator[list[float]]:
    """One write after the other through this node while the block runs; how long each took, in seconds."""
    taken: list[float] = []
    enough = False

    async def write() -> None:
        while not enough:
            began = time.perf_counter()
            await node.execute("INSERT INTO t VALUES (1)")
            taken.append(time.perf_counter() - began)

    task = asyncio.create_task(write())
    try:
        yield taken
    finally:
        enough = True  # the last one is waited for, and counts
        await task


async def hand_over(store: Noting, old: Standby, new: Standby, leaving: bool) -> tuple[float, int]:
    """Seconds from the call to the durable write of the next leader, and PUTs of the log in that time."""

    async def first_write() -> tuple[float, int]:
        await new.node.wait_until_leader(timeout=60)
        done = await new.node.execute("INSERT INTO t VALUES (0)")
        return time.perf_counter(), done.epoch

    writes = asyncio.create_task(first_write())
    await asyncio.sleep(0)
    called_at = time.perf_counter()
    await (old.leave() if leaving else old.node.step_down())
    durable_at, epoch = await writes
    last = names.wal(epoch)
    return durable_at - called_at, sum(began >= called_at and key <= last for began, key, _ in store.created)


async def settled(leader: Node, *others: Node) -> None:
    """Until all are members, fed, and at the head of the log."""
    await leader.members.until(lambda members: len(members) == len(others) + 1, timeout=60)
    await asyncio.sleep(1.2)  # reports of epochs go out about once a second
    for node in others:
        await node.epoch.until(lambda epoch: epoch >= leader.epoch.value, timeout=60)


async def measure(rounds: int, put_seconds: float, get_seconds: float) -> tuple[dict[str, Rounds], list[float]]:
    store = Noting(put_seconds, get_seconds)
    cluster = Cluster(store)
    await cluster.init("switchover")
    found = {"step_down": Rounds(), "leave": Rounds()}
    old, new = Standby(cluster), Standby(cluster)
    await old.join()
    await old.node.wait_until_leader(timeout=60)
    await old.node.execute("CREATE TABLE t(x)")
    await new.join()
    async with cluster.join(address="127.0.0.1:0", settings=SETTINGS) as follower:
        bare: list[float] = []
        for number in range(2 * rounds):
            kind = ("step_down", "leave")[number % 2]
            await settled(old.node, new.node, follower)
            seconds, puts = await hand_over(store, old, new, leaving=kind == "leave")
            found[kind].handed_over.append(seconds)
            found[kind].puts.append(puts)
            if kind == "leave":
                await old.join()
            await settled(new.node, old.node, follower)
            old, new = new, old
            async with writing(follower) as taken:
                await asyncio.sleep(0.3)
                seconds, _ = await hand_over(store, old, new, leaving=kind == "leave")
                await asyncio.sleep(0.3)
            found[kind].longest_writes.append(max(taken))
            if kind == "leave":
                await old.join()
            size = store.created[-1][2]
            for _ in range(5):
                began = time.perf_counter()
                await store.inner.create(f"bare/{number}-{len(bare)}", bytes(size))
                bare.append(time.perf_counter() - began)
            old, new = new, old
        await new.leave()
        await old.leave()
    return found, bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of each kind")
    parser.add_argument("--put-ms", type=float, default=30.0)
    parser.add_argument("--get-ms", type=float, default=20.0)
    options = parser.parse_args()
    found, bare_puts = asyncio.run(measure(options.rounds, options.put_ms / 1000, options.get_ms / 1000))
    bare = statistics.median(bare_puts)
    print(f"a PUT of {options.put_ms:g} ms (bare, p50 {bare * 1000:.1f} ms), a GET of {options.get_ms:g} ms")
    print(f"target: <= {PUTS_TARGET} PUTs + {BEYOND_TARGET_MS:g} ms")
    for kind, rounds in found.items():
        p50, longest = statistics.median(rounds.handed_over), max(rounds.handed_over)
        print(
            f"{kind:9}  p50 {p50 * 1000:6.1f} ms = {p50 / bare:4.1f} bare PUTs = {PUTS_TARGET} PUTs"
            f" + {(p50 - PUTS_TARGET * bare) * 1000:.0f} ms, max {longest * 1000:.1f} ms;"
            f" PUTs at most {max(rounds.puts)}"
        )
        pause, longest = statistics.median(rounds.longest_writes), max(rounds.longest_writes)
        print(
            f"{'':9}  a follower's longest write meanwhile: p50 {pause * 1000:6.1f} ms = {pause / bare:4.1f} bare PUTs,"
            f" max {longest * 1000:.1f} ms"
        )


if __name__ == "__main__":
    main()
