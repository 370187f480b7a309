"""A peer that dies without a word is noticed within seconds: a frozen process, a network that swallows packets."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net import Authority, Client, NodeIdentity, Server
from tests.namespaces import Network, network
from tests.net.app import ContractApp
from tests.net.peer import peer
from tests.net.relay import Relay
from tests.net.serving import url_of

Mint = Callable[[str], NodeIdentity]

NOTICED_WITHIN_SECONDS = 60.0  # about four, on a machine with nothing else to do


async def test_a_frozen_server_is_noticed(mint: Mint, clock: Clock) -> None:
    async with peer(mint("server"), "server", "127.0.0.1") as server:
        url = f"https://127.0.0.1:{await server.told()}"
        async with Client(url, tls=mint("client"), clock=clock) as client, client.stream("GET", "/silence") as stream:
            assert await anext(stream) == b"first"
            call = asyncio.create_task(client.request("GET", "/hang"))
            await server.told("hang begun")
            server.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(PeerUnavailable):
                await anext(stream)
            with pytest.raises(PeerUnavailable):
                await call
            assert time.monotonic() - began < NOTICED_WITHIN_SECONDS
            # A new connection is accepted by the system, but never answered.
            with pytest.raises(PeerUnavailable, match="it does not answer") as caught:
                await client.request("GET", "/hello")
            assert not caught.value.sent
            assert not caught.value.refused
            server.process.send_signal(signal.SIGCONT)
            assert (await client.request("GET", "/hello")).status == 200


async def test_a_server_that_froze_while_nobody_asked_is_noticed(mint: Mint, clock: Clock) -> None:
    async with (
        peer(mint("server"), "server", "127.0.0.1") as server,
        Relay(("127.0.0.1", int(await server.told()))) as relay,
        Client(f"https://127.0.0.1:{relay.port}", tls=mint("client"), clock=clock) as client,
    ):
        await client.request("GET", "/hello")
        server.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(NOTICED_WITHIN_SECONDS):
            await relay.left.wait()
        # The dead connection is gone already, so that this was never sent and may be sent elsewhere.
        with pytest.raises(PeerUnavailable) as caught:
            await client.request("POST", "/count_bytes", body=b"x")
        assert not caught.value.sent


async def test_a_killed_server_is_noticed_at_once(mint: Mint, clock: Clock) -> None:
    async with peer(mint("server"), "server", "127.0.0.1") as server:
        url = f"https://127.0.0.1:{await server.told()}"
        async with (
            Client(
                url, tls=mint("client"), clock=clock, ping_seconds=600, connect_timeout_seconds=60
            ) as client,  # it does not find out by asking
            client.stream("GET", "/silence") as stream,
        ):
            await anext(stream)
            server.process.kill()
            async with asyncio.timeout(60):
                with pytest.raises(PeerUnavailable):
                    await anext(stream)


async def test_a_killed_client_is_noticed_at_once(server: Server, app: ContractApp, mint: Mint) -> None:
    async with peer(mint("client"), "client", url_of(server), "/silence") as client:
        await client.told("piece")
        client.process.kill()
        await app.happened("silence cancelled")


async def test_a_frozen_client_that_should_read_is_noticed(mint: Mint, app: ContractApp) -> None:
    server = Server(app, host="127.0.0.1", tls=mint("server"), stall_seconds=1.0)
    await server.start()
    async with peer(mint("client"), "client", url_of(server), "/flood") as client:
        await client.told("piece")
        client.process.send_signal(signal.SIGSTOP)
        await app.happened("flood ended", within_seconds=NOTICED_WITHIN_SECONDS)
    await server.stop(0)


async def test_a_connection_that_falls_silent_is_noticed_by_the_client(
    server: Server, mint: Mint, clock: Clock
) -> None:
    async with Relay(server.address) as relay:
        url = f"https://127.0.0.1:{relay.port}"
        async with Client(url, tls=mint("client"), clock=clock) as client, client.stream("GET", "/silence") as stream:
            await anext(stream)
            relay.swallow()
            began = time.monotonic()
            with pytest.raises(PeerUnavailable):
                await anext(stream)
            assert time.monotonic() - began < NOTICED_WITHIN_SECONDS


@pytest.fixture
def wire() -> Iterator[Network]:
    with network(2) as made:
        yield made


@pytest.mark.parametrize("deaf", ["server", "client", "both"])
async def test_swallowed_packets_are_noticed_on_both_sides(
    deaf: str, wire: Network, authority: Authority, clock: Clock
) -> None:
    sides = {"server": 1, "client": 2}
    identity = authority.mint("node", [wire.address(1), wire.address(2)], timedelta(days=1), clock)
    async with peer(identity, "server", "0.0.0.0", prefix=wire.inside(sides["server"])) as server:
        url = f"https://{wire.address(sides['server'])}:{await server.told()}"
        # On this stream nothing is sent after its first piece: only keep-alives can notice.
        async with peer(identity, "client", url, "/silence", prefix=wire.inside(sides["client"])) as client:
            await client.told("piece")
            began = time.monotonic()
            for name, host in sides.items():
                if deaf in (name, "both"):
                    wire.swallow(host, "in")
            await client.told("lost", within_seconds=NOTICED_WITHIN_SECONDS)
            left = NOTICED_WITHIN_SECONDS - (time.monotonic() - began)
            await server.told("silence cancelled", within_seconds=left)
