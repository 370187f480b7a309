"""Where it all happens: the nodes, the network between them, the store behind its doors, the disks."""

from __future__ import annotations

import random
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from littlebigcluster import Cluster
from tests import servers
from tests.buckets import new_bucket, s3_config
from tests.chaos.node import ChaosNode, Disk
from tests.namespaces import Network, why_not
from tests.scenarios.host import LOOPBACK
from tests.servers import Server
from tests.tools.proxy import Break, proxied

ZONES = ("a", "b", "c")
STORE_TIMEOUT_SECONDS = 2.0
SETTINGS: dict[str, Any] = {
    "epoch_interval": 0,
    "leader_timeout": 3,
    "suspect_timeout": 1,
    "poll_interval": 0.4,
    "member_timeout": 3,
    "fence_validity": 4,
    "snapshot_epochs": 150,
    "write_timeout": 6,
    "readers": 2,
}
"""Small machines, and a life of a minute: everything that happens in a day should happen in it."""


@dataclass
class Weather:
    """What becomes of requests on their way to the store."""

    chance: random.Random
    delay_seconds: float = 0.0
    throttled: float = 0.0
    """This share of requests is answered 503 SlowDown, and does not get there."""
    losing: float = 0.0
    """This share gets there, and the answer is lost."""

    def delay(self) -> float:
        return self.delay_seconds * self.chance.uniform(0.5, 1.5)

    def rule(self, method: str, path: str) -> Break | int | None:
        if self.chance.random() < self.throttled:
            return 503
        if self.chance.random() < self.losing:
            return self.chance.choice([Break.RESET_AFTER, Break.HANG_AFTER])
        return None

    @contextmanager
    def of(self, name: str, value: float) -> Iterator[None]:
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, 0.0)


@dataclass
class Site:
    cluster: Cluster
    """As seen by one whom no fault meets."""
    place: str
    """The store, in the same way."""
    weather: Weather
    nodes: list[ChaosNode] = field(default_factory=list)
    network: Network | None = None
    can_narrow: bool = False
    can_delay: bool = False
    server: Server | None = None
    doors: bool = False
    """Whether nodes reach the store through doors of ours."""
    not_tested: list[str] = field(default_factory=list)
    """What cannot be had on this machine, and why."""
    ought_to_be_tested: bool = False
    """Whether a network is permitted here, and could only not be made."""

    @property
    def wire(self) -> Network:
        assert self.network is not None
        return self.network

    @property
    def store_host(self) -> int:
        return len(self.nodes) + 1

    def everybody_but(self, node: ChaosNode) -> list[int]:
        """All other addresses, the store's too."""
        return [number for number in range(1, len(self.nodes) + 2) if number != node.number]


@asynccontextmanager
async def site(store: str, number: int, directory: Path, seed: int) -> AsyncIterator[Site]:
    """All of it, and a new cluster in the store; the nodes do not run yet. Raises Unavailable."""
    async with AsyncExitStack() as stack:
        server, bucket = None, ""
        if store == "directory":
            place = str(directory / "store")
        else:
            server = stack.enter_context(servers.own_server(store, directory / "server"))
            bucket = new_bucket(server)
            place = _url(server, bucket, server.endpoint)
        made = Site(Cluster(place), place, Weather(random.Random(seed)), server=server, doors=server is not None)
        _build_network(made, number + 1, stack)
        await made.cluster.init("chaos")
        for each in range(1, number + 1):
            reached = place if server is None else await _door(made, server, bucket, number + 1, stack)
            made.nodes.append(_node(made, each, reached, directory, stack))
        if not all(node.disk.is_own for node in made.nodes):
            made.not_tested.append("NOT TESTED: full disks (mounting is not permitted); limited file sizes are")
        if server is None:
            made.not_tested.append("NOT TESTED: faults of the store (it is a directory)")
        yield made


def _url(server: Server, bucket: str, endpoint: str) -> str:
    query = urlencode({**s3_config(server), "endpoint": endpoint, "allow_http": "true"})
    return f"s3://{bucket}/prefix?{query}"


def _build_network(made: Site, hosts: int, stack: AsyncExitStack) -> None:
    network = Network(hosts)
    stack.callback(network.remove)
    try:
        network.build()
    except (OSError, subprocess.SubprocessError) as error:
        message, made.ought_to_be_tested = why_not(error)
        made.not_tested.append(f"{message.strip()}: no cuts between nodes, nor between nodes and store")
        return
    made.network = network
    made.can_narrow = _can(made, lambda: network.narrow(1, 1000), "narrow lines")
    made.can_delay = _can(made, lambda: network.late(1, 0.01), "late packets by netem")
    network.prompt(1)


def _can(made: Site, what: Callable[[], None], name: str) -> bool:
    try:
        what()
    except subprocess.SubprocessError:
        made.not_tested.append(f"NOT TESTED: {name} (this kernel cannot do it)")
        return False
    return True


async def _door(made: Site, server: Server, bucket: str, store_host: int, stack: AsyncExitStack) -> str:
    """A way to the store on which the weather may be bad; its URL."""
    listening = made.network.listen(store_host) if made.network is not None else None
    address = made.network.address(store_host) if made.network is not None else "127.0.0.1"
    proxy = await stack.enter_async_context(proxied(server.port, listening))
    proxy.rule, proxy.delay_seconds = made.weather.rule, made.weather.delay
    return _url(server, bucket, f"http://{address}:{proxy.port}")


def _node(made: Site, number: int, place: str, directory: Path, stack: AsyncExitStack) -> ChaosNode:
    disk = Disk(directory / f"disk-{number}")
    stack.callback(disk.remove)
    log = stack.enter_context((directory / f"node-{number}.log").open("ab"))
    zone = ZONES[number % len(ZONES)]
    return ChaosNode(
        number,
        place,
        prefix=made.network.inside(number) if made.network is not None else (),
        join={"can_lead": True, "az": zone, **({} if made.network is not None else LOOPBACK)},
        settings=SETTINGS,
        store_timeout=STORE_TIMEOUT_SECONDS,
        disk=disk,
        log=log,
    )
