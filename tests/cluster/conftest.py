"""A cluster in memory, and nodes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from littlebigcluster import Cluster, Node
from littlebigcluster.store import Store
from tests.scenarios.stage import FAST, WAIT, memory


@pytest.fixture
def store() -> Store:
    return memory()


@pytest.fixture
def cluster(store: Store) -> Cluster:
    return Cluster(store)


@pytest.fixture
async def node(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A leader with a table."""
    await cluster.init("lol")
    settings = replace(FAST, **getattr(request, "param", {}))
    async with cluster.join(can_lead=True, settings=settings, address="127.0.0.1:0") as node:
        await node.wait_until_leader(timeout=WAIT)
        await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL)")
        yield node
