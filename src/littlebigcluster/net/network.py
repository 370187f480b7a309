"""How a node serves and reaches others: the one place to put another network in, as a simulation does."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from littlebigcluster.clock import Clock
from littlebigcluster.net.asgi import ASGIApp
from littlebigcluster.net.client import Client
from littlebigcluster.net.server import ClientCertificates, Server
from littlebigcluster.net.tls import NodeIdentity


class Network:
    """That of this machine."""

    def serve(
        self, app: ASGIApp, *, host: str, port: int, tls: NodeIdentity | None, client_certificates: ClientCertificates
    ) -> Server:
        """A server that is not started yet."""
        return Server(app, host=host, port=port, tls=tls, client_certificates=client_certificates)

    def connect(
        self, base_url: str, *, tls: NodeIdentity | None, clock: Clock, headers: Mapping[str, str] | None = None
    ) -> Client:
        """A client of the peer at `base_url`."""
        return Client(base_url, tls=tls, clock=clock, headers=headers)


NETWORK: ContextVar[Network] = ContextVar("NETWORK", default=Network())  # noqa: B039 - has no state
"""The one that is used here."""
