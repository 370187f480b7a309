"""The end of a node, and what it says to wrong calls."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import (
    Cluster,
    LbcError,
    Node,
    NodeSettings,
)
from littlebigcluster.database import Primary
from littlebigcluster.roles import leader
from tests.scenarios.stage import FAST, WAIT


async def test_nothing_works_after_the_end_and_says_so(cluster: Cluster) -> None:
    await cluster.init("lol")
    async with cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
        await node.wait_until_leader(timeout=WAIT)
    with pytest.raises(LbcError):
        await node.read("SELECT 1")
    with pytest.raises(LbcError):
        await node.read("SELECT 1", consistency="strong")
    with pytest.raises(LbcError):
        await node.execute("SELECT 1")
    with pytest.raises(LbcError), node.connection():
        pass
    with pytest.raises(LbcError):
        await node.wait_until_leader(timeout=1)


async def test_an_exception_of_the_body_comes_out_as_it_is(cluster: Cluster) -> None:
    class Mine(Exception):
        pass

    await cluster.init("lol")
    with pytest.raises(Mine):  # noqa: PT012
        async with cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=WAIT)
            raise Mine
    # and the leadership was released all the same
    assert (await cluster.status()).leader is None


async def test_a_failure_in_the_background_ends_the_body_and_comes_out(cluster: Cluster) -> None:
    await cluster.init("lol")
    reached = False
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:

            async def fail() -> Any:
                raise ZeroDivisionError

            node._local.log.next = fail  # type: ignore[method-assign]
            await asyncio.sleep(WAIT)
            reached = True
    assert not reached
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # and the cancellation does not linger


async def test_a_failure_in_the_background_at_the_moment_at_which_the_body_ends_comes_out(cluster: Cluster) -> None:
    await cluster.init("lol")
    joining = cluster.join(settings=FAST, address="127.0.0.1:0")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with joining as node:

            async def fail() -> Any:
                raise ZeroDivisionError

            node._local.log.next = fail  # type: ignore[method-assign]
            while not joining._main.done():  # noqa: ASYNC110 - in the same turn of the loop
                await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_failure_in_the_background_does_not_hide_one_of_the_body(cluster: Cluster) -> None:
    class Mine(Exception):
        pass

    await cluster.init("lol")
    with pytest.raises(Mine):  # noqa: PT012
        async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:

            async def fail() -> Any:
                raise ZeroDivisionError

            node._local.log.next = fail  # type: ignore[method-assign]
            try:
                await asyncio.sleep(WAIT)
            except asyncio.CancelledError:
                raise Mine from None


async def test_a_cancelled_body_is_cancelled(cluster: Cluster) -> None:
    await cluster.init("lol")
    inside = asyncio.Event()

    async def body() -> None:
        async with cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0") as node:
            await node.wait_until_leader(timeout=WAIT)
            inside.set()
            await asyncio.sleep(WAIT)

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await cluster.status()).leader is None


# -- wrong calls ---------------------------------------------------------------------------------------------------


def test_bad_arguments_of_join_raise_at_the_call(cluster: Cluster) -> None:
    bad: list[dict[str, Any]] = [
        {"az": 5}, {"az": None}, {"can_lead": "no"}, {"settings": {}}, {"settings": "fast"}, {"roles": "one"},
        {"roles": [1]}, {"address": "host:port:x"}, {"metadata": {"x": object()}}, {"metadata": {"x": "y" * 5000}},
    ]  # fmt: skip
    for arguments in bad:
        with pytest.raises((TypeError, ValueError)):
            cluster.join(**arguments)


@pytest.mark.parametrize("place", [5, None, b"x", "", "ftp://x", "s3://"])
def test_bad_places_raise_at_the_call(place: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Cluster(place)


@pytest.mark.parametrize(
    "settings",
    [
        {"leader_timeout": 0}, {"poll_interval": -1}, {"epoch_interval": "1"}, {"readers": 0}, {"epoch_burst": True},
        {"fence_validity": 3600}, {"write_timeout": float("nan")}, {"max_epoch_bytes": -5}, {"snapshot_growth": 0},
    ],
)  # fmt: skip
def test_bad_settings_raise_at_the_call(settings: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        NodeSettings(**settings)


async def test_bad_arguments_of_reads_and_writes_raise(node: Node) -> None:
    calls: list[Any] = [
        lambda: node.read("SELECT 1", consistency="weak"),
        lambda: node.read("SELECT 1", at_least="5"),
        lambda: node.read("SELECT 1", at_least=True),
        lambda: node.read("SELECT 1", timeout="soon"),
        lambda: node.read(5),
        lambda: node.read("SELECT ?", 5),
        lambda: node.execute(5),
        lambda: node.execute("SELECT ?", 5),
        lambda: node.executemany(5, []),
        lambda: node.executescript(5),
        lambda: node.transaction("SELECT 1"),
        lambda: node.transaction(lambda db: None, timeout="soon"),
        lambda: node.wait_until_leader(timeout="soon"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises((TypeError, ValueError, sqlite3.ProgrammingError)):  # noqa: PT012
            await call()
            pytest.fail(f"call {number} was accepted")


async def test_a_node_that_cannot_lead_does_not_wait_to(cluster: Cluster) -> None:
    await cluster.init("lol")
    async with cluster.join(settings=FAST, address="127.0.0.1:0") as node:
        with pytest.raises(ValueError, match="can_lead"):
            await node.wait_until_leader()


async def test_the_cluster_s_own_objects_are_out_of_reach(node: Node) -> None:
    await node.store.put("mine/x", b"1")
    assert await node.store.get("mine/x") == b"1"
    with pytest.raises(ValueError, match="lbc"):
        await node.store.put(".lbc/cluster.json", b"")
    assert [info.key for info in await node.store.list("")] == ["mine/x"]


async def test_a_primary_that_is_being_made_when_the_node_ends_is_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread makes files in the directory that is removed next."""
    making, go_on, there = threading.Event(), threading.Event(), list[bool]()
    create = Primary.create

    def slowly(path: Path, *arguments: Any, **options: Any) -> Primary:
        making.set()
        assert go_on.wait(30)
        there.append(path.parent.exists())
        return create(path, *arguments, **options)

    monkeypatch.setattr(Primary, "create", slowly)
    monkeypatch.setattr(leader, "_THREAD_SECONDS", 0.01)
    await cluster.init("lol")
    joining = cluster.join(can_lead=True, settings=FAST, address="127.0.0.1:0")
    await joining.__aenter__()
    assert await asyncio.to_thread(making.wait, 30)
    ending = asyncio.create_task(joining.__aexit__(None, None, None))
    await asyncio.sleep(0)
    ending.cancel()  # at once, then
    await asyncio.wait([ending], timeout=0.3)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert there == [True]
