"""Addresses: as people write them, and the one that others can reach."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from littlebigcluster.net import format_address, is_loopback, is_wildcard, parse_address, reachable_host


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:80", "10.0.0.1", 80),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("db-1.example:0", "db-1.example", 0),
    ],
)
def test_addresses_are_read_and_written(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "host:x", "host:-1", "host:65536", "::1:80", "[::1]", "[::1]80", "[host]:80",
     "a b:80", "[::1:80", "user@host:80", "host/x:80", "host:８０", "host: 80"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text)


def test_wildcards_and_loopback_addresses_are_known() -> None:
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "", "10.0.0.1", "db")] == [True, True, True, False, False]
    loopback = [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "10.0.0.1", "db")]
    assert loopback == [True, True, True, True, False, False]


def test_an_address_of_its_own_is_the_one_to_reach() -> None:
    assert reachable_host("10.9.8.7") == "10.9.8.7"
    assert reachable_host("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", ""])
def test_a_wildcard_becomes_an_address_to_reach(wildcard: str) -> None:
    assert not ipaddress.ip_address(reachable_host(wildcard)).is_unspecified


def test_the_name_of_the_machine_helps_without_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_route(monkeypatch)
    found = [(0, 0, 0, "", ("127.0.1.1", 0)), (0, 0, 0, "", ("fe80::1%eth0", 0)), (0, 0, 0, "", ("10.1.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert reachable_host("0.0.0.0") == "10.1.1.1"


def test_the_loopback_address_is_what_remains_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_route(monkeypatch)

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert reachable_host("0.0.0.0") == "127.0.0.1"


def _no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unroutable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "socket", Unroutable)
