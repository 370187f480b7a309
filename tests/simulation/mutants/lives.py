"""Lives that lead to where certain mutants are wrong. What is right keeps its promises in each of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from littlebigcluster import LbcError, settings
from littlebigcluster.epochs import merged, names, retention
from littlebigcluster.epochs.pins import pinned
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.roles import follower
from littlebigcluster.roles import retention as role
from littlebigcluster.testing import Member, Weather
from tests.simulation.life import Life
from tests.simulation.mutants.forged import forged

STANDBYS = 3


class Orderly(Life):
    """Nothing is wrong but that a leader dies, or is not reached by one standby. Who goes first is known then."""

    async def live(self) -> None:
        self.settings = replace(self.settings, leader_timeout=10.0, member_timeout=10.0, epoch_interval=0)
        self.s.store.weather = Weather(0.01)
        await self.s.cluster.init("lol")
        first = await self.s.join(settings=self.settings, can_lead=True, az="a")
        await first.node.wait_until_leader()
        await self.ledger.prepare(first)
        await self._standbys()
        for _ in range(2):
            await self._cut_off_one()
            await self._replace_leader()
            await self._standbys()
        if lost := sum("another node was faster" in line for line in self.s.transcript):
            self.ledger.problems.append(f"{lost} claims of standbys that should have left it to others")
        await self.calm_down()

    async def _standbys(self) -> None:
        while len(self.s.alive) <= STANDBYS:
            priority = len(self.s.members) * self.chance.choice([-1, 1])
            joined = await self.s.join(settings=self.settings, can_lead=True, leader_priority=priority)
            await self.ledger.forward(joined, timeout=20.0)
        await asyncio.sleep(5.0)

    def _leader(self) -> Member:
        return next(member for member in self.s.alive if member.node.is_leader)

    async def _cut_off_one(self) -> None:
        leader = self._leader()
        other = self.chance.choice([member for member in self.s.alive if member is not leader])
        self.happens("partition", f"{other.name} does not reach the leader {leader.name}")
        self.s.partition([leader], [other])
        await asyncio.sleep(8.0)
        if not leader.node.is_leader:
            self.ledger.problems.append(f"{leader.name} was replaced, though two standbys reached it")
        self.s.heal()
        await asyncio.sleep(5.0)

    async def _replace_leader(self) -> None:
        leader = next((member for member in self.s.alive if member.node.is_leader), None)
        if leader is None:
            return
        await self.ledger.write(leader)
        await asyncio.sleep(self.chance.random() * 3)
        heirs = [member for member in self.s.alive if member is not leader]
        heir = max(heirs, key=lambda member: member.node._description.leader_priority)
        await self.crash(leader)
        await asyncio.sleep(8.0)
        if not heir.node.is_leader:
            self.ledger.problems.append(f"{heir.name} should lead: it has the highest priority")


class Stormy(Life):
    """Every request may be lost, late, doubled, or answered wrongly, and leaders are often not reached."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.seconds, self.rate = 40.0, 1.0
        self.settings = replace(self.settings, epoch_interval=0, leader_timeout=2.0, suspect_timeout=1.0)

    def weather(self) -> Weather:
        rate = 0.05
        return Weather(
            0.02, lost=rate, unanswered=rate, failed=rate, failed_after=rate, late=rate, late_seconds=10.0, twice=rate,
            conflict=rate,
        )  # fmt: skip

    async def step(self) -> None:
        awake = [member for member in self.s.alive if not member.machine.frozen]
        leaders = [member for member in awake if member.node.is_leader]
        if leaders and len(awake) > 1 and self.chance.random() < 0.5:
            await self.chance.choice([self.stand_still, self.cut_off, self.cut_from_store])(leaders[0])
        else:
            await super().step()

    def long(self) -> float:
        return self.chance.choice([1.0, 4.0]) * (0.5 + self.chance.random())


class Haunted(Life):
    """A leader that was cut off goes on showing life, for it can write and not read. The next one has died."""

    async def live(self) -> None:
        self.settings = replace(self.settings, leader_timeout=4.0, poll_interval=0.2, fence_validity=10.0)
        self.s.store.weather = Weather(0.01)
        await self.s.cluster.init("lol")
        ghost = await self.s.join(settings=self.settings, can_lead=True)
        await ghost.node.wait_until_leader()
        await self.ledger.prepare(ghost)
        heirs = [await self.s.join(settings=self.settings, can_lead=True) for _ in range(2)]
        await asyncio.sleep(3.0)
        self.happens("cut off", f"of {ghost.name} only the beacon gets through")
        self.s.partition([ghost], heirs)
        access, replaced = ghost.node._store, False
        request = type(access)._request

        async def only_beacons(self: Any, what: str, *arguments: Any, **how: Any) -> Any:
            if self is not access or (replaced and what == f"put {names.BEACON}"):
                return await request(self, what, *arguments, **how)
            await asyncio.sleep(3.0)
            raise StoreUnavailable(f"{what}: no answer")

        with patch.object(type(access), "_request", only_beacons):
            while not any(heir.node.is_leader for heir in heirs):  # noqa: ASYNC110 - it is asked from outside
                await asyncio.sleep(0.01)
            replaced = True
            led = next(heir for heir in heirs if heir.node.is_leader)
            await self.crash(led)
            (left,) = [heir for heir in heirs if heir is not led]
            with contextlib.suppress(TimeoutError):
                await left.node.wait_until_leader(timeout=30.0)
            if not left.node.is_leader:
                self.ledger.problems.append(f"{left.name} does not take the leadership for 30 s")
        await self.calm_down()


class Kept(Life):
    """Everything that retention does takes seconds, not hours; members sleep longer than it keeps anything."""

    standing_seconds = 6.0
    fence_validity = 3.0
    retention_seconds = 16.0

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.seconds, self.rate = 120.0, 0.2
        self.retention = self.retention_seconds
        self._pins: list[asyncio.Task[None]] = []

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        def interval(retention_seconds: float) -> float:
            return max(role.STANDING_SECONDS + 1, retention_seconds / 20)

        with ExitStack() as stack:
            for where, name, value in (
                (settings, "MIN_RETENTION_SECONDS", 0.0),
                (role, "STANDING_SECONDS", self.standing_seconds),
                (role, "FIRST_PASS_SECONDS", 2.0),
                (role, "_RETRY_SECONDS", 2.0),
                (role, "pass_interval", interval),
                (retention, "KEEP_ALL", timedelta(seconds=60)),
            ):
                stack.enter_context(patch.object(where, name, value))
            yield

    async def live(self) -> None:
        with self._scaled():
            self.settings = replace(
                self.settings,
                retention=self.retention_seconds,
                fence_validity=self.fence_validity,
                leader_timeout=5.0,
                write_timeout=30.0,
                snapshot_epochs=20,
                epoch_interval=0,
                poll_interval=0.2,
            )
            await super().live()

    def begin(self, member: Member) -> None:
        super().begin(member)
        if not self._pins:
            self._pins.append(asyncio.create_task(self._hold()))

    def weather(self) -> Weather:
        return replace(super().weather(), late_seconds=5.0) if self.chance.random() < 0.3 else Weather(0.02)

    async def step(self) -> None:
        awake = [member for member in self.s.alive if not member.machine.frozen]
        if len(awake) > 2 and self.chance.random() < 0.5:
            leaders = [member for member in awake if member.node.is_leader]
            member = self.chance.choice(leaders if leaders and self.chance.random() < 0.5 else awake)
            seconds = 50.0 + 40.0 * self.chance.random()
            self.happens("long sleep", f"{member.name} is suspended for {seconds:.0f} s")
            self._beside_(self.s.pause(member, seconds, suspended=True))
        elif len(self.s.alive) <= 4 and len(awake) <= 2:
            await self.join()
        else:
            await super().step()

    async def _hold(self) -> None:
        """Pin an epoch for longer than retention would keep it."""
        access, clock = self.s.store.of(None, self.s.clock), self.s.clock
        while not self.calm:
            epoch = max(parsed[1] for parsed in map(names.parse, self.s.store.objects) if parsed)
            try:
                async with pinned(access, epoch, purpose="a test", clock=clock):
                    await asyncio.sleep(70.0)
                    if not self._restorable(epoch):
                        self.ledger.problems.append(f"epoch {epoch} is pinned, and cannot be restored")
                        return
            except LbcError as error:
                self.note(f"no pin: {error}")
                await asyncio.sleep(5.0)

    def _restorable(self, epoch: int) -> bool:
        objects = self.s.store.objects
        snapshots = [at for at in range(epoch + 1) if names.snapshot(at) in objects]
        return bool(snapshots) and all(names.wal(at) in objects for at in range(snapshots[-1] + 1, epoch + 1))


class Still(Life):
    """There are pages that nobody writes again."""

    def begin(self, member: Member) -> None:
        if len(self.s.members) == 1:
            member.spawn(member.node.executescript("CREATE TABLE still(x); INSERT INTO still VALUES (zeroblob(9000))"))
        super().begin(member)


class Piled(Still):
    """Few epochs make a merged object, and who has been away takes these. Some of them are of another history."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.settings = replace(self.settings, snapshot_epochs=1000, epoch_interval=0)
        self._forged: set[str] = set()

    async def live(self) -> None:
        with self._small():
            await super().live()

    async def step(self) -> None:
        self._plant()
        await super().step()

    @contextmanager
    def _small(self) -> Iterator[None]:
        with patch.object(merged, "FANOUT", 4), patch.object(follower, "_FAR_BEHIND", 3):
            yield

    def _plant(self) -> None:
        """Write something else over the merged epochs that are there."""
        objects = self.s.store.objects
        for key in [key for key in objects if names.parse_merged(key) and key not in self._forged]:
            body, written_at = objects[key]
            if (other := forged(body, key)) is not None:
                self.happens("forged", f"{key} is of another history")
                objects[key] = other, written_at
                self._forged.add(key)

    async def judge(self) -> None:
        for key in [key for key in self.s.store.objects if names.parse_merged(key)]:
            del self.s.store.objects[key]  # the larger ones are made of those
        with self._small():
            await super().judge()


class Torn(Still):
    """Who dies comes back with its disk, on which the last writes are missing, and half of a page."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.settings = replace(self.settings, snapshot_epochs=7, epoch_interval=0)

    async def come(self) -> None:
        dead = [member for member in self.s.members if member.machine.dead and not self._lives_again(member)]
        if not dead:
            await self.join()
            return
        member = self.chance.choice(dead)
        for path in member.directory.with_suffix(".crashed").glob("replica-*/replica.db"):
            path.with_name("replica.db-wal").unlink(missing_ok=True)
            body = path.read_bytes().replace(bytes(2048), b"?" * 2048)
            path.write_bytes(body)
        self.happens("torn", f"half a page of {member.name} is gone")
        await self.join(disk_of=member)


class Impatient(Life):
    """Whoever has written through any node reads there at once."""

    async def write(self, member: Member) -> None:
        while not self.calm:
            await self.ledger.forward(member, timeout=20.0)
            await self.ledger.read(member, timeout=5.0)
            await asyncio.sleep(self.chance.expovariate(1.0))
