"""The nodes of the demo: starting them, finding the leader, ending them all."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

from littlebigcluster.cli.demo.process import NodeProcess
from littlebigcluster.cli.demo.view import NodeState
from littlebigcluster.clock import Clock
from littlebigcluster.watch import Watch


class Cast:
    """All nodes, dead ones too until they are replaced, in the order of their names."""

    def __init__(self, store: str, directory: Path, settings: dict[str, Any], *, clock: Clock) -> None:
        self._store, self._directory, self._settings, self._clock = store, directory, settings, clock
        self._acknowledged_at: deque[tuple[int, float]] = deque()
        self.nodes: dict[str, NodeProcess] = {}
        self.leader: Watch[NodeProcess | None] = Watch(None)

    async def start(self, name: str, *, can_lead: bool) -> NodeProcess:
        """Start a node under a name that no living one has; returns when it has joined. Raises NodeDied."""
        node = NodeProcess(name, can_lead, self._find_leader, self._directory / f"{name.replace(' ', '-')}.log")
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
        """The leader has acknowledged a write of this epoch: now a node can be behind it."""
        if not self._acknowledged_at or self._acknowledged_at[-1][0] < epoch:
            self._acknowledged_at.append((epoch, self._clock.monotonic()))

    def states(self) -> list[NodeState]:
        """How each node stands, as it last said itself."""
        slowest = min((node.epoch for node in self.alive if node.joined), default=0)
        while self._acknowledged_at and self._acknowledged_at[0][0] <= slowest:
            self._acknowledged_at.popleft()
        return [self._state(node) for node in self.nodes.values()]

    def _state(self, node: NodeProcess) -> NodeState:
        missing = [at for epoch, at in self._acknowledged_at if epoch > node.epoch]
        return NodeState(
            node.name,
            _role(node),
            node.pid if node.alive else None,
            node.term,
            node.epoch,
            node.rows,
            len(missing),
            self._clock.monotonic() - missing[0] if missing else 0.0,
        )

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
