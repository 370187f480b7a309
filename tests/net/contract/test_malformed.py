"""Whatever arrives at the port, the server answers it clearly or hangs up, and goes on serving the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net import Authority, Client, NodeIdentity, Server
from tests.net.app import ContractApp
from tests.net.serving import pair

Mint = Callable[[str], NodeIdentity]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


GARBAGE = {
    "nothing of the protocol": os.urandom(1000),
    "HTTP/1.1": b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n",
    "no settings": PREFACE + frame(1, 5, 1, b"\x82\x87\x84"),
    "a frame that is too large": PREFACE + SETTINGS + frame(0, 0, 1, bytes(1 << 17)),
    "data on an idle stream": PREFACE + SETTINGS + frame(0, 1, 1, b"x"),
    "headers that cannot be unpacked": PREFACE + SETTINGS + frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"),
    "headers without a path": PREFACE + SETTINGS + frame(1, 5, 1, b"\x82\x87"),
    "headers that never end": PREFACE + SETTINGS + frame(1, 1, 1, b"\x82") + frame(9, 0, 1, b"\x87") * 1000,
    "a ping of the wrong size": PREFACE + SETTINGS + frame(6, 0, 0, b"1"),
    "a window that overflows": PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "an even stream": PREFACE + SETTINGS + frame(1, 5, 2, b"\x82\x87\x84"),
    "a hundred thousand pings": PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 100_000,
}


@pytest.fixture
def context(authority: Authority, mint: Mint, tmp_path: Path) -> ssl.SSLContext:
    identity = mint("crooked")
    pem = tmp_path / "client.pem"
    pem.write_text(identity.cert_pem + identity.key_pem)
    context = ssl.create_default_context(cadata=authority.cert_pem)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])
    return context


async def throw(port: int, garbage: bytes, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        async with asyncio.timeout(2):
            writer.write(garbage)
            while await reader.read(1 << 16):
                pass
    except (TimeoutError, OSError):
        pass  # it may hang up, or wait for more
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_on_a_connection_harms_nobody_else(
    name: str,
    client: Client,
    server: Server,
    context: ssl.SSLContext,
    app: ContractApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        await throw(server.address[1], GARBAGE[name], context)
        await throw(server.address[1], GARBAGE[name], None)
        assert await anext(ticks) == b"tick"
        assert (await client.request("GET", "/hello")).status == 200
    assert sum(len(record.getMessage()) for record in caplog.records if "littlebigcluster" in record.name) < 1000


async def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    reader, writer = await asyncio.open_connection(*server.address)
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()


async def test_a_body_above_the_limit_is_refused(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node"), max_request_bytes=1000) as (_, client):
        assert (await client.request("POST", "/count_bytes", body=bytes(1000))).body == b"1000"
        assert (await client.request("POST", "/count_bytes", body=bytes(1001))).status == 413

        async def endless() -> object:
            while True:
                yield bytes(100)

        try:
            answer = await client.request("POST", "/count_bytes", body=endless())  # type: ignore[arg-type]
            assert answer.status == 413
        except PeerUnavailable:
            pass  # it may also hang up on the stream
        assert (await client.request("GET", "/hello")).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"x": "y" * 2_000_000}, 431), ({f"x-{number}": "y" for number in range(500)}, 431)],
    ids=["too large", "too many"],
)
async def test_headers_above_the_limits_are_refused(client: Client, headers: dict[str, str], status: int) -> None:
    with contextlib.suppress(PeerUnavailable):  # the client's library may refuse to send so much
        assert (await client.request("GET", "/hello", headers=headers)).status == status
    assert (await client.request("GET", "/hello")).status == 200


async def test_a_path_of_any_bytes_reaches_the_application_as_one(client: Client, clock: Clock) -> None:
    for path in ("/" + "x" * 10_000, "/%00%ff%2e%2e/..;", "/hello?" + "a=b&" * 2000):
        assert (await client.request("GET", path)).status in (200, 400, 404, 414, 431)
