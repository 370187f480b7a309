"""A leader that is offered more writes than it manages: what is admitted, what is refused, how long that takes, what it
costs in memory; and whether it goes on leading and feeding its follower.

Each transaction takes 2 ms of the writer's thread, so the capacity is far below what can be offered in one process.
Writes come in an open loop: at a fixed rate, whatever becomes of those before. A tenth of them comes from a follower.
All ratios are within this run, against what the same leader manages with as many writers as may wait.

    python benchmarks/overload.py [--seconds 10] [--max-queued 500] [--put-ms 30] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import time
from pathlib import Path

import littlebigcluster as lbc
from littlebigcluster.clock import Clock
from littlebigcluster.store import Slow, open_store

TRANSACTION_SECONDS = 0.002
FACTORS = (1, 3, 10)
FORWARDED = 10
"""Every so manieth write comes from the follower."""


def insert(db: sqlite3.Connection, name: str) -> None:
    time.sleep(TRANSACTION_SECONDS)
    db.execute("INSERT INTO job(name) VALUES (?)", (name,))


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))] if values else float("nan")


async def capacity(node: lbc.Node, writers: int, seconds: float) -> float:
    """Transactions per second of so many writers that each wait for durability."""
    done = 0
    started = time.perf_counter()

    async def write() -> None:
        nonlocal done
        while time.perf_counter() < started + seconds:
            await node.transaction(lambda db: insert(db, "capacity"))
            done += 1

    await asyncio.gather(*(write() for _ in range(writers)))
    return done / (time.perf_counter() - started)


async def offer(leader: lbc.Node, follower: lbc.Node, rate: float, seconds: float) -> dict[str, float]:
    """So many writes a second, for so long; what became of them."""
    admitted: list[float] = []
    refused: list[float] = []
    other = 0
    resident = resident_mib()

    async def write(number: int) -> None:
        nonlocal other
        started = time.perf_counter()
        try:
            if number % FORWARDED:
                await leader.transaction(lambda db: insert(db, "offered"))
            else:
                await follower.call("insert", name="offered")
            admitted.append(time.perf_counter() - started)
        except lbc.Overloaded:
            refused.append(time.perf_counter() - started)
        except lbc.LbcError:
            other += 1

    started, number = time.perf_counter(), 0
    tasks: set[asyncio.Task[None]] = set()
    while (elapsed := time.perf_counter() - started) < seconds:
        while number < elapsed * rate:
            task = asyncio.create_task(write(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        resident = max(resident, resident_mib())
        await asyncio.sleep(0.005)
    if tasks:
        await asyncio.wait(tasks)
    elapsed = time.perf_counter() - started
    return {
        "offered_per_s": number / seconds,
        "admitted_per_s": len(admitted) / elapsed,
        "refused_per_s": len(refused) / seconds,
        "failed": other,
        "admitted_p50_ms": percentile(admitted, 50) * 1e3,
        "admitted_p99_ms": percentile(admitted, 99) * 1e3,
        "refused_p99_ms": percentile(refused, 99) * 1e3,
        "resident_mib": resident,
    }


async def main(seconds: float, max_queued: int, put_ms: float, as_json: bool) -> None:
    cluster = lbc.Cluster(Slow(open_store("memory://", clock=Clock()), put=put_ms / 1000))
    cluster.procedure(insert)
    await cluster.init("benchmark")
    settings = lbc.NodeSettings(epoch_interval=0, leader_timeout=3, max_queued_writes=max_queued)
    async with cluster.join(can_lead=True, settings=settings) as leader:
        await leader.wait_until_leader(timeout=30)
        await leader.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT)")
        async with cluster.join(can_lead=True, settings=settings) as follower:
            manages = await capacity(leader, max_queued, seconds / 2)
            result: dict[str, dict[str, float]] = {
                "capacity": {"admitted_per_s": manages, "resident_mib": resident_mib()}
            }
            before = result["capacity"]["resident_mib"]
            for factor in FACTORS:
                found = await offer(leader, follower, manages * factor, seconds)
                found["admitted_of_capacity"] = found["admitted_per_s"] / manages
                found["p99_of_full_queue"] = found["admitted_p99_ms"] / 1e3 / (max_queued / manages)
                found["resident_of_before"] = found["resident_mib"] / before
                result[f"{factor} x capacity"] = found
            result["leadership"] = {
                "term": leader.term,
                "leads": leader.is_leader,
                "standby_leads": follower.is_leader,
            }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, values in result.items():
        print(f"{name:14}", "  ".join(f"{key}={value:,.2f}" for key, value in values.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--max-queued", type=int, default=500)
    parser.add_argument("--put-ms", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    asyncio.run(main(options.seconds, options.max_queued, options.put_ms, options.json))
