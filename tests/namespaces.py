"""Hosts with addresses of their own on one wire: network namespaces of the kernel, and a bridge in one more.

What is cut here is cut by the kernel: a cable that is pulled out, or packets that are swallowed in one direction.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from tests import untested

_numbers = itertools.count(1)
_NETWORK = 0x40000000  # CLONE_NEWNET
_FORBIDDEN = (b"not permitted", b"permission denied")


class Network:
    """Hosts 1 to `hosts`, each with an `eth0` and a way out, as a machine in a data centre has."""

    def __init__(self, hosts: int) -> None:
        self.hosts = range(1, hosts + 1)
        self._name = f"lbc-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._name}-switch"

    def address(self, host: int) -> str:
        return f"10.213.77.{host}"

    def inside(self, host: int) -> tuple[str, ...]:
        """In front of a command, to run it on that host."""
        return ("ip", "netns", "exec", f"{self._name}-{host}")

    def unplug(self, host: int) -> None:
        """Nothing goes to this host or comes from it; nobody is told."""
        self._ip(self._switch, "link", "set", f"port{host}", "down")

    def plug(self, host: int) -> None:
        self._ip(self._switch, "link", "set", f"port{host}", "up")

    def swallow(self, host: int, direction: Literal["in", "out"]) -> None:
        """What comes to this host, or what it sends, disappears; the other direction works."""
        chain, device = ("INPUT", "-i") if direction == "in" else ("OUTPUT", "-o")
        self._packet_filter(host, "-A", chain, device, "eth0", "-j", "DROP")

    def flow(self, host: int) -> None:
        """Nothing is swallowed any more."""
        self._packet_filter(host, "-F")

    def cut(self, host: int, other: int, direction: Literal["in", "out"], *, mend: bool = False) -> None:
        """What comes to `host` from the other one, or what it sends there, disappears, until it is mended."""
        chain, match = ("INPUT", "-s") if direction == "in" else ("OUTPUT", "-d")
        self._packet_filter(host, "-D" if mend else "-A", chain, match, self.address(other), "-j", "DROP")

    def lossy(self, host: int, share: float, *, mend: bool = False) -> None:
        """A share of the packets that come to this host disappears: its connections are slow, and some break."""
        rule = ("INPUT", "-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", f"{share:.2f}")
        self._packet_filter(host, "-D" if mend else "-A", *rule, "-j", "DROP")

    def late(self, host: int, seconds: float) -> None:
        """What this host sends arrives so much later, give or take a half, until it is `prompt` again. Not every
        kernel can do that: raises CalledProcessError."""
        self._queue(host, "netem", "delay", f"{seconds * 1000:.0f}ms", f"{seconds * 500:.0f}ms")

    def narrow(self, host: int, kilobits: int) -> None:
        """What this host sends has to queue, for up to a second, and what does not fit disappears; until it is `prompt`
        again. So much gets through in a second."""
        self._queue(host, "tbf", "rate", f"{kilobits}kbit", "burst", "4kb", "latency", "1s")

    def prompt(self, host: int) -> None:
        with suppress(subprocess.CalledProcessError):  # it was so already
            _run(*self.inside(host), "tc", "qdisc", "del", "dev", "eth0", "root")

    def _queue(self, host: int, *how: str) -> None:
        _run(*self.inside(host), "tc", "qdisc", "replace", "dev", "eth0", "root", *how)

    def listen(self, host: int) -> socket.socket:
        """A socket of this process that listens on that host, at a port of its own."""
        made: list[socket.socket] = []

        def enter_and_listen() -> None:  # a thread for itself, as it stays there
            with Path(f"/run/netns/{self._name}-{host}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NETWORK) == 0:
                    made.append(socket.create_server((self.address(host), 0)))

        thread = threading.Thread(target=enter_and_listen)
        thread.start()
        thread.join()
        return made[0]

    def _packet_filter(self, host: int, *rule: str) -> None:
        _run(*self.inside(host), "iptables", *rule)

    def _ip(self, namespace: str, *command: str) -> None:
        _run("ip", "-n", namespace, *command)

    def build(self) -> None:
        """Raises OSError, CalledProcessError."""
        for command in ("ip", "iptables"):
            if shutil.which(command) is None:
                raise FileNotFoundError(f"the command {command} is needed")
        _run("ip", "netns", "add", self._switch)
        self._ip(self._switch, "link", "add", "bridge", "type", "bridge")
        self._ip(self._switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            name, port = f"{self._name}-{host}", f"port{host}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port,
                 "netns", self._switch)  # fmt: skip
            self._ip(self._switch, "link", "set", port, "master", "bridge", "up")
            self._ip(name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            self._ip(name, "link", "set", "lo", "up")
            self._ip(name, "link", "set", "eth0", "up")
            self._ip(name, "route", "add", "default", "via", self.address(254))
            self._packet_filter(host, "-L")  # it must work, too

    def remove(self) -> None:
        for name in (*(f"{self._name}-{host}" for host in self.hosts), self._switch):
            with suppress(OSError, subprocess.SubprocessError):
                _run("ip", "netns", "delete", name)


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """A network while the block runs. Skips the test, loudly, where namespaces are not permitted; where they only
    cannot be made, in CI it fails."""
    made = Network(hosts)
    try:
        try:
            made.build()
        except (OSError, subprocess.SubprocessError) as error:
            message, permitted = why_not(error)
            if permitted and os.environ.get("CI") == "true":
                pytest.fail(message, pytrace=False)
            untested.warn(message)
            pytest.skip(message)
        yield made
    finally:
        made.remove()


def why_not(error: OSError | subprocess.SubprocessError) -> tuple[str, bool]:
    """What to say about namespaces that could not be made; and whether they are permitted, so that they should be."""
    said: bytes = getattr(error, "stderr", None) or b""
    permitted = os.geteuid() == 0 and not any(word in said.lower() for word in _FORBIDDEN)
    return f"NOT TESTED in network namespaces: {error} {said.decode(errors='replace')}", permitted


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
