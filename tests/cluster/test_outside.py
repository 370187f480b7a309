"""What a tool says that cannot talk to the leader, and what to do."""

from __future__ import annotations

import asyncio
import socket
from uuid import UUID

import pytest

from littlebigcluster import Cluster, NodeSettings, PeerUnavailable
from littlebigcluster.clock import Clock
from littlebigcluster.cluster.outside import ask
from littlebigcluster.epochs import Leader
from tests.cluster.group import within
from tests.scenarios.stage import memory


async def closes_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.close()


async def told(port: int, settings: NodeSettings, clock: Clock) -> str:
    store = memory()
    await Cluster(store).init("lol")
    leader = Leader(UUID(int=1), f"127.0.0.1:{port}", "AZ0")
    with pytest.raises(PeerUnavailable) as caught:
        await within(ask(store, leader, "GET", "/.lbc/status", settings=settings, clock=clock))
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "how", "advice"),
    [
        (NodeSettings(tls="off"), "without TLS", "the nodes run with TLS: leave out --tls off"),
        (
            NodeSettings(),
            "over TLS with the cluster's certificates",
            "do the nodes run without TLS (--tls off), or with certificates of their own",
        ),
    ],
    ids=["plain", "tls"],
)
async def test_a_connection_that_breaks_is_perhaps_of_the_wrong_kind(
    settings: NodeSettings, how: str, advice: str, clock: Clock
) -> None:
    async with await asyncio.start_server(closes_at_once, "127.0.0.1", 0) as server:
        text = await told(server.sockets[0].getsockname()[1], settings, clock)
    assert text.startswith(f"no talking to the leader {how}: GET http")
    assert f": the connection broke; {advice}" in text


async def test_a_leader_that_nobody_is_any_more_is_perhaps_dead(clock: Clock) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        text = await told(nobody.getsockname()[1], NodeSettings(), clock)
    assert text.endswith("(connection refused); if it is dead, the next node that can lead takes over")
