"""Ports for those who have to know theirs before they listen."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 10_000, 32_000
"""Below those that systems give to connections by themselves, or one of these would take it first now and then."""

_any = random.SystemRandom()  # test processes may share the seed of the usual one


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    while True:
        port = _any.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
