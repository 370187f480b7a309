"""An authority, identities, and a running server with a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.net import Authority, Client, NodeIdentity, Server
from tests.net.app import ContractApp
from tests.net.serving import PATIENT

WEEK = timedelta(days=7)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create("cluster-1", Clock())


@pytest.fixture
def mint(authority: Authority, clock: Clock) -> Callable[[str], NodeIdentity]:
    return lambda node_id: authority.mint(node_id, LOOPBACK, WEEK, clock)


@pytest.fixture
def app() -> ContractApp:
    return ContractApp()


@pytest.fixture
async def server(app: ContractApp, mint: Callable[[str], NodeIdentity]) -> AsyncIterator[Server]:
    server = Server(app, host="127.0.0.1", tls=mint("server"))
    await server.start()
    yield server
    await server.stop(0.1)


@pytest.fixture
def url(server: Server) -> str:
    return f"https://127.0.0.1:{server.address[1]}"


@pytest.fixture
async def client(url: str, mint: Callable[[str], NodeIdentity], clock: Clock) -> AsyncIterator[Client]:
    async with Client(url, tls=mint("client"), clock=clock, **PATIENT) as client:
        yield client
