"""How a node describes itself when it joins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from littlebigcluster.cluster.membership import MAX_ROLES, check_metadata, check_priority, check_text
from littlebigcluster.net import ASGIApp, parse_address


@dataclass(frozen=True, kw_only=True)
class Description:
    """The arguments of `Cluster.join`, checked."""

    az: str
    can_lead: bool
    leader_priority: int = 0
    roles: tuple[str, ...]
    address: str | None
    advertise: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    app: ASGIApp | None = None
    leader_app: ASGIApp | None = None

    def __post_init__(self) -> None:
        check_text("az", self.az)
        if not isinstance(self.can_lead, bool):
            raise TypeError(f"can_lead is True or False, not {self.can_lead!r}")
        check_priority(self.leader_priority)
        for address in (self.address, self.advertise):
            if address is not None:
                host_and_port(address)
        check_metadata(self.metadata)
        for name, app in (("app", self.app), ("leader_app", self.leader_app)):
            if app is not None and not callable(app):
                raise TypeError(f"{name} is an ASGI application, not {app!r:.100}")


def host_and_port(address: str) -> tuple[str, int]:
    """Of "host:port" or "host"; port 0 is any free one. Raises TypeError, ValueError."""
    if not isinstance(address, str):
        raise TypeError(f'an address is a string, "host:port", not {address!r}')
    try:
        return parse_address(address)
    except ValueError:
        if not address.isdigit():  # a port alone, not a host
            with contextlib.suppress(ValueError):
                return parse_address(f"{address}:0")
        raise


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Raises TypeError unless these are strings, several of them if need be."""
    if isinstance(roles, str):
        raise TypeError(f'roles are a list of strings: write ["{roles}"]')
    checked = tuple(dict.fromkeys(roles))
    if not all(checked) or any(not isinstance(role, str) for role in checked):
        raise TypeError(f"roles are non-empty strings, not {checked!r}")
    if len(checked) > MAX_ROLES:
        raise ValueError(f"a member has at most {MAX_ROLES} roles, not {len(checked)}")
    return tuple(check_text("a role", role) for role in checked)
