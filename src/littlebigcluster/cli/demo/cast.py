"""The nodes of the demo: starting them, finding the leader, ending them all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from littlebigcluster.cli.demo.lag import Lag
from littlebigcluster.cli.demo.process import NodeProcess
from littlebigcluster.cli.demo.view import NodeState
from littlebigcluster.clock import Clock


@dataclass(frozen=True, slots=True)
class Part:
    """What a node is to be."""

    can_lead: bool
    az: str
    roles: tuple[str, ...]


PARTS = {
    "node 1": Part(True, "AZ0", ("web",)),
    "node 2": Part(True, "AZ1", ("web",)),
    "node 3": Part(False, "AZ0", ("worker",)),
    "node 4": Part(False, "AZ1", ("worker",)),
}


class Cast:
    """All nodes, dead ones too until they are replaced, in the order of their names."""

    def __init__(self, store: str, directory: Path, settings: dict[str, Any], *, clock: Clock) -> None:
        self._store, self._directory, self._settings, self._clock = store, directory, settings, clock
        self._lags_seconds: dict[str, list[float]] = {}
        self._described: dict[str, tuple[str, str]] = {}
        self.nodes: dict[str, NodeProcess] = {}

    async def start(self, name: str) -> NodeProcess:
        """Start a node under a name that no living one has; returns when it has joined. Raises NodeDied."""
        part, log = PARTS[name], self._directory / f"{name.replace(' ', '-')}.log"
        lag = Lag(self._clock)
        lag.all_seconds = self._lags_seconds.setdefault(name, [])  # one list for all lives of this name
        node = self.nodes[name] = NodeProcess(name, part.can_lead, log, lag, self._durable)
        await node.start(
            {
                "store": self._store,
                "directory": str(self._directory / f"copy-{self._clock.token(4).hex()}"),
                "can_lead": part.can_lead,
                "az": part.az,
                "roles": part.roles,
                "settings": self._settings,
            }
        )
        return node

    @property
    def alive(self) -> list[NodeProcess]:
        return [node for node in self.nodes.values() if node.alive]

    @property
    def leader(self) -> NodeProcess | None:
        """Who leads. A former leader that has not noticed yet is in an older term."""
        return max((node for node in self.alive if node.leads), key=lambda node: node.term, default=None)

    def all_know_all(self) -> bool:
        """Whether every living node lists exactly the living ones as members."""
        ids = {node.id for node in self.alive}
        return all(node.members.keys() == ids for node in self.alive)

    async def stop(self) -> None:
        """End all of them. Followers first: it is the leader's farewell that takes long."""
        await asyncio.gather(*(node.stop() for node in sorted(self.alive, key=lambda node: node.leads)))

    def lags_seconds(self) -> dict[str, list[float]]:
        """Every lag, by the name of the node."""
        return dict(sorted(self._lags_seconds.items()))

    def states(self, writes: Mapping[str, int]) -> list[NodeState]:
        """How each node stands, as it last said itself; zone and roles as the members say of each other.

        `writes` is how many were acknowledged through each.
        """
        for node in self.alive:
            self._described |= node.members
        return [
            NodeState(
                node.name,
                _state(node),
                node.pid if node.alive else None,
                *self._described.get(node.id, ("", "")),
                node.epoch,
                node.rows,
                writes.get(name, 0),
                node.lag.worst_of_late() if node.joined and not node.leads else None,
            )
            for name, node in sorted(self.nodes.items())
        ]

    def _durable(self, by: NodeProcess, epoch: int, at: float) -> None:
        for node in self.alive:
            if node is not by:
                node.lag.durable(epoch, at)


def _state(node: NodeProcess) -> str:
    if node.killed:
        return "killed"
    if not node.alive:
        return "dead" if node.joined else "starting"
    if not node.joined:
        return "starting"
    if node.leads:
        return "leader"
    return "standby" if node.can_lead else "follower"
