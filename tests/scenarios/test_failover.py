"""Processes whose leader dies, freezes or is cut off: replaced in seconds, though `leader_timeout` is a minute."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.namespaces import network
from tests.scenarios.host import LOOPBACK, Host, Hosts, all_know, hosts
from tests.scenarios.stage import WAIT

pytestmark = pytest.mark.slow

STANDBY = {**LOOPBACK, "can_lead": True}
PATIENT: dict[str, Any] = {"leader_timeout": 60, "poll_interval": 1, "member_timeout": 10}
SOON_SECONDS = 15.0
"""It takes two; the machine may be busy. Far below what silence would take."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with hosts(tmp_path / "store") as made:
        yield made


async def is_led_by(leader: Host, *others: Host, term: int) -> None:
    """All agree, and go on agreeing."""
    for host in (leader, *others):
        await host.sees(lambda status: status["term"] == term and status["leader"]["uuid"] == str(leader.id))
    for host in others:
        await host.sees(lambda status: status["fed"] and not status["is_leader"])
    await asyncio.sleep(3)
    assert {(await host.status())["term"] for host in (leader, *others)} == {term}


async def test_a_killed_leader_is_replaced_in_seconds_and_is_a_standby_when_it_comes_back(cluster: Hosts) -> None:
    a = await cluster.leader(**PATIENT)
    b, c = await cluster.start(join=STANDBY, **PATIENT), await cluster.start(**PATIENT)
    await all_know(a, b, c)
    await cluster.forward(c)
    a.signal(signal.SIGKILL)
    began = time.monotonic()
    assert await cluster.forward(c) == "acknowledged"
    assert time.monotonic() - began < SOON_SECONDS
    await a.ends()
    again = await cluster.start(join={**STANDBY, "leader_priority": 5}, **PATIENT)
    await is_led_by(b, again, c, term=2)
    await cluster.check(again, b, c)


async def test_a_frozen_leader_is_replaced_in_seconds_and_fenced_when_it_goes_on(cluster: Hosts) -> None:
    a = await cluster.leader(**PATIENT)
    b, c = await cluster.start(join=STANDBY, **PATIENT), await cluster.start(**PATIENT)
    await all_know(a, b, c)
    late = asyncio.create_task(cluster.forward(a))
    a.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert await cluster.forward(c) == "acknowledged"
    assert time.monotonic() - began < SOON_SECONDS
    a.signal(signal.SIGCONT)
    await late
    fates = [await cluster.forward(a)]
    while fates[-1] == "refused" and len(fates) < 5:  # it finds out only by being fenced
        fates.append(await cluster.forward(a))
    assert fates[-1] == "acknowledged", fates  # by way of the new one
    await is_led_by(b, a, c, term=2)
    await cluster.check(a, b, c)


async def test_a_standby_that_was_frozen_does_not_take_over_when_it_goes_on(cluster: Hosts) -> None:
    """Its feed broke meanwhile, and there is nobody to ask but the leader, which is idle in the store."""
    a = await cluster.leader(**PATIENT)
    b = await cluster.start(join=STANDBY, **PATIENT)
    await all_know(a, b)
    for seconds in (2.5, 12):
        b.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        b.signal(signal.SIGCONT)
        await is_led_by(a, b, term=1)
    await cluster.check(a, b)


async def test_a_leader_that_is_cut_off_is_replaced_once_and_nothing_flaps(tmp_path: Path) -> None:
    """It reaches the store all the time, and is idle. It cannot hear the new one, so it does not take back."""
    settings = {**PATIENT, "leader_timeout": 20}
    with network(3) as wire:
        async with hosts(tmp_path / "store") as cluster:
            a = await cluster.leader(prefix=wire.inside(1), join={}, **settings)
            b = await cluster.start(prefix=wire.inside(2), join={"can_lead": True}, **settings)
            c = await cluster.start(prefix=wire.inside(3), join={}, **settings)
            await all_know(a, b, c)
            for host in (b, c):
                await host.sees(lambda status: status["fed"])
            wire.unplug(1)
            began = time.monotonic()
            assert await cluster.forward(c) == "acknowledged"
            assert time.monotonic() - began < SOON_SECONDS
            await a.sees(lambda status: not status["is_leader"], within_seconds=WAIT)
            await asyncio.sleep(6)
            assert [(await host.status())["term"] for host in (a, b, c)] == [2, 2, 2]
            wire.plug(1)
            await is_led_by(b, a, c, term=2)
            await cluster.check(a, b, c)
