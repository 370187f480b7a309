"""Replication lag: from a commit that is durable on the leader to a read that sees it on the followers.

    python benchmarks/lag.py [--followers 3] [--writes 300] [--rate 20]

Leader and followers are separate processes of this machine, on a directory as store; they share its monotonic clock.
Durable is when the store has answered the create of the epoch; visible is when the follower's `epoch` has advanced,
after which every read there sees the write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from littlebigcluster import Cluster, NodeSettings
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.store import CreateOutcome, open_store
from littlebigcluster.store.wrappers import Wrapper

P50_TARGET_MS, P99_TARGET_MS = 5.0, 25.0


class Noting(Wrapper):
    """Notes when the store has answered a create."""

    def __init__(self, place: str) -> None:
        super().__init__(open_store(place, clock=Clock()))
        self.answered: dict[str, float] = {}

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        outcome = await super().create(key, body)
        self.answered[key] = time.monotonic()
        return outcome


async def follow(place: str) -> None:
    """In a process of its own: print when which epoch is visible, until told to end."""
    async with Cluster(place).join(address="127.0.0.1:0") as node:
        end = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        seen: dict[int, float] = {}

        async def watch() -> None:
            before = node.epoch.value
            async for epoch in node.epoch:
                now = time.monotonic()
                seen.update(dict.fromkeys(range(before + 1, epoch + 1), now))
                before = epoch

        watching = asyncio.create_task(watch())
        print("ready", flush=True)
        await end
        watching.cancel()
        print(json.dumps(seen), flush=True)


async def lead(place: str, followers: int, writes: int, rate: float) -> list[float]:
    """The lags in seconds, one for each write and follower."""
    store = Noting(place)
    cluster = Cluster(store)
    await cluster.init("lag")
    async with cluster.join(can_lead=True, address="127.0.0.1:0", settings=NodeSettings(epoch_interval=0)) as node:
        await node.wait_until_leader()
        await node.execute("CREATE TABLE t(x)")
        command = (sys.executable, __file__, "--follow", place)
        pipe = asyncio.subprocess.PIPE
        children = [
            await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 24)
            for _ in range(followers)
        ]
        try:
            for child in children:
                assert child.stdout is not None
                await child.stdout.readline()
            await node.members.until(lambda members: len(members) == followers + 1, timeout=30)
            await asyncio.sleep(1)
            epochs = []
            for number in range(writes):
                done = await node.execute("INSERT INTO t VALUES (?)", (number,))
                epochs.append(done.epoch)
                await asyncio.sleep(1 / rate)
            await asyncio.sleep(1)
            lags = []
            for child in children:
                out, _ = await child.communicate(b"end\n")
                seen = {int(epoch): at for epoch, at in json.loads(out).items()}
                lags += [seen[epoch] - store.answered[names.wal(epoch)] for epoch in epochs]
            return lags
        finally:
            for child in children:
                if child.returncode is None:
                    child.kill()
                    await child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, default=3)
    parser.add_argument("--writes", type=int, default=300)
    parser.add_argument("--rate", type=float, default=20.0, help="writes a second")
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        asyncio.run(follow(options.follow))
        return
    with tempfile.TemporaryDirectory() as directory:
        place = str(Path(directory) / "cluster")
        lags = asyncio.run(lead(place, options.followers, options.writes, options.rate))
    cuts = statistics.quantiles([lag * 1000 for lag in lags], n=100)
    print(
        f"{options.followers} followers in processes of their own, {options.writes} writes, {options.rate:g} a second"
    )
    print(f"lag p50 {cuts[49]:7.2f} ms   target <= {P50_TARGET_MS:g} ms")
    print(f"lag p99 {cuts[98]:7.2f} ms   target <= {P99_TARGET_MS:g} ms")
    print(f"lag max {max(lags) * 1000:7.2f} ms")


if __name__ == "__main__":
    main()
