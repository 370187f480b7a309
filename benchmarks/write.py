"""Durable writes: latency of a lone writer, and throughput of many, on a store with a PUT of 30 ms.

Everything is a ratio within this run: against the bare PUT of an object of the same size on the same store, and
against the same transactions on one bare sqlite3 connection (autocommit, WAL, synchronous NORMAL).

    python benchmarks/write.py [--writes 300] [--put-ms 30] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import littlebigcluster as lbc
from littlebigcluster.clock import Clock
from littlebigcluster.store import Slow, open_store

SCHEMA = "CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT)"
INSERT = "INSERT INTO job(name) VALUES (?)"


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


async def bare_puts(store: Slow, count: int) -> list[float]:
    times = []
    for number in range(count):
        started = time.perf_counter()
        await store.create(f"bare/{number}", bytes(2000))
        times.append(time.perf_counter() - started)
    return times


async def lone_writes(node: lbc.Node, count: int) -> list[float]:
    times = []
    for number in range(count):
        started = time.perf_counter()
        await node.execute(INSERT, (f"job {number}",))
        times.append(time.perf_counter() - started)
    return times


async def flood(node: lbc.Node, in_flight: int, seconds: float) -> tuple[float, int]:
    """Transactions per second with so many writers that each wait for durability, and epochs used."""
    done = 0
    epochs = node.epoch.value
    started = time.perf_counter()
    until = started + seconds

    async def writer(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await node.transaction(lambda db: db.execute(INSERT, (f"job {number}",)))
            done += 1

    await asyncio.gather(*(writer(number) for number in range(in_flight)))
    return done / (time.perf_counter() - started), node.epoch.value - epochs


def bare_sqlite(count: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        db = sqlite3.connect(Path(directory) / "bare.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(SCHEMA)
        started = time.perf_counter()
        for number in range(count):
            db.execute(INSERT, (f"job {number}",))
        elapsed = time.perf_counter() - started
        db.close()
        return count / elapsed


async def main(writes: int, put_ms: float, as_json: bool) -> None:
    store = Slow(open_store("memory://", clock=Clock()), put=put_ms / 1000)
    cluster = lbc.Cluster(store)
    await cluster.init("benchmark")
    settings = lbc.NodeSettings(epoch_interval=0, write_timeout=60)
    result: dict[str, object] = {}
    async with cluster.join(can_lead=True, settings=settings) as node:
        await node.wait_until_leader(timeout=30)
        await node.execute(SCHEMA)
        await lone_writes(node, 10)
        bare: list[float] = []
        ours: list[float] = []
        for _ in range(5):  # in turns, so that a noisy neighbour hits both
            bare += await bare_puts(store, writes // 5)
            ours += await lone_writes(node, writes // 5)
        for percent in (50, 99):
            a, b = percentile(ours, percent), percentile(bare, percent)
            result[f"latency p{percent}"] = {"write_ms": a * 1e3, "bare_put_ms": b * 1e3, "ratio": a / b}
        direct = statistics.median(bare_sqlite(20_000) for _ in range(3))
        for in_flight in (256, 1024, 4096):
            rate, epochs = await flood(node, in_flight, 4.0)
            bound = in_flight / (put_ms / 1000)
            result[f"throughput {in_flight} in flight"] = {
                "transactions_per_s": rate,
                "epochs": epochs,
                "bound_by_in_flight_over_put": bound,
                "of_bound": rate / bound,
                "of_bare_sqlite": rate / direct,
            }
        result["bare_sqlite_transactions_per_s"] = direct
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name:28}", "  ".join(f"{key}={number:,.3f}" for key, number in value.items()))
        else:
            print(f"{name:28} {value:,.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=300)
    parser.add_argument("--put-ms", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    asyncio.run(main(options.writes, options.put_ms, options.json))
