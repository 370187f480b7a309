"""A leader that finds the log damaged while it asks for the fate of a write."""

from __future__ import annotations

import asyncio

import pytest

from littlebigcluster import Cluster, CorruptLog, NodeSettings, OutcomeUnknown
from littlebigcluster.epochs import Log


async def test_who_waits_for_a_write_is_told_at_once_and_the_node_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster("memory://")
    await cluster.init("lol")

    async def damaged(self: Log, body: bytes, *, term: int) -> None:
        raise CorruptLog(".lbc/00000000000000000009.wal", "an epoch")

    writing: list[asyncio.Task[object]] = []

    async def write_in_vain() -> None:
        async with cluster.join(can_lead=True, settings=NodeSettings(epoch_interval=0)) as node:
            await node.wait_until_leader(timeout=10)
            monkeypatch.setattr(Log, "append", damaged)
            writing.append(asyncio.create_task(node.execute("CREATE TABLE t(x)")))
            await asyncio.sleep(30)

    with pytest.raises(CorruptLog):
        await asyncio.wait_for(write_in_vain(), 20)
    with pytest.raises(OutcomeUnknown):
        await asyncio.wait_for(writing[0], 5)
