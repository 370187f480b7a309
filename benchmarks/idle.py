"""What a cluster that does nothing asks of the store, and what that costs at S3 Standard's list prices.

    python benchmarks/idle.py [--nodes 3] [--seconds 60]

All nodes live in this process, with default settings, on a store in memory; every request is counted.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack

from littlebigcluster import Cluster
from littlebigcluster.clock import Clock
from littlebigcluster.store import open_store
from littlebigcluster.store.wrappers import Counting

DOLLARS_PER_REQUEST = {"PUT": 0.005 / 1000, "LIST": 0.005 / 1000, "GET": 0.0004 / 1000, "DELETE": 0.0}
KINDS = {
    "get": "GET",
    "get_range": "GET",
    "create": "PUT",
    "put": "PUT",
    "put_stream": "PUT",
    "list": "LIST",
    "delete": "DELETE",
}
SECONDS_PER_MONTH = 30 * 86400
TARGETS = {"PUT": 0.16, "GET": 0.35, "LIST": 0.0}
"""Requests per second of three nodes."""
SETTLING_SECONDS = 20.0


async def measure(nodes: int, seconds: float) -> tuple[dict[str, float], int]:
    """Requests per second by kind, and how many epochs were added."""
    store = Counting(open_store("memory://", clock=Clock()))
    await Cluster(store).init("idle")
    async with AsyncExitStack() as stack:
        first, *_ = [
            await stack.enter_async_context(Cluster(store).join(can_lead=number < 2, address="127.0.0.1:0"))
            for number in range(nodes)
        ]
        await first.wait_until_leader(timeout=10)
        await first.members.until(lambda members: len(members) == nodes, timeout=10)
        await asyncio.sleep(SETTLING_SECONDS)
        store.reset()
        epoch = first.epoch.value
        await asyncio.sleep(seconds)
        counts = dict.fromkeys(DOLLARS_PER_REQUEST, 0)
        for operation, count in store.requests.items():
            counts[KINDS[operation]] += count
        return {kind: count / seconds for kind, count in counts.items()}, first.epoch.value - epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    rates, epochs = asyncio.run(measure(options.nodes, options.seconds))
    print(f"{options.nodes} idle nodes, {options.seconds:g} s")
    total = 0.0
    for kind, rate in rates.items():
        dollars = rate * SECONDS_PER_MONTH * DOLLARS_PER_REQUEST[kind]
        total += dollars
        target = f"   target <= {TARGETS[kind]:g}/s" if kind in TARGETS and options.nodes == 3 else ""
        print(f"{kind:6} {rate:6.3f}/s   ${dollars:5.2f} a month{target}")
    print(f"total            ${total:5.2f} a month; the log grew by {epochs} epochs")


if __name__ == "__main__":
    main()
