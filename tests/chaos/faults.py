"""What is planned is done: each fault as a context that makes it and takes it back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from littlebigcluster import LbcError
from tests import servers
from tests.chaos.clients import Clients
from tests.chaos.node import ChaosNode
from tests.chaos.plan import DELAY, FREEZE, NARROW, PROCESS, RESTART, STORE, STORE_WIRE, WIRE, Planned
from tests.chaos.site import Site


@dataclass(frozen=True)
class Victims:
    planned: Planned
    node: ChaosNode
    """The victim."""
    other: ChaosNode


def possible(site: Site) -> list[str]:
    """The kinds that can be had here, each once."""
    kinds = list(PROCESS)
    if site.network is not None:
        kinds += WIRE
        kinds += NARROW if site.can_narrow else ()
        kinds += DELAY if site.can_delay else ()
        if site.doors:
            kinds += STORE_WIRE
    if site.doors:
        kinds += STORE
    if site.server is not None:
        kinds += FREEZE
        if site.server.kind == "ceph":
            kinds += RESTART
    return kinds


class Faults:
    def __init__(self, site: Site, clients: Clients, say: Callable[[str], None]) -> None:
        self.site, self.clients, self._say = site, clients, say
        self.done: Counter[str] = Counter()
        self.active: dict[int, str] = {}
        """What is going on now, in words."""

    async def run(self, plan: list[Planned]) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for planned in plan:
                await asyncio.sleep(max(0.0, began + planned.at - time.monotonic()))
                group.create_task(self._one(planned))

    async def _one(self, planned: Planned) -> None:
        nodes = [self.site.nodes[number - 1] for number in planned.nodes]
        kind, of_leader = planned.kind.replace(" leader", ""), "leader" in planned.kind or planned.kind == "step down"
        leader = self.clients.leader()
        if of_leader and leader is not None:
            nodes.sort(key=lambda node: node is not leader)
        victims = Victims(planned, nodes[0], nodes[1])
        self.active[id(planned)] = text = f"{planned.kind} {victims.node.number}"
        self._say(f"{text} for {planned.seconds:.1f} s (strength {planned.strength}, other {victims.other.number})")
        try:
            with getattr(self, f"_{kind.replace(' ', '_')}")(victims):
                self.done[planned.kind] += 1
                await asyncio.sleep(planned.seconds)
        finally:
            del self.active[id(planned)]
            self._say(f"{text} is over")

    # -- processes -------------------------------------------------------------------------------------------------

    @contextmanager
    def _kill(self, victims: Victims) -> Iterator[None]:
        victims.node.kill()
        try:
            yield
        finally:
            # Another machine, or a disk that is lost with it; unless another fault has let it come back before.
            if victims.planned.strength < 0.3 and victims.node.pid is None:
                victims.node.disk.wipe()
            victims.node.come_back()

    @contextmanager
    def _leave(self, victims: Victims) -> Iterator[None]:
        victims.node.leave()
        try:
            yield
        finally:
            victims.node.come_back()

    @contextmanager
    def _step_down(self, victims: Victims) -> Iterator[None]:
        host = victims.node.host
        task = asyncio.create_task(_quietly(host.ask("step_down"))) if host is not None else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()

    @contextmanager
    def _stop(self, victims: Victims) -> Iterator[None]:
        victims.node.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            victims.node.signal(signal.SIGCONT)

    @contextmanager
    def _full_disk(self, victims: Victims) -> Iterator[None]:
        disk, pid = victims.node.disk, victims.node.pid
        disk.fill(pid)
        try:
            yield
        finally:
            disk.free(pid)

    # -- the network -----------------------------------------------------------------------------------------------

    @contextmanager
    def _unplug(self, victims: Victims) -> Iterator[None]:
        self.site.wire.unplug(victims.node.number)
        try:
            yield
        finally:
            self.site.wire.plug(victims.node.number)

    def _deaf(self, victims: Victims) -> Any:
        return self._cuts([(victims.node.number, other, "in") for other in self.site.everybody_but(victims.node)])

    def _mute(self, victims: Victims) -> Any:
        return self._cuts([(victims.node.number, other, "out") for other in self.site.everybody_but(victims.node)])

    def _cut_pair(self, victims: Victims) -> Any:
        return self._both_ways([(victims.node.number, victims.other.number)])

    def _cut_one_way(self, victims: Victims) -> Any:
        return self._cuts([(victims.node.number, victims.other.number, "in")])

    def _split(self, victims: Victims) -> Any:
        """Two parts that do not reach each other; both reach the store."""
        numbers = victims.planned.nodes
        at = 1 + int(victims.planned.strength * (len(numbers) - 1))
        return self._both_ways([(one, other) for one in numbers[:at] for other in numbers[at:]])

    def _cut_from_store(self, victims: Victims) -> Any:
        return self._both_ways([(victims.node.number, self.site.store_host)])

    def _store_is_deaf_to_one(self, victims: Victims) -> Any:
        return self._cuts([(victims.node.number, self.site.store_host, "out")])

    def _one_is_deaf_to_store(self, victims: Victims) -> Any:
        """Its requests have effect, and it never learns."""
        return self._cuts([(victims.node.number, self.site.store_host, "in")])

    def _both_ways(self, pairs: list[tuple[int, int]]) -> Any:
        return self._cuts([(one, other, direction) for one, other in pairs for direction in ("in", "out")])

    @contextmanager
    def _cuts(self, cuts: list[tuple[int, int, Any]]) -> Iterator[None]:
        made = []
        try:
            for cut in cuts:
                self.site.wire.cut(*cut)
                made.append(cut)
            yield
        finally:
            for cut in made:
                self.site.wire.cut(*cut, mend=True)

    @contextmanager
    def _lossy(self, victims: Victims) -> Iterator[None]:
        share = 0.1 + 0.5 * victims.planned.strength
        self.site.wire.lossy(victims.node.number, share)
        try:
            yield
        finally:
            self.site.wire.lossy(victims.node.number, share, mend=True)

    @contextmanager
    def _late_packets(self, victims: Victims) -> Iterator[None]:
        self.site.wire.late(victims.node.number, 0.02 + victims.planned.strength * 0.5)
        try:
            yield
        finally:
            self.site.wire.prompt(victims.node.number)

    @contextmanager
    def _narrow_line(self, victims: Victims) -> Iterator[None]:
        self.site.wire.narrow(victims.node.number, int(100 + victims.planned.strength * 900))
        try:
            yield
        finally:
            self.site.wire.prompt(victims.node.number)

    # -- the store -------------------------------------------------------------------------------------------------

    def _slow_store(self, victims: Victims) -> Any:
        return self.site.weather.of("delay_seconds", 0.05 + 1.5 * victims.planned.strength**2)

    def _throttled_store(self, victims: Victims) -> Any:
        return self.site.weather.of("throttled", 0.2 + 0.8 * victims.planned.strength)

    def _lost_answers(self, victims: Victims) -> Any:
        return self.site.weather.of("losing", 0.1 + 0.6 * victims.planned.strength)

    @contextmanager
    def _frozen_store(self, victims: Victims) -> Iterator[None]:
        """What was sent before takes effect when it thaws, long after its sender has given up."""
        assert self.site.server is not None
        pids = self.site.server.pids
        pid = pids["osd"] if "osd" in pids else pids[self.site.server.kind]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def _restarted_gateway(self, victims: Victims) -> Iterator[None]:
        assert self.site.server is not None
        os.kill(self.site.server.pids["gateway"], signal.SIGKILL)
        try:
            yield
        finally:
            servers.restart_gateway(self.site.server)


async def _quietly(work: Any) -> None:
    with contextlib.suppress(LbcError, AssertionError):
        await work
