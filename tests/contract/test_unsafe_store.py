"""A store that ignores conditions would allow two leaders, and is refused by name."""

from __future__ import annotations

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import UnsafeStore
from littlebigcluster.store import Created, open_store, probe_exists, probe_race


async def test_store_that_ignores_conditions_loses_the_race(unsafe_url: str, clock: Clock) -> None:
    store = open_store(unsafe_url, clock=clock)
    with pytest.raises(UnsafeStore, match="does not honour conditional creates") as caught:
        await probe_race(store, clock=clock)
    assert store.url in str(caught.value)
    assert "s3://test-" in str(caught.value)
    assert await store.list("") == [], "the probe cleans up"


async def test_store_that_creates_twice_is_found_out_at_join(unsafe_url: str, clock: Clock) -> None:
    store = open_store(unsafe_url, clock=clock)
    assert await store.create("identity", b"me") == Created()
    with pytest.raises(UnsafeStore, match="identity exists, and could be created again"):
        await probe_exists(store, "identity", b"me")
