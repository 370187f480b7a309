"""A pin goes with whoever holds it, at whatever moment that one is cancelled."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.epochs.pins import pinned
from littlebigcluster.store import disk, open_store


@pytest.mark.parametrize("number", [1, 2], ids=["made", "renewed"])
async def test_a_pin_that_is_being_written_when_its_holder_is_cancelled_does_not_come_back(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    writing, go_on, left = threading.Event(), threading.Event(), number
    open_new = disk.open_new

    def slowly(path: Path) -> object:
        nonlocal left
        left -= 1
        if not left:
            writing.set()
            assert go_on.wait(30)
        return open_new(path)

    async def hold() -> None:
        async with pinned(store, 1, ttl_seconds=0.2, clock=clock):
            await asyncio.Event().wait()

    store = open_store(tmp_path / "store", clock=clock)
    monkeypatch.setattr(disk, "open_new", slowly)
    holding = asyncio.create_task(hold())
    assert await asyncio.to_thread(writing.wait, 30)
    holding.cancel()
    await asyncio.wait([holding], timeout=0.2)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await holding
    store._pool.shutdown(wait=True)  # type: ignore[attr-defined]
    assert await open_store(tmp_path / "store", clock=clock).list(names.PINS) == []
