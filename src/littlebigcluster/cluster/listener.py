"""Where a node listens, and how it reaches others: its server, its certificate, its clients."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.description import Description, host_and_port
from littlebigcluster.cluster.identity import Source, source_of
from littlebigcluster.errors import LbcError
from littlebigcluster.net import (
    NETWORK,
    ASGIApp,
    Client,
    NodeIdentity,
    Server,
    format_address,
    is_loopback,
    is_wildcard,
    reachable_host,
)
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Store

logger = logging.getLogger(__name__)

_STOP_SECONDS = 3.0


class Listener:
    """The one port of a node."""

    def __init__(
        self,
        store: Store,
        app: ASGIApp,
        node: UUID,
        settings: NodeSettings,
        description: Description,
        *,
        clock: Clock,
    ) -> None:
        self._network = NETWORK.get()
        self._store, self._app, self._node = store, app, node
        self._settings, self._description, self._clock = settings, description, clock
        self.address = ""
        """host:port, as others reach it."""
        self._server: Server | None = None
        self._source: Source | None = None
        self._identity: NodeIdentity | None = None
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        """All that use this node's certificate, to be given the next one."""

    async def start(self) -> None:
        """Raises OSError when the address cannot be had, ValueError for one that must not be served in clear text, and
        for an own certificate that cannot be used, CorruptLog, StoreUnavailable."""
        asked = self._description.address or os.environ.get("LBC_ADDRESS") or format_address(reachable_host(""), 0)
        host, port = host_and_port(asked)
        secure = self._settings.tls == "on"
        if not secure:
            self._refuse_clear_text(host)
        advertised = host_and_port(self._description.advertise) if self._description.advertise else None
        if secure:
            hosts = [advertised[0]] if advertised else []
            hosts += [reachable_host(host) if is_wildcard(host) else host, "localhost", "127.0.0.1", "::1"]
            self._source = source_of(self._store, self._node, self._settings, hosts, clock=self._clock)
            self._identity = await self._source.look()
        self._server = self._network.serve(
            self._app,
            host=host,
            port=port,
            tls=self._identity,
            client_certificates="required" if self._settings.clients == "members" else "optional",
        )
        try:
            await self._server.start()
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {format_address(host, port)}: {error.strerror}") from error
        bound_host, bound_port = self._server.address
        self.address = format_address(
            *(advertised or (reachable_host(bound_host) if is_wildcard(bound_host) else bound_host, bound_port))
        )
        if advertised and not advertised[1]:
            self.address = format_address(advertised[0], bound_port)

    def connect(self, address: str) -> Client:
        """A client of another node. It gets the new certificate when this node's is renewed."""
        scheme = "https" if self._identity else "http"
        client = self._network.connect(
            f"{scheme}://{address}", tls=self._identity, clock=self._clock, headers={"x-lbc-from": str(self._node)}
        )
        self._clients.add(client)
        return client

    async def renew(self) -> None:
        """Show a new certificate when there is one. Until cancelled. While the new one cannot be had or used, the
        present one stays."""
        told = ""
        while self._source is not None:
            await asyncio.sleep(self._source.look_seconds)
            try:
                identity = await self._source.look()
                if identity is not self._identity:
                    await self._show(identity)
                told = ""
            except (LbcError, ValueError) as error:
                if str(error) != told:
                    logger.warning("the node keeps the certificate that it shows: %s", error)
                told = str(error)

    async def _show(self, identity: NodeIdentity) -> None:
        """Raises ValueError when it cannot be used."""
        assert self._server is not None
        await self._server.reload(identity)
        for client in tuple(self._clients):
            client.reload(identity)
        self._identity = identity
        logger.info("the node shows a new certificate, valid until %s", identity.not_after.isoformat())

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(_STOP_SECONDS)

    def _refuse_clear_text(self, host: str) -> None:
        if not is_loopback(host) and not self._settings.insecure:
            raise ValueError(
                f'tls="off" serves loopback addresses only, not {host}: everybody who reaches it would be trusted.'
                " Set insecure=True too if that is what you want"
            )
        logger.warning("TLS is off: everybody who reaches %s is trusted as a member of the cluster", host)
