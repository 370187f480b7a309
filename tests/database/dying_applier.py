"""Applies a WAL to a replica and dies by SIGKILL midway: python dying_applier.py REPLICA WAL STEP."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.database import replica as replica_module
from littlebigcluster.database import walindex
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.wal import parse

STEPS = ("half of the frames", "all frames", "half of the index", "all of the index", "second copy", "published")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def only_half(function: Callable[..., Any], argument: int) -> Callable[..., Any]:
    def run(*arguments: Any) -> None:
        changed = list(arguments)
        changed[argument] = arguments[argument][: len(arguments[argument]) // 2 + 1]
        function(*changed)
        die()

    return run


def break_at(step: str, broken: Callable[..., Any]) -> None:
    """Let `broken` be called at this step of an append."""
    barriers = 0

    def barrier(_: Any) -> None:
        nonlocal barriers
        barriers += 1
        if barriers == 2:
            broken()

    match step:
        case "half of the frames":
            replica_module.write_at = only_half(replica_module.write_at, 1)  # type: ignore[assignment]
        case "all frames":
            walindex.WalIndex.add = broken  # type: ignore[method-assign]
        case "half of the index":
            walindex._add = only_half(walindex._add, 3)  # type: ignore[assignment]
        case "all of the index":
            walindex.WalIndex.publish = broken  # type: ignore[method-assign]
        case "second copy":
            walindex.WalIndex._barrier = barrier  # type: ignore[method-assign]
        case "published":
            walindex.WalIndex.publish = publish_and_die  # type: ignore[method-assign]


publish = walindex.WalIndex.publish


def publish_and_die(index: walindex.WalIndex, header: walindex.WalIndexHeader) -> None:
    publish(index, header)
    die()


if __name__ == "__main__":
    database, wal, step = sys.argv[1:]
    opened = Replica.open(Path(database), clock=Clock())
    break_at(step, die)
    opened.apply(parse(Path(wal).read_bytes()), expected_checksum=None)
    sys.exit("still alive")
