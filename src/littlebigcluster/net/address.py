"""Addresses as people write them, and the address of this machine that others can reach."""

from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import ip_address

_SOMEWHERE_ELSE = (
    # Addresses reserved for documentation (RFC 5737, RFC 3849): outside every network this machine could be in.
    (socket.AF_INET, "192.0.2.1"),
    (socket.AF_INET6, "2001:db8::1"),
)
_ANY_PORT = 9


def parse_address(text: str) -> tuple[str, int]:
    """The host and the port of "host:port" or "[v6]:port". Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    well_formed = colon and host and bracketed == (":" in host) and port.isascii() and port.isdigit()
    if not well_formed or any(c.isspace() or c in "[]/@" for c in host) or int(port) > 65535:
        raise ValueError(f'not an address: {text!r}; write "host:port", or "[v6]:port" for IPv6')
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """ "host:port", with brackets around an IPv6 address, as in URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(host: str) -> bool:
    """Whether a server that listens on `host` listens on all addresses of the machine."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def reachable_host(listening_on: str) -> str:
    """The address under which others reach a server of this machine that listens on `listening_on`.

    That is the address itself, or, when it listens on all of them, the one the system would use to talk to the
    world; without a route to the world what the machine's name stands for; at last the loopback address. Sends
    nothing and needs no network.
    """
    if not is_wildcard(listening_on):
        return listening_on
    return _outgoing_address() or _address_of_own_name() or "127.0.0.1"


def _outgoing_address() -> str | None:
    for family, target in _SOMEWHERE_ELSE:
        try:
            with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
                # Connecting a datagram socket chooses the route and sends nothing.
                probe.connect((target, _ANY_PORT))
                host = str(probe.getsockname()[0])
        except OSError:
            continue
        if _is_useful(host):
            return host
    return None


def _address_of_own_name() -> str | None:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return next((host for *_, address in found if _is_useful(host := str(address[0]))), None)


def _is_useful(host: str) -> bool:
    address = ip_address(host.partition("%")[0])
    return not (address.is_loopback or address.is_unspecified or address.is_link_local)
