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
from littlebigcluster.watch import Watch

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
    on_change: Callable[[], None]
    log: Path
    lag: Lag
    epoch: int = 0
    rows: int = 0
    term: int = 0
    leads: bool = False
    alive: bool = False
    joined: bool = False
    under_way: Watch[int] = field(default_factory=lambda: Watch(0))
    """Writes that this node has been sent and has not answered."""
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
        await self._ask("joined", options | {"can_lead": self.can_lead})
        self.joined = True

    @property
    def pid(self) -> int:
        return self._process.pid

    async def write(self, number: int) -> Answer:
        """Have the node write one row. Every end is an answer."""
        if not self.alive:
            return Answer("refused")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._writes[number] = answer
        self._send({"do": "write", "number": number})
        self.under_way._set(len(self._writes))
        return await answer

    async def numbers(self, *, at_least: int) -> list[int]:
        """The rows in the node's own replica. Raises NodeDied."""
        numbers: list[int] = await self._ask("numbers", {"do": "numbers", "at_least": at_least})
        return numbers

    def kill(self) -> None:
        """SIGKILL: no farewell of any kind."""
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
        if not hasattr(self, "_process"):
            return
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
        self.alive = self.leads = False
        for number in list(self._writes):
            self._answered(number, Answer("unknown"))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(self._death())
        self.on_change()

    def _hear(self, message: Message) -> None:
        if "number" in message:
            self._answered(message["number"], Answer(message["outcome"], message.get("epoch", 0)))
        elif "reached" in message:
            self.lag.reached(message["reached"])
        elif "epoch" in message:
            self.epoch, self.rows = message["epoch"], message["rows"]
            self.term, self.leads = message["term"], message["leads"]
            self.on_change()
        else:
            for name, value in message.items():
                if not self._asked[name].done():
                    self._asked[name].set_result(value)

    def _answered(self, number: int, answer: Answer) -> None:
        write = self._writes.pop(number)
        self.under_way._set(len(self._writes))
        if not write.done():  # cancelled, when the demo is interrupted
            write.set_result(answer)

    def _death(self) -> NodeDied:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return NodeDied(f"{self.name} ended by itself; it last said: {lines[-1] if lines else 'nothing'}")
