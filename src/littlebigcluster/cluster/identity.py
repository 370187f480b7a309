"""The certificate that a node shows: by the cluster's authority, or its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import certificates
from littlebigcluster.cluster.certificates import Authorities, load_authorities
from littlebigcluster.net import Authority, NodeIdentity, load_identity
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Store
from littlebigcluster.threads import in_thread

OWN_LOOK_SECONDS = 10.0
"""Between two looks whether the files of an own certificate have changed."""


class Source(Protocol):
    """Where the certificate comes from."""

    @property
    def look_seconds(self) -> float:
        """Between two looks."""
        ...

    async def look(self) -> NodeIdentity:
        """The identity to show from now on, the same as before while nothing has changed.

        Raises ValueError when there is none that could be used, CorruptLog, StoreUnavailable.
        """
        ...


def source_of(store: Store, node: UUID, settings: NodeSettings, hosts: Sequence[str], *, clock: Clock) -> Source:
    """For a node that others reach at the first of `hosts`; without any, it only connects to others."""
    if settings.tls_certificate is not None:
        return Own(settings, hosts, clock=clock)
    return Minted(store, node, hosts, clock=clock)


class Minted:
    """By the cluster's authority. Follows its rotations, and renews the certificate long before it ends."""

    def __init__(self, store: Store, node: UUID, hosts: Sequence[str], *, clock: Clock) -> None:
        self._store, self._node, self._hosts, self._clock = store, node, hosts, clock
        self.identity: NodeIdentity | None = None
        self._basis: list[Authority] = []
        """Who has signed it, and who was trusted then."""

    @property
    def look_seconds(self) -> float:
        return certificates.LOOK_SECONDS

    async def look(self) -> NodeIdentity:
        authorities = await load_authorities(self._store)
        now = self._clock.now()
        basis = [authorities.signer(now), *authorities.trusted(now)]
        ends_soon = self.identity is not None and self.identity.not_after - now < certificates.LIFETIME / 2
        if self.identity is None or ends_soon or basis != self._basis:
            self.identity = await in_thread(self._mint, authorities)
            self._basis = basis
        return self.identity

    def _mint(self, authorities: Authorities) -> NodeIdentity:
        return authorities.mint(self._node, self._hosts, self._clock)


class Own:
    """The files or bytes in the node's settings."""

    def __init__(self, settings: NodeSettings, hosts: Sequence[str], *, clock: Clock) -> None:
        self._settings, self._host, self._clock = settings, hosts[0] if hosts else None, clock
        self._identity: NodeIdentity | None = None

    @property
    def look_seconds(self) -> float:
        return OWN_LOOK_SECONDS

    async def look(self) -> NodeIdentity:
        found = await in_thread(self._load)
        if self._identity is None or found != self._identity:
            self._identity = found
        return self._identity

    def _load(self) -> NodeIdentity:
        settings = self._settings
        assert settings.tls_certificate is not None
        assert settings.tls_private_key is not None
        assert settings.tls_authorities is not None
        return load_identity(
            settings.tls_certificate,
            settings.tls_private_key,
            settings.tls_authorities,
            host=self._host,
            now=self._clock.now(),
        )
