"""Requests over one mutually authenticated HTTP/2 connection, against the bare libraries in the same run.

    python benchmarks/rpc.py [--seconds 1] [--turns 5]

Both pairs live in this process and answer 100 bytes with 100 bytes, in turns; "ratio" is ours over bare, for requests
a second more is better, for latency less.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import h2corn
import wreq
from wreq.http2 import Http2Options
from wreq.tls import CertStore, Identity

from littlebigcluster.clock import Clock
from littlebigcluster.net import Authority, Client, NodeIdentity, Receive, Scope, Send, Server

BODY = bytes(100)
IN_FLIGHT = (1, 32, 256)
Call = Callable[[], Awaitable[object]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        return
    body = (await receive()).get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def ours(identity: NodeIdentity) -> AsyncIterator[Call]:
    server = Server(app, host="127.0.0.1", tls=identity)
    await server.start()
    async with Client(f"https://127.0.0.1:{server.address[1]}", tls=identity, clock=Clock()) as client:
        yield lambda: client.request("POST", "/", body=BODY)
    await server.stop(1)


@asynccontextmanager
async def bare(identity: NodeIdentity) -> AsyncIterator[Call]:
    with TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        cert, key, authority = (Path(directory) / name for name in ("cert.pem", "key.pem", "ca.pem"))
        cert.write_text(identity.cert_pem)
        key.write_text(identity.key_pem)
        authority.write_text(identity.ca_bundle_pem)
        config = h2corn.Config(
            bind=(f"fd://{listener.fileno()}",), certfile=cert, keyfile=key, ca_certs=authority, cert_reqs="required",
            access_log=False, http1=False, lifespan="off", max_concurrent_streams=2000, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = h2corn.Server(app, config)
        serving = asyncio.create_task(server.serve())
        await server.wait_started()
        client = wreq.Client(
            http2_only=True, no_proxy=True, tls_verify=CertStore.from_pem_stack(identity.ca_bundle_pem.encode()),
            tls_identity=Identity.from_pkcs8_pem(identity.cert_pem.encode(), identity.key_pem.encode()),
            http2_options=Http2Options(initial_window_size=1 << 23, initial_connection_window_size=1 << 26),
        )  # fmt: skip
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"

        async def call() -> bytes:
            response = await client.post(url, body=BODY)
            return bytes(await response.bytes())

        yield call
        client.close()
        server.shutdown()
        await serving


async def measure(call: Call, in_flight: int, seconds: float) -> list[float]:
    """The latency of each request that was made in so many seconds."""
    latencies: list[float] = []
    end = perf_counter() + seconds

    async def one_after_the_other() -> None:
        while (began := perf_counter()) < end:
            await call()
            latencies.append(perf_counter() - began)

    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    return latencies


def percentile(latencies: list[float], percent: int) -> float:
    return statistics.quantiles(latencies, n=100)[percent - 1] * 1e3


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    clock = Clock()
    identity = Authority.create("benchmark", clock).mint("node", ["127.0.0.1"], timedelta(days=1), clock)
    async with ours(identity) as our_call, bare(identity) as bare_call:
        for call in (our_call, bare_call):
            await measure(call, 32, 0.5)
        print(f"{'in flight':>9} {'':>6} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8}")
        for in_flight in IN_FLIGHT:
            taken: dict[str, list[float]] = {"ours": [], "bare": []}
            for _ in range(options.turns):
                for name, call in (("ours", our_call), ("bare", bare_call)):
                    taken[name] += await measure(call, in_flight, options.seconds)
            report(in_flight, taken, options.turns * options.seconds)


def report(in_flight: int, taken: dict[str, list[float]], seconds: float) -> None:
    figures = {
        name: (len(latencies) / seconds, percentile(latencies, 50), percentile(latencies, 99))
        for name, latencies in taken.items()
    }
    for name, (rate, p50, p99) in figures.items():
        print(f"{in_flight:>9} {name:>6} {rate:>11,.0f} {p50:>8.2f} {p99:>8.2f}")
    ratios = [our / bare for our, bare in zip(figures["ours"], figures["bare"], strict=True)]
    print(f"{'':>9} {'ratio':>6} {ratios[0]:>11.2f} {ratios[1]:>8.2f} {ratios[2]:>8.2f}")


if __name__ == "__main__":
    asyncio.run(main())
