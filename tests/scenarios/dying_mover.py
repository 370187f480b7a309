"""Restores and clones that are killed at each of their steps on the disk: python dying_mover.py WHAT SOURCE TARGET...

WHAT is `restore`, `overwrite` or `clone`; the n-th of the targets is for the process that dies at the n-th step. A step
is something under the target's directory that is made, opened to be written, linked, renamed or removed: SIGKILL comes
before it. Those of a clone are counted from its first object on; before that it only examines the store. Prints how
many died.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from littlebigcluster import Cluster
from littlebigcluster.epochs import names

STEPS = ("os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.truncate", "sqlite3.connect", "open")


def watch(directory: str, left: int, begin: str) -> None:
    """Die before the n-th step in this directory, from the first one on that has to do with `begin`."""
    begun = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left, begun
        if event not in STEPS or not any(str(each).startswith(directory) for each in arguments):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        begun = begun or any(str(each).endswith(begin) for each in arguments)
        left -= begun
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def move(what: str, source: str, target: Path) -> None:
    cluster = Cluster(source)
    if what == "clone":
        asyncio.run(cluster.clone(str(target), id="copy"))
    else:
        asyncio.run(cluster.restore(target, overwrite=what == "overwrite"))


def main(what: str, source: str, *targets: str) -> None:
    died = 0
    for at, target in enumerate(map(Path, targets), 1):
        child = os.fork()
        if not child:
            try:
                watch(str(target.parent), at, names.CLUSTER if what == "clone" else "")
                move(what, source, target)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if status == signal.SIGKILL:
            died += 1
        elif status:
            sys.exit(f"step {at}: {status}")
        else:
            break
    print(died)


if __name__ == "__main__":
    main(*sys.argv[1:])
