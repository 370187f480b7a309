"""A server for the length of a test, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.net import ASGIApp, Client, NodeIdentity, Server

PATIENT = {"connect_timeout_seconds": 60.0, "ping_timeout_seconds": 60.0}
"""Of clients that are not there to find out that a peer is dead: the whole machine may stand still for a while."""


@asynccontextmanager
async def serving(app: ASGIApp, tls: NodeIdentity | None, **options: Any) -> AsyncIterator[Server]:
    server = Server(app, host="127.0.0.1", tls=tls, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def pair(app: ASGIApp, tls: NodeIdentity, **options: Any) -> AsyncIterator[tuple[Server, Client]]:
    async with (
        serving(app, tls, **options) as server,
        Client(url_of(server), tls=tls, clock=Clock(), **PATIENT) as client,
    ):
        yield server, client


def url_of(server: Server) -> str:
    return f"https://127.0.0.1:{server.address[1]}"
