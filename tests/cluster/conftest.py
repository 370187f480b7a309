"""A cluster in memory, and nodes of it."""

from __future__ import annotations

import pytest

from littlebigcluster import Cluster
from littlebigcluster.store import Store
from tests.scenarios.stage import memory


@pytest.fixture
def store() -> Store:
    return memory()


@pytest.fixture
def cluster(store: Store) -> Cluster:
    return Cluster(store)
