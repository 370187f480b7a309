"""A node as a process of its own, for scenarios in which processes die: `python -m tests.scenarios.member`.

It joins, leads when it can, and writes one operation after another while it leads; says on its standard output what
it does (as `Recorder.transcript` reads it), and dies by its own hand where it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from littlebigcluster import Cluster, NodeSettings, OutcomeUnknown
from littlebigcluster.clock import Clock
from littlebigcluster.roles import LocalCopy
from littlebigcluster.store import Store, open_store
from littlebigcluster.store.wrappers import Operation, Wrapper
from tests.scenarios.checker import INSERT, REFUSALS, TABLE

T = TypeVar("T")

STEPS = ("before-put", "after-put", "after-apply")


def say(*words: object) -> None:
    """At once, so that it is heard from one who is killed next."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def die() -> NoReturn:
    """A moment later, so that an answer that is given too early would get out."""
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")


class Deadly(Wrapper):
    """Dies before or after the create of an epoch, once it is armed."""

    def __init__(self, store: Store, step: str | None) -> None:
        super().__init__(store)
        self.step = step
        self.armed = False

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        deadly = self.armed and operation == "create" and key.endswith(".wal")
        if deadly and self.step == "before-put":
            await die()
        result = await send()
        if deadly and self.step == "after-put":
            await die()
        return result


def die_after_apply(store: Deadly) -> None:
    """From when it is armed on, the leader dies when its copy has an epoch, and nobody was answered yet."""
    apply_own = LocalCopy.apply_own

    async def apply_own_and_die(self: LocalCopy, *rest: Any) -> None:
        await apply_own(self, *rest)
        if store.armed:
            await die()

    LocalCopy.apply_own = apply_own_and_die  # type: ignore[method-assign]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--die", choices=STEPS)
    parser.add_argument("--after", type=int, default=5, help="so many writes before it dies")
    parser.add_argument("--first", type=int, default=1, help="the id of the first operation")
    parser.add_argument("--leader-timeout", type=float, default=1.2)
    parser.add_argument("--suspect-timeout", type=float, default=1.5)
    arguments = parser.parse_args()

    store = Deadly(open_store(arguments.store, clock=Clock()), arguments.die)
    settings = NodeSettings(
        directory=arguments.directory,
        epoch_interval=0,
        leader_timeout=arguments.leader_timeout,
        suspect_timeout=arguments.suspect_timeout,
        poll_interval=0.05,
        readers=1,
    )
    async with Cluster(store).join(can_lead=True, settings=settings, address="127.0.0.1:0") as node:
        say("joined", node.id)
        end = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set_result, None)
        writing = asyncio.create_task(write(node, store, arguments))
        await asyncio.wait([writing, end], return_when=asyncio.FIRST_COMPLETED)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    say("left")


async def write(node: Any, store: Deadly, arguments: argparse.Namespace) -> None:
    if arguments.die == "after-apply":
        die_after_apply(store)
    operation = arguments.first
    led = False
    while True:
        if node.is_leader != led:
            led = node.is_leader
            say("leads" if led else "follows", node.term)
        if not led:
            await asyncio.sleep(0.02)
            continue
        try:
            # Transactions, because statements would travel to another leader.
            await node.transaction(lambda db: db.execute(TABLE) and None)
            store.armed = operation >= arguments.first + arguments.after
            say("begin", operation)
            done = await node.transaction(lambda db, operation=operation: db.execute(INSERT, (operation,)) and None)
            say("done", operation, done.epoch)
        except OutcomeUnknown:
            say("unknown", operation)
        except REFUSALS:
            say("refused", operation)
        operation += 1
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
