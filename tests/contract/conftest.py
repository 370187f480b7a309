"""Every store that must keep the contract, each empty."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from obstore.store import S3Store

from littlebigcluster.clock import Clock
from littlebigcluster.store import Location, Store, open_store
from tests import buckets

BACKENDS = (
    "directory",
    "memory",
    pytest.param("ministack", marks=pytest.mark.server("ministack")),
    pytest.param("ceph", marks=pytest.mark.server("ceph")),
    pytest.param("azurite", marks=pytest.mark.server("azurite")),
    pytest.param("own obstore", marks=pytest.mark.server("ministack")),
)


@pytest.fixture(params=BACKENDS)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where the store is."""
    match request.param:
        case "directory":
            return tmp_path / "not" / "there yet"
        case "memory":
            return "memory://"
        case "azurite":
            return buckets.new_azure_url(request.getfixturevalue("azurite"))
        case "own obstore":
            # As a user would make it, so with obstore's default of ten retries.
            server = request.getfixturevalue("ministack")
            return S3Store(
                buckets.new_bucket(server),
                prefix="of/the user",
                config=buckets.s3_config(server),  # type: ignore[arg-type]
                client_options={"allow_http": True},
            )
        case kind:
            return buckets.new_s3_url(request.getfixturevalue(kind))


@pytest.fixture
async def store(location: Location, clock: Clock) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    opened = open_store(location, clock=clock)
    yield opened
    await opened.close()
