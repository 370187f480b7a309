"""Lives in which the store is not what it was: an older state comes back, its clock leaps, what was there is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from littlebigcluster import settings
from littlebigcluster.epochs import names
from littlebigcluster.roles import retention as role
from littlebigcluster.testing import Member, Weather
from tests.simulation.life import Life


@contextmanager
def _fast_retention(*, standing_seconds: float) -> Iterator[None]:
    with ExitStack() as stack:
        for where, name, value in (
            (settings, "MIN_RETENTION_SECONDS", 0.0),
            (role, "STANDING_SECONDS", standing_seconds),
            (role, "FIRST_PASS_SECONDS", 0.5),
            (role, "_RETRY_SECONDS", 0.5),
            (role, "pass_interval", lambda _: 0.5),
        ):
            stack.enter_context(patch.object(where, name, value))
        yield


class _Staged(Life):
    """One thing after the other, and nothing by chance but the times."""

    async def _begin(self, **how: Any) -> Member:
        self.settings = replace(self.settings, epoch_interval=0, poll_interval=0.2, write_timeout=30.0, **how)
        self.s.store.weather = Weather(0.01)
        await self.s.cluster.init("lol")
        first = await self.s.join(settings=self.settings, can_lead=True)
        await first.node.wait_until_leader()
        await self.ledger.prepare(first)
        return first

    async def _write(self, member: Member, epochs: int) -> None:
        for _ in range(epochs):
            await self.ledger.write(member)

    async def _standbys(self, number: int) -> None:
        for _ in range(number):
            await self.s.join(settings=self.settings, can_lead=True)

    def _stand_still(self, member: Member) -> None:
        self.happens("pause", f"{member.name} stands still")
        self.s.loop.freeze(member.machine)
        self.s.net.stands_still(member.machine)

    async def _leader(self, *, after_term: int = 0) -> Member:
        """Who leads, and not only believes so."""
        while True:
            leaders = [each for each in self.s.alive if each.node.is_leader and not each.machine.frozen]
            leader = max(leaders, key=lambda leader: leader.node.term, default=None)
            if leader is not None and leader.node.term > after_term:
                return leader
            await asyncio.sleep(0.1)


class Rewound(_Staged):
    """An operator stops the cluster, forgets one member, which sleeps, and puts the store back to an earlier state.
    The same few pages are in all epochs, so that the other history leads from any state to the one that it says."""

    async def live(self) -> None:
        first = await self._begin(leader_timeout=4.0, fence_validity=10.0)
        forgotten = await self.s.join(settings=self.settings)
        await self._write(first, self.chance.randint(1, 5))
        back_up, epoch = dict(self.s.store.objects), first.node.epoch.value
        await self._write(first, self.chance.randint(1, 5))
        last = first.node.epoch.value
        await forgotten.node.epoch.until(lambda value: value >= last, timeout=20.0)
        self.s.loop.freeze(forgotten.machine)
        await self.crash(first)
        self.happens("put back", f"the store is as it was at epoch {epoch}; {forgotten.name} is at epoch {last}")
        self.s.store.objects.clear()
        self.s.store.objects.update(back_up)
        self.ledger.rewind(epoch)
        other = await self.s.join(settings=self.settings, can_lead=True)
        await other.node.wait_until_leader(timeout=60.0)
        await self._write(other, last - epoch + 3)
        self.s.loop.go_on(forgotten.machine)
        head = other.node.epoch.value
        await forgotten.node.epoch.until(lambda value: value >= head, timeout=60.0)
        await self.calm_down()


class Leapt(_Staged):
    """While a leader stands still, for less than a fence holds, and is replaced, the store's clock leaps ahead: all
    that was written is old, and retention would have it go."""

    fence_validity = 20.0
    still_seconds = 14.0

    async def live(self) -> None:
        with _fast_retention(standing_seconds=30.0):
            await self._live()

    async def _live(self) -> None:
        first = await self._begin(
            leader_timeout=2.0, suspect_timeout=1.0, fence_validity=self.fence_validity, retention=600.0,
            snapshot_epochs=3,
        )  # fmt: skip
        await self._standbys(2)
        await self._write(first, self.chance.randint(1, 5))
        self._stand_still(first)
        end = self.s.loop.now + self.still_seconds
        heir = await self._leader(after_term=first.node.term)
        await self._write(heir, 5)
        await asyncio.sleep(1.0)
        self.happens("clock jump", "the clock of the store leaps ahead by an hour")
        self.s.store.wall_offset += 3600.0
        while self.s.loop.now < end:
            await self._write(heir, 1)
            await asyncio.sleep(0.5)
        self.s.loop.go_on(first.machine)
        await self._write(first, 3)
        await self.calm_down()

    async def judge(self) -> None:
        await self.ledger.judge(0.0, self.s.alive)  # how old anything is nobody can know


class Slept(_Staged):
    """A leader sleeps until the epoch is deleted that it was about to write: one has sent it, and it was created;
    the next one sends it after it has woken."""

    async def live(self) -> None:
        with _fast_retention(standing_seconds=6.0):
            await self._live()

    async def _live(self) -> None:
        self.retention = 16.0
        first = await self._begin(
            leader_timeout=2.0, suspect_timeout=1.0, fence_validity=3.0, retention=self.retention, snapshot_epochs=3
        )
        self.settings = replace(self.settings, write_timeout=1000.0)
        await self._standbys(2)
        await self._write(first, self.chance.randint(1, 5))
        self.s.store.cut_to.add(first.name)
        sent = names.wal(first.node.epoch.value + 1)
        under_way = first.spawn(self.ledger.write(first))
        while sent not in self.s.store.objects:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        await self._sleep_past(first, sent)
        await asyncio.wait([under_way])
        second = await self._leader()
        await self._sleep_past(second, names.wal(second.node.epoch.value + 1))
        await self._write(second, 2)
        await self.calm_down()

    async def _sleep_past(self, sleeper: Member, epoch: str) -> None:
        """Until this epoch is in the log, and is deleted."""
        self._stand_still(sleeper)
        self.s.store.cut_to.clear()
        leader = await self._leader(after_term=sleeper.node.term)
        while epoch in self.s.store.objects:
            await self._write(leader, 1)
            await asyncio.sleep(0.5)
        self.note(f"{epoch} is deleted, and {sleeper.name} goes on")
        self.s.loop.go_on(sleeper.machine)
