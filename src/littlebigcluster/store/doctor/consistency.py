"""Trials: creates, and reads by everybody just after a write."""

from __future__ import annotations

import asyncio

from littlebigcluster.store.base import Created, Store
from littlebigcluster.store.probe import Broken, race

from .bench import Bench, all_of, created

MIB = 1 << 20


async def creates(bench: Bench) -> str:
    sizes = (0, 1, 1000)
    for size in sizes:
        key, body = f"create/{size}", bench.clock.token(size)
        if any(found is not None for found in await bench.all_get(key)):
            raise Broken(f"{key} was never written, and can be read")
        await created(bench, key, body)
        if set(await bench.all_get(key)) != {body}:
            raise Broken(f"{key} does not read as it was created")
    return f"{len(sizes)} objects created, and read by {len(bench.clients)} clients"


async def refused_creates(bench: Bench) -> str:
    key, body = "refused", b"the first"
    await created(bench, key, body)
    outcomes = [
        await client.create(key, other)
        for client in bench.clients
        for other in (body, b"another", b"")
        for _ in range(2)
    ]
    again = outcomes.count(Created())
    if again:
        raise Broken(f"an object that existed was created again in {again} of {len(outcomes)} attempts")
    if set(await bench.all_get(key)) != {body}:
        raise Broken("a create that was refused has changed the object")
    return f"{len(outcomes)} of {len(outcomes)} refused, nothing changed"


async def concurrent_creates(bench: Bench) -> str:
    small, large = 5, 2
    for number in range(small):
        await race(bench.clients, f"race/{number}", racers=24, clock=bench.clock)
    for number in range(large):
        # What takes time to arrive opens a wide gap between looking and writing.
        padding = bench.clock.token(MIB)
        await race(bench.clients, f"race/large-{number}", racers=8, clock=bench.clock, padding=padding)
    return f"one winner in each of {small + large} races of 24 and 8 writers over {len(bench.clients)} clients"


async def new_objects_are_read(bench: Bench) -> str:
    rounds = 20
    for number in range(rounds):
        key, body = f"new/{number}", bench.clock.token(100)
        await bench.all_get(key)  # whoever keeps in mind that it is absent, errs from here on
        await created(bench, key, body)
        late = sum(found != body for found in await bench.all_get(key))
        if late:
            raise Broken(f"{late} of {len(bench.clients)} clients did not read an object just after it was created")
    return f"{rounds} of {rounds}, by {len(bench.clients)} clients that had found them absent before"


async def overwrites_are_read(bench: Bench) -> str:
    rounds = 20
    for number in range(rounds):
        body = b"%20d" % number
        await bench.clients[number % len(bench.clients)].put("overwritten", body)
        late = sum(found != body for found in await bench.all_get("overwritten"))
        if late:
            raise Broken(
                f"{late} of {len(bench.clients)} clients read what was there before, just after it was replaced"
            )
    return f"{rounds} of {rounds}, by {len(bench.clients)} clients"


async def objects_are_whole(bench: Bench) -> str:
    bodies = [bytes([value]) * 200_000 for value in range(8)]
    await bench.first.put("whole", bodies[0])
    written = asyncio.Event()

    async def write() -> tuple[int, int]:
        try:
            for body in bodies:
                await bench.first.put("whole", body)
        finally:
            written.set()
        return 0, 0

    async def read(client: Store) -> tuple[int, int]:
        """How many reads, and how many of them were of no version."""
        reads = torn = 0
        while not written.is_set() or reads == 0:
            torn += await client.get("whole") not in bodies
            reads += 1
        return reads, torn

    counts = await all_of([write(), *map(read, bench.clients)])
    reads, torn = (sum(each[index] for each in counts) for index in (0, 1))
    if torn:
        raise Broken(f"an object that was being replaced read as neither old nor new bytes, {torn} of {reads} times")
    return f"{reads} reads during {len(bodies)} overwrites, each of one version"
