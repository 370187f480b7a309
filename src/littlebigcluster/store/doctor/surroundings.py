"""Trials: what is absent or refused, the clock, and how long requests take."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store.probe import Broken

from .bench import Bench, Doubtful, NotTried, created

SAMPLES = 100
FAR_SECONDS = 60.0
SLOW_SECONDS = 2.0


async def absent_objects(bench: Bench) -> str:
    for client in bench.clients:
        found = (await client.get("absent"), await client.get_range("absent", 0, 10), await client.list("absent/"))
        if found != (None, None, []):
            raise Broken(f"an absent object read as {found[0]!r:.40} and {found[1]!r:.40}, or is listed")
    return "told apart from a store that fails"


async def absent_bucket(bench: Bench) -> str:
    if bench.absent is None:
        raise NotTried("there are no buckets here, or none can be named")
    try:
        await bench.absent.get("absent")
    except StoreUnavailable as error:
        if error.transient:
            raise Doubtful(f"looks like an outage: {error}") from None
        return "said to be missing"
    raise Doubtful("a bucket that cannot exist looks like an empty one")


async def refused_credentials(bench: Bench) -> str:
    if bench.nobody is None:
        raise NotTried("credentials cannot be made up here")
    try:
        await bench.nobody.get("absent")
    except StoreUnavailable as error:
        if error.transient:
            raise Doubtful(f"looks like an outage: {error}") from None
        return "refused, and said so"
    raise Doubtful("a read with made-up credentials was answered")


async def dates(bench: Bench) -> str:
    keys, differences = [f"dated/{number}" for number in range(5)], []
    for key in keys:
        before = bench.clock.now()
        await created(bench, key, b"x")
        middle = before + (bench.clock.now() - before) / 2
        found = {info.key: info.last_modified for info in await bench.first.list("dated/")}
        if key not in found:
            raise Broken(f"{key} is not listed, so it has no date")
        differences.append(found[key] - middle)
        await asyncio.sleep(0.3)
    # Many stores give whole seconds.
    if any(found[later] < found[earlier] - timedelta(seconds=1.5) for earlier, later in pairwise(keys)):
        raise Broken("an object that was written later has an earlier date")
    difference = sorted(differences)[len(differences) // 2].total_seconds()
    bench.figures["clock_difference_seconds"] = difference
    text = f"the store's clock is {abs(difference):.1f} s {'ahead of' if difference > 0 else 'behind'} this machine's"
    if abs(difference) > FAR_SECONDS:
        raise Doubtful(text)
    return text if abs(difference) > 1.5 else "within 1.5 s of this machine's clock, and in order"


async def latencies(bench: Bench) -> str:
    measured: dict[str, list[float]] = {"put": [], "get": [], "list": []}
    body = bench.clock.token(1000)
    for number in range(SAMPLES):
        key = f"latency/{number}"
        for name, request in (
            ("put", lambda key=key: bench.first.create(key, body)),
            ("get", lambda key=key: bench.first.get(key)),
            ("list", lambda key=key: bench.first.list(key)),
        ):
            start = bench.clock.monotonic()
            await request()
            measured[name].append(bench.clock.monotonic() - start)
    texts = []
    for name, values in measured.items():
        values.sort()
        for percent in (50, 99):
            bench.figures[f"{name}_p{percent}_seconds"] = values[len(values) * percent // 100]
        p50, p99 = (bench.figures[f"{name}_p{percent}_seconds"] * 1000 for percent in (50, 99))
        texts.append(f"{name.upper()} {p50:.1f} / {p99:.1f} ms")
    text = f"p50 / p99: {', '.join(texts)}"
    if bench.figures["put_p99_seconds"] > SLOW_SECONDS:
        raise Doubtful(text)
    return text
