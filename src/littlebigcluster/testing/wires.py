"""Connections between simulated machines: messages arrive in order, late, or not at all."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from littlebigcluster.testing.loop import Machine, VirtualLoop

if TYPE_CHECKING:
    from littlebigcluster.testing.network import Exchange, SimulatedServer

NOTICED_SECONDS = (2.0, 4.0)
"""After so long a peer that does not answer is given up: pings, and the time-outs of TCP."""


class Net:
    """All wires: who listens where, and what is cut."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.latency_seconds = 0.001
        self.listening: dict[str, SimulatedServer] = {}
        self.dark: set[str] = set()
        """Addresses of machines without power."""
        self.connections: dict[Connection, None] = {}
        self.faults: Counter[str] = Counter()
        self._cuts: dict[tuple[str, str], None] = {}
        self._held: dict[_Wire, None] = {}

    def latency(self) -> float:
        return self.loop.chance.lognormvariate(math.log(self.latency_seconds), 0.7)

    def is_cut(self, source: Machine, target: Machine) -> bool:
        return (source.name, target.name) in self._cuts

    def cut(self, source: str, target: str) -> None:
        """Nothing that `source` sends reaches `target` any more; what is under way waits, as TCP sends it again."""
        self._cuts[source, target] = None
        for connection in list(self.connections):
            if {connection.client.name, connection.machine.name} == {source, target}:
                self._watch(connection)

    def mend(self, source: str, target: str) -> None:
        self._cuts.pop((source, target), None)
        held, self._held = self._held, {}
        for wire in held:
            wire.pump()

    def mend_all(self) -> None:
        for source, target in list(self._cuts):
            self.mend(source, target)

    def stands_still(self, machine: Machine) -> None:
        """Those who are connected to it will notice."""
        for connection in list(self.connections):
            if connection.machine is machine:
                self._watch(connection)

    def dies(self, machine: Machine, *, silently: bool) -> None:
        """Its kernel tells the peers, or, without power, nobody does."""
        machine.dead = True
        for address, server in list(self.listening.items()):
            if server.machine is machine:
                del self.listening[address]
                if silently:
                    self.dark.add(address)
        for connection in list(self.connections):
            if machine in (connection.client, connection.machine):
                connection.half_dead = True
                other = connection.machine if machine is connection.client else connection.client
                if silently or self.is_cut(machine, other):
                    self._watch(connection)
                else:
                    self.loop.after(self.latency(), connection.lose, "connection reset")

    def _watch(self, connection: Connection) -> None:
        least, most = NOTICED_SECONDS
        self.loop.after(least + self.loop.chance.random() * (most - least), self._give_up, connection)

    def _give_up(self, connection: Connection) -> None:
        client, machine = connection.client, connection.machine
        cut = self.is_cut(client, machine) or self.is_cut(machine, client)
        if connection.open and (cut or machine.frozen or connection.half_dead):
            self.faults["connection given up"] += 1
            connection.lose("no sign of life of the peer")


class _Wire:
    """One direction of a connection."""

    def __init__(self, net: Net, source: Machine, target: Machine) -> None:
        self._net, self._source, self._target = net, source, target
        self._sent: deque[tuple[float, Callable[[], object], Context]] = deque()
        self._last = 0.0

    def send(self, deliver: Callable[[], object], context: Context) -> None:
        """Call `deliver` in `context` when it has arrived."""
        loop = self._net.loop
        self._last = max(self._last, loop.now + self._net.latency())
        self._sent.append((self._last, deliver, context))
        loop.after(self._last - loop.now, self.pump)

    def pump(self) -> None:
        loop = self._net.loop
        while self._sent and self._sent[0][0] <= loop.now:
            if self._net.is_cut(self._source, self._target):
                self._net._held[self] = None
                return
            _, deliver, context = self._sent.popleft()
            loop.call_soon(deliver, context=context.copy())


class Connection:
    """From a client to a server, with the exchanges on it."""

    def __init__(self, net: Net, client: Machine, server: SimulatedServer, client_context: Context) -> None:
        self.net, self.client, self.server, self.machine = net, client, server, server.machine
        self.client_context, self.server_context = client_context, server.context
        self.up, self.down = _Wire(net, client, server.machine), _Wire(net, server.machine, client)
        self.open = True
        self.half_dead = False
        self.exchanges: dict[Exchange, None] = {}
        net.connections[self] = None

    def send(self, deliver: Callable[..., object], *arguments: Any) -> None:
        """To the server."""
        self.up.send(lambda: deliver(*arguments), self.server_context)

    def reply(self, deliver: Callable[..., object], *arguments: Any) -> None:
        """To the client."""
        self.down.send(lambda: deliver(*arguments), self.client_context)

    def lose(self, reason: str) -> None:
        """It breaks; both sides notice."""
        if not self.open:
            return
        self.open = False
        self.net.connections.pop(self, None)
        loop = self.net.loop
        for exchange in list(self.exchanges):
            if not self.client.dead:
                loop.call_soon(exchange.fail, reason, context=self.client_context.copy())
            if not self.machine.dead:
                loop.call_soon(exchange.client_left, context=self.server_context.copy())
