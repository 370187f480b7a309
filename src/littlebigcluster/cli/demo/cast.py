"""The nodes of the demo: starting them, finding the leader, ending them all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from littlebigcluster.cli.demo.lag import Lag
from littlebigcluster.cli.demo.process import NodeProcess
from littlebigcluster.cli.demo.view import NodeState
from littlebigcluster.clock import Clock
from littlebigcluster.watch import Watch


class Cast:
    """All nodes, dead ones too until they are replaced, in the order of their names."""

    def __init__(self, store: str, directory: Path, settings: dict[str, Any], *, clock: Clock) -> None:
        self._store, self._directory, self._settings, self._clock = store, directory, settings, clock
        self._last_epoch = 0
        self.nodes: dict[str, NodeProcess] = {}
        self.leader: Watch[NodeProcess | None] = Watch(None)

    async def start(self, name: str, *, can_lead: bool) -> NodeProcess:
        """Start a node under a name that no living one has; returns when it has joined. Raises NodeDied."""
        log = self._directory / f"{name.replace(' ', '-')}.log"
        node = NodeProcess(name, can_lead, self._find_leader, log, Lag(self._clock))
        self.nodes[name] = node
        number = len(self.nodes)
        await node.start(
            {
                "store": self._store,
                "directory": str(self._directory / f"copy-{self._clock.token(4).hex()}"),
                "az": f"AZ{number % 2}",
                "settings": self._settings,
            }
        )
        return node

    @property
    def alive(self) -> list[NodeProcess]:
        return [node for node in self.nodes.values() if node.alive]

    async def stop(self) -> None:
        """End all of them. Followers first: it is the leader's farewell that takes long."""
        started = [node for node in self.nodes.values() if node.alive]
        await asyncio.gather(*(node.stop() for node in sorted(started, key=lambda node: node.leads)))

    def acknowledged(self, epoch: int) -> None:
        """The leader has acknowledged a write of this epoch: now the others can be behind it."""
        if epoch > self._last_epoch:
            self._last_epoch = epoch
            for node in self.alive:
                if node.joined and not node.leads:
                    node.lag.acknowledged(epoch)

    def lags_seconds(self) -> list[float]:
        """Every lag of every node that still lives."""
        return [lag for node in self.alive for lag in node.lag.all_seconds]

    def states(self) -> list[NodeState]:
        """How each node stands, as it last said itself."""
        return [
            NodeState(
                node.name,
                _role(node),
                node.pid if node.alive else None,
                node.term,
                node.epoch,
                node.rows,
                node.lag.worst_of_late(),
            )
            for node in self.nodes.values()
        ]

    def _find_leader(self) -> None:
        leaders = [node for node in self.alive if node.leads]
        # A former leader that has not noticed yet is in an older term.
        self.leader._set(max(leaders, key=lambda node: node.term, default=None))


def _role(node: NodeProcess) -> str:
    if not node.alive:
        return "killed"
    if not node.joined:
        return "starting"
    if node.leads:
        return "leader"
    return "standby" if node.can_lead else "follower"
