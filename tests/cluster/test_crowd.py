"""Many followers: what they ask of a leader, together, stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import fed, frames
from littlebigcluster.cluster.fed import Reporter, pause_before_retry
from littlebigcluster.cluster.membership import Member, Members
from littlebigcluster.cluster.presence import Presence
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net import Client
from littlebigcluster.testing import Simulation, run
from littlebigcluster.watch import Watch
from tests.cluster.group import eventually, group, within
from tests.scenarios.stage import WAIT

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# -- whole nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_crowd_of_nodes_joins_at_once_and_leaves_at_once_while_the_leader_writes() -> None:
    count = 30
    settings = {"leader_timeout": 20.0, "poll_interval": 1.0}
    async with group() as g:
        leader = await g.leader(settings=settings)
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await leader.execute("INSERT INTO job VALUES ('x')")
                written += 1
                await asyncio.sleep(0.02)

        writing = asyncio.create_task(write())
        nodes = await asyncio.gather(*(g.node(settings=settings) for _ in range(count)))
        written_meanwhile = written
        everybody = sorted(node.id for node in (leader, *nodes))
        for node in (leader, *nodes):
            await node.members.until(lambda members: [each.id for each in members] == everybody, timeout=WAIT)
        epoch = leader.epoch.value
        for node in nodes:
            await node.epoch.until(lambda now: now >= epoch, timeout=WAIT)
        await asyncio.gather(*map(g.leave, nodes))
        await leader.members.until(lambda members: len(members) == 1, timeout=WAIT)
        assert leader.is_leader
        assert leader._presence is not None
        assert len(leader._presence._feed) == 0
        writing.cancel()
        await asyncio.wait([writing])
        assert written_meanwhile >= 3


@pytest.mark.slow
def test_the_feed_keeps_its_targets_and_drops_who_does_not_read() -> None:
    command = [sys.executable, BENCHMARKS / "feed.py", "--followers", "100", "--frozen", "10", "--epochs", "10"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        printed, complaints = process.communicate(timeout=110)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also those that it has frozen
    assert process.returncode == 0, complaints
    # Not the longest of ten times: a machine that stands still for a moment is no fault of the feed.
    targets = re.findall(r"^(?!.*follower, max).* ([\d.]+) (ms|MB)   target <= (\d+) \2$", printed, re.MULTILINE)
    assert len(targets) == 4
    assert all(float(value) <= float(target) for value, _, target in targets), printed
    assert re.search(r"of these, dropped +10\b", printed), printed


# -- a leader that cannot be had -----------------------------------------------------------------------------------


def test_attempts_at_a_leader_that_cannot_be_had_grow_rare_and_are_spread() -> None:
    longest = [pause_before_retry(failures, 1.0) for failures in range(100)]
    shortest = [pause_before_retry(failures, 0.0) for failures in range(100)]
    assert longest[1] <= 0.25, "back again soon"
    assert longest == sorted(longest)
    assert longest[-1] == 4.0
    assert [2 * low for low in shortest] == longest
    assert min(shortest) > 0


class Attempts:
    """Notes them; each fails."""

    def __init__(self) -> None:
        self.at: list[tuple[str, float]] = []

    def connect(self, address: str) -> Client:
        self.at.append((address, asyncio.get_running_loop().time()))
        raise PeerUnavailable("nobody there", sent=False)

    def pauses(self, address: str) -> list[float]:
        times = [at for who, at in self.at if who == address]
        return [later - sooner for sooner, later in pairwise(times)]


class Idle:
    """A follower with nothing to do."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_storm_of_retries_dies_down_and_the_next_leader_is_asked_at_once() -> None:
    attempts = Attempts()
    me = Member(Clock().uuid7(), "127.0.0.1:1")
    dead, next_one = (Leader(Clock().uuid7(), address, "") for address in ("127.0.0.1:2", "127.0.0.1:3"))

    async def story(simulation: Simulation) -> float:
        leader: Watch[Leader | None] = Watch(dead)
        reporter = Reporter(
            leader, me=lambda: me, session="s", connect=attempts.connect, follower=Idle(), report_interval=60,
            on_members=lambda _: None, clock=simulation.clock,
        )  # fmt: skip
        async with running(reporter):
            await asyncio.sleep(60)
            changed_at = asyncio.get_running_loop().time()
            leader._set(next_one)
            await eventually(lambda: attempts.pauses(next_one.address))
            return changed_at

    changed_at = run(story)
    pauses = attempts.pauses(dead.address)
    assert pauses[0] <= 0.25
    assert len(pauses) <= 30, "a fixed pause of 0.25 s would have been 240"
    assert 2.0 <= pauses[-1] <= 4.01
    first = next(at for who, at in attempts.at if who == next_one.address)
    assert first - changed_at < 0.05
    assert attempts.pauses(next_one.address)[0] <= 0.25, "the count begins anew"


def test_a_stream_that_has_lasted_is_made_again_soon_however_many_failed_before() -> None:
    lasted: Iterator[float] = iter([0, 0, 0, 0, 0, 0, 5.0])
    began: list[float] = []

    class Lasting(Reporter):
        async def _read(self, leader: Leader) -> None:
            began.append(asyncio.get_running_loop().time())
            await asyncio.sleep(next(lasted, 0))
            raise PeerUnavailable("it broke", sent=True)

    me = Member(Clock().uuid7(), "127.0.0.1:1")

    async def story(simulation: Simulation) -> None:
        reporter = Lasting(
            Watch(Leader(Clock().uuid7(), "127.0.0.1:2", "")), me=lambda: me, session="s", connect=Attempts().connect,
            follower=Idle(), report_interval=60, on_members=lambda _: None, clock=simulation.clock,
        )  # fmt: skip
        async with running(reporter):
            await eventually(lambda: len(began) >= 8)

    run(story)
    assert began[6] - began[5] >= 1.6
    assert began[7] - began[6] - 5.0 <= 0.15


@contextlib.asynccontextmanager
async def running(reporter: Reporter) -> AsyncIterator[None]:
    task = asyncio.create_task(reporter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_it_ends_when_it_is_cancelled_also_in_the_moment_in_which_a_stream_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fed, "pause_before_retry", lambda *_: 0.0)
    me = Member(Clock().uuid7(), "127.0.0.1:1")
    for steps in range(60):
        reporter = Reporter(
            Watch(Leader(Clock().uuid7(), "127.0.0.1:2", "")), me=lambda: me, session="s", connect=Attempts().connect,
            follower=Idle(), report_interval=60, on_members=lambda _: None, clock=Clock(),
        )  # fmt: skip
        running = asyncio.create_task(reporter.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await within(asyncio.wait([running]), 5)


# -- the list of members -------------------------------------------------------------------------------------------


class StillClock(Clock):
    """Goes on when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Leading:
    """The leader's side, by itself, with one stream that listens to it."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.own: list[Members] = []
        self.me = self.member(0)
        self.presence = Presence(
            1, 0, self.me, Members(), timeout=10, clock=self.clock, on_members=self.own.append, store_age=lambda: 0.0
        )
        self.stream = self.presence._feed.subscribe(0)

    def member(self, number: int) -> Member:
        return Member(UUID(int=number), f"127.0.0.1:{number}")

    def join(self, number: int) -> None:
        self.presence._roster.report(self.member(number), "s", self.clock.monotonic())
        self.presence._send_members()

    def goodbye(self, number: int) -> None:
        self.presence._roster.goodbye(UUID(int=number))
        self.presence._send_members()

    def lists(self) -> list[int]:
        """How long the lists are that were sent since the last call."""
        sent = [json.loads(frame[5:]) for frame in self.stream._waiting if frame[:1] == frames.MEMBERS]
        self.stream._waiting.clear()
        return [len(each["members"]) for each in sent]


async def test_one_that_comes_or_goes_is_told_to_all_at_once() -> None:
    leading = Leading()
    leading.clock.advance(1)
    leading.join(1)
    assert leading.lists() == [2]
    leading.clock.advance(1)
    leading.goodbye(1)
    assert leading.lists() == [1]
    assert [len(members) for members in leading.own] == [1, 2, 1]


async def test_a_crowd_that_comes_and_goes_does_not_cost_a_list_to_each_for_each() -> None:
    leading = Leading()
    leading.clock.advance(1)
    for number in range(1, 201):
        leading.join(number)
        leading.clock.advance(0.001)
    assert len(leading.lists()) <= 3
    leading.clock.advance(0.5)
    leading.presence._send_members()  # as `run` does
    assert leading.lists() == [201]
    for number in range(1, 201):
        leading.goodbye(number)
        leading.clock.advance(0.001)
    assert len(leading.lists()) <= 3
    leading.clock.advance(0.5)
    leading.presence._send_members()
    assert leading.lists() == [1]
    assert len(leading.own[-1]) == 1
