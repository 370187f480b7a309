"""Many whole nodes join one leader at once, and leave it at once, while it goes on writing.

    python benchmarks/join.py [--nodes 200] [--processes 2]

The leader is in this process, the others in processes of their own, each node with a replica of its own; the store is
a directory. Linux only: threads and descriptors are counted in /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from littlebigcluster import Cluster, Node, NodeSettings
from littlebigcluster.cluster import frames

WRITES_PER_SECOND = 2.0
"""Each of them is applied by each node, on the same few cores."""


async def joined(stack: contextlib.AsyncExitStack, place: str) -> Node:
    return await stack.enter_async_context(Cluster(place).join(address="127.0.0.1:0"))


async def take_part(place: str, count: int) -> None:
    """In a process of its own: join, say when all are at the head, leave when standard input ends."""
    stacks = [contextlib.AsyncExitStack() for _ in range(count)]
    nodes = await asyncio.gather(*(joined(stack, place) for stack in stacks))
    print("joined", flush=True)
    epoch, members = map(int, (await asyncio.to_thread(sys.stdin.readline)).split())
    for node in nodes:
        await node.epoch.until(lambda now: now >= epoch, timeout=120)
        await node.members.until(lambda all: len(all) == members, timeout=120)
    print("there", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(stack.aclose() for stack in stacks))


@dataclass
class Phase:
    """What was measured while something went on."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of the leader's writes, seconds."""
    lists: int = 0
    list_bytes: int = 0
    """Lists of members, to all followers together."""


class Leader:
    """The leader, which writes all the time."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.phase = Phase()
        assert node._presence is not None
        feed = node._presence._feed
        publish = feed.publish

        def counted(frame: bytes) -> None:
            if frame[:1] == frames.MEMBERS:
                self.phase.lists += 1
                self.phase.list_bytes += len(frame) * len(feed)
            publish(frame)

        feed.publish = counted  # type: ignore[method-assign]

    async def write(self) -> None:
        while True:
            start = time.monotonic()
            await self.node.execute("INSERT INTO t VALUES (1)")
            self.phase.latencies.append(time.monotonic() - start)
            await asyncio.sleep(1 / WRITES_PER_SECOND)

    @contextlib.asynccontextmanager
    async def during(self) -> AsyncIterator[Phase]:
        phase = self.phase = Phase()
        start = time.monotonic()
        yield phase
        phase.seconds = time.monotonic() - start


async def measure(place: str, count: int, processes: int) -> None:
    cluster = Cluster(place)
    await cluster.init("join")
    settings = NodeSettings(epoch_interval=0)
    async with cluster.join(can_lead=True, address="127.0.0.1:0", settings=settings) as node:
        await node.wait_until_leader()
        await node.execute("CREATE TABLE t(x)")
        leader = Leader(node)
        writing = asyncio.create_task(leader.write())
        async with leader.during() as alone:
            await asyncio.sleep(3)
        pipe = asyncio.subprocess.PIPE
        async with leader.during() as joining:
            shares = [count // processes + (number < count % processes) for number in range(processes)]
            children = [
                await asyncio.create_subprocess_exec(
                    sys.executable, __file__, "--take-part", place, str(share), stdin=pipe, stdout=pipe
                )
                for share in shares
            ]
            try:
                for child in children:
                    await said(child, b"joined\n")
                all_joined = time.monotonic()
                await node.members.until(lambda members: len(members) == count + 1, timeout=60)
                as_members = time.monotonic()
                for child in children:
                    assert child.stdin is not None
                    child.stdin.write(b"%d %d\n" % (node.epoch.value, count + 1))
                for child in children:
                    await said(child, b"there\n")
                at_head = time.monotonic()
            except BaseException:
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
                raise
        async with leader.during() as together:
            await asyncio.sleep(5)
        threads, descriptors = (sum(in_proc(child.pid, what) for child in children) for what in ("task", "fd"))
        own = in_proc("self", "task"), in_proc("self", "fd")
        async with leader.during() as leaving:
            for child in children:
                assert child.stdin is not None
                child.stdin.close()
            await node.members.until(lambda members: len(members) == 1, timeout=60)
            gone = time.monotonic()
            for child in children:
                assert await child.wait() == 0
        writing.cancel()
        await asyncio.wait([writing])
    began = at_head - joining.seconds
    print(f"{count} nodes in {processes} processes, the leader in another one")
    print(f"all have joined after        {all_joined - began:6.1f} s")
    print(f"all are members after        {as_members - began:6.1f} s")
    print(f"all are at the head after    {joining.seconds:6.1f} s")
    print(f"gone from the list after     {gone - (at_head + together.seconds):6.1f} s")
    print(f"threads of a node            {threads / count:6.1f}   (the leader's process: {own[0]})")
    print(f"descriptors of a node        {descriptors / count:6.1f}   (the leader's process: {own[1]})")
    print("writes of the leader, ms          p50     max | lists of members sent, MB of them to all")
    for name, phase in (("alone", alone), ("joining", joining), ("together", together), ("leaving", leaving)):
        times = sorted(phase.latencies)
        print(
            f"  {name:28} {times[len(times) // 2] * 1e3:7.1f} {times[-1] * 1e3:7.1f} | "
            f"{phase.lists:5} {phase.list_bytes / 1e6:9.1f}"
        )


async def said(child: asyncio.subprocess.Process, word: bytes) -> None:
    assert child.stdout is not None
    async with asyncio.timeout(180):
        line = await child.stdout.readline()
    if line != word:
        raise RuntimeError(f"a process with nodes said {line!r}, not {word!r}")


def in_proc(pid: int | str, what: str) -> int:
    return len(list(Path(f"/proc/{pid}/{what}").iterdir()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--take-part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take_part:
        place, count = options.take_part
        asyncio.run(take_part(place, int(count)))
        return
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(str(Path(directory) / "cluster"), options.nodes, options.processes))


if __name__ == "__main__":
    main()
