"""The demo's side of a node: a process that is started, told what to do, listened to, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from littlebigcluster.cli.demo.lag import Lag
from littlebigcluster.cli.demo.ledger import Outcome
from littlebigcluster.cli.demo.messages import MAX_LINE_BYTES, Message, decode, encode
from littlebigcluster.errors import LbcError

_FAREWELL_SECONDS = 8.0


class NodeDied(LbcError):
    """A node of the demo ended without being told to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a write ended, as the node tells it; without an answer it is unknown."""

    outcome: Outcome
    epoch: int = 0


@dataclass
class NodeProcess:
    """A node in a process of its own, and what it last said of itself."""

    name: str
    can_lead: bool
    log: Path
    lag: Lag
    on_durable: Callable[[NodeProcess, int, float], None]
    """Called when this node has made an epoch durable, with the moment."""
    id: str = ""
    epoch: int = 0
    rows: int = 0
    term: int = 0
    leads_since: int | None = None
    """The epoch since which it leads, if it does."""
    members: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Zone and roles of the members it knows, by their ids."""
    alive: bool = False
    joined: bool = False
    killed: bool = False
    _writes: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _asked: dict[str, asyncio.Future[Any]] = field(default_factory=dict)

    async def start(self, options: Message) -> None:
        """Start the process and wait until it has joined. Raises NodeDied."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "littlebigcluster.cli.demo.node",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=MAX_LINE_BYTES,
                # Ctrl-C is for the demo, which then ends its nodes in good order.
                start_new_session=True,
            )
        self.alive = True
        self._listening = asyncio.create_task(self._listen())
        self.id = await self._ask("joined", options)
        self.joined = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def leads(self) -> bool:
        return self.leads_since is not None

    @property
    def under_way(self) -> frozenset[int]:
        """The writes that this node has been sent and has not answered."""
        return frozenset(self._writes)

    async def write(self, number: int) -> Answer:
        """Have the node write one row. Every end is an answer."""
        if not self.alive:
            return Answer("refused")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._writes[number] = answer
        self._send({"do": "write", "number": number})
        return await answer

    async def create(self) -> None:
        """Have the node make the table. Raises NodeDied."""
        await self._ask("created", {"do": "create"})

    async def copy(self, *, at_least: int) -> tuple[int, list[int]]:
        """The epoch of the node's own replica, and the rows in it. Raises NodeDied."""
        epoch, numbers = await self._ask("copy", {"do": "copy", "at_least": at_least})
        return epoch, numbers

    def kill(self) -> None:
        """SIGKILL: no farewell of any kind."""
        self.killed = True
        self._process.kill()

    async def died(self) -> None:
        """Wait until the process is gone."""
        await self._process.wait()
        await asyncio.wait([self._listening])

    async def keep(self) -> None:
        """Let the process run on after the demo."""
        await self._ask("kept", {"do": "keep"})

    async def stop(self) -> None:
        """End the process in good order; by force when that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        await self.died()

    def _send(self, message: Message) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(encode(message))

    def _ask(self, answer: str, message: Message) -> asyncio.Future[Any]:
        future = self._asked[answer] = asyncio.get_running_loop().create_future()
        if self.alive:
            self._send(message)
        else:
            future.set_exception(self._death())
        return future

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if not line.endswith(b"\n"):
                break  # killed in the middle of a line
            self._hear(decode(line))
        self.alive, self.leads_since = False, None
        for number in list(self._writes):
            self._answered(number, Answer("unknown"))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(self._death())

    def _hear(self, message: Message) -> None:
        match message:
            case {"number": number, "outcome": outcome}:
                self._answered(number, Answer(outcome, message.get("epoch", 0)))
            case {"durable": epoch, "at": at}:
                self.on_durable(self, epoch, at)
            case {"visible": epoch, "at": at}:
                self.lag.visible(epoch, at)
            case {"members": members}:
                self.members = {id: (az, roles) for id, (az, roles) in members.items()}
            case {"epoch": epoch, "rows": rows, "term": term, "leads_since": since}:
                self.epoch, self.rows, self.term, self.leads_since = epoch, rows, term, since
            case _:
                for name, value in message.items():
                    if not self._asked[name].done():
                        self._asked[name].set_result(value)

    def _answered(self, number: int, answer: Answer) -> None:
        write = self._writes.pop(number)
        if not write.done():  # cancelled, when the demo is interrupted
            write.set_result(answer)

    def _death(self) -> NodeDied:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return NodeDied(f"{self.name} ended by itself; it last said: {lines[-1] if lines else 'nothing'}")
