"""A random life of a cluster: who joins, what its users do, and what breaks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

from littlebigcluster import CorruptLog, LbcError, NodeSettings
from littlebigcluster.testing import Member, Simulation, Weather
from tests.simulation.checks import Ledger

MEMBERS = 4
PATIENCE_SECONDS = 120.0
"""When faults have stopped, somebody leads and writes flow after so long at the latest."""


class Life:
    """One run."""

    def __init__(self, simulation: Simulation, ledger: Ledger, *, long: bool = False) -> None:
        self.s, self.ledger = simulation, ledger
        self.chance = random.Random(simulation.seed ^ 0x5EED)
        self.faults: Counter[str] = Counter()
        self.calm = False
        self._log_is_corrupt = False
        self._beside: dict[asyncio.Task[None], None] = {}
        self._users: dict[asyncio.Task[None], None] = {}
        self._leaving: dict[asyncio.Task[None], Member] = {}
        self.seconds = self.chance.choice([20.0, 40.0, 80.0])
        self.rate = self.chance.choice([0.3, 1.0, 3.0])
        """Faults in a second."""
        self.members = MEMBERS
        self.pace = 1.0
        """So many times faster than usual users are."""
        self.retention = 7 * 86400.0
        self.night_seconds = 0.0
        """So long, in the middle, nothing fails and users do little: time enough for retention to delete."""
        if long:
            self.night_seconds, self.retention, self.members = 7500.0, 3600.0, 2
        self.settings = NodeSettings(
            readers=1,
            epoch_interval=self.chance.choice([0, 0, 0.2]),
            retention=self.retention,
            suspect_timeout=self.chance.choice([1.0, 1.5, 4.0]),
            leader_timeout=self.chance.choice([2.0, 5.0, 10.0]),
            poll_interval=self.chance.choice([0.2, 1.0]),
            member_timeout=self.chance.choice([3.0, 10.0]),
            fence_validity=self.chance.choice([2.0, 10.0, 60.0]),
            write_timeout=self.chance.choice([2.0, 30.0]),
            transaction_timeout=2.0,
            read_timeout=10.0,
            max_read_age=20.0,
            snapshot_epochs=self.chance.choice([7, 30, 1000]),
        )

    def note(self, text: str) -> None:
        self.s.note(f"*    {text}")

    # -- the story ---------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        self.note(f"{self.settings}")
        self.s.store.on_fault = lambda what, machine, request: (
            self.s.note(f"{'-' if machine is None else machine.name:4} {what}: {request}")
            if not request.startswith("get")
            else None
        )
        await self.s.cluster.init("lol")
        first = await self.s.join(settings=self.settings, can_lead=True, az="a")
        await first.node.wait_until_leader()
        await self.ledger.prepare(first)
        self.s.store.weather = self.weather()
        self.begin(first)
        await self.join()
        await self.suffer()
        if self.night_seconds:
            self.note("night")
            self.pace, weather = 0.02, self.s.store.weather
            self.s.store.weather = weather.calm()
            await asyncio.sleep(self.night_seconds)
            self.pace, self.s.store.weather = 1.0, weather
            self.note("morning")
            await self.suffer()
        await self.calm_down()

    async def suffer(self) -> None:
        end = self.s.loop.now + self.seconds
        while self.s.loop.now < end:
            await asyncio.sleep(self.chance.expovariate(self.rate))
            await self.step()

    async def judge(self) -> None:
        await self.ledger.judge(self.retention, self.s.alive)

    async def calm_down(self) -> None:
        """No more faults. Somebody leads in the end, writes flow, everybody follows."""
        self.note("calm")
        self.calm = True
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        for member in self.s.alive:
            member.machine.disk_full, member.machine.slowness = False, 1.0
            if member.machine.frozen:
                self.s.loop.go_on(member.machine)
        self.s.heal()
        if self._leaving:  # who is on the way out, reads no more, and is not to be judged
            await asyncio.wait(self._leaving, timeout=PATIENCE_SECONDS)
            self.ledger.problems += [f"{member.name} does not get to leave" for member in self._leaving.values()]
        calm_since = self.s.loop.now
        while sum(member.node.can_lead for member in self.s.alive) < 2:
            if await self.join(can_lead=True) is None and self._over(calm_since, "nobody has joined"):
                return
        while not await self._written():
            if self._over(calm_since, "no write went through"):
                return
            await asyncio.sleep(0.5)
        self.note(f"a write went through after {self.s.loop.now - calm_since:.1f} s")
        while self._users:
            await asyncio.wait(list(self._users))
        await self.ledger.resolve(self.s.alive[0])
        for member in self.s.members:
            if member.failure is not None:
                self.ledger.problems.append(f"{member.name} has failed: {member.failure!r}")

    def _over(self, calm_since: float, missed: str) -> bool:
        """Whether this should have come by now, or cannot come any more."""
        if self._log_is_corrupt:
            return True
        over = self.s.loop.now - calm_since > PATIENCE_SECONDS
        if over:
            self.ledger.problems.append(f"{missed} in {PATIENCE_SECONDS:g} s without faults")
        return over

    async def _written(self) -> bool:
        leaders = [member for member in self.s.alive if member.node.is_leader]
        if not leaders:
            return False
        return await self.ledger.write(leaders[0]) == "acknowledged"

    # -- users -------------------------------------------------------------------------------------------------------

    async def join(self, *, can_lead: bool | None = None, disk_of: Member | None = None) -> Member | None:
        if can_lead is None:
            can_lead = self.chance.random() < 0.8
        az = self.chance.choice("ab")
        try:
            async with asyncio.timeout(120.0):
                member = await self.s.join(
                    settings=self.settings, can_lead=can_lead, az=az, disk_of=disk_of, roles=["worker"]
                )
        except CorruptLog as error:
            if not self._log_is_corrupt:
                self.ledger.problems.append(f"nobody can join any more: CorruptLog: {error}")
            self._log_is_corrupt = True
            return None
        except (LbcError, OSError, TimeoutError, RuntimeError) as error:
            self.note(f"joining failed: {type(error).__name__}: {error}")
            return None
        self.note(f"{member.name} has joined{' with its disk' if disk_of else ''}{'' if can_lead else ', to follow'}")
        self.begin(member)
        return member

    def begin(self, member: Member) -> None:
        """Users of this member."""
        for user in (self.write(member), self.read(member)):
            task = member.spawn(user)
            self._users[task] = None
            task.add_done_callback(self._ended)

    def _ended(self, user: asyncio.Task[None]) -> None:
        self._users.pop(user)
        if not user.cancelled() and user.exception() is not None:
            self.ledger.problems.append(f"a user met {user.exception()!r}")

    async def write(self, member: Member) -> None:
        while not self.calm:
            if member.node.is_leader and self.chance.random() < 0.8:
                count = self.chance.randint(1, 4)
                await asyncio.gather(*(self.ledger.write(member) for _ in range(count)))
            elif self.chance.random() < 0.3:
                await self.ledger.forward(member, timeout=self.chance.choice([3.0, 20.0]))
            await asyncio.sleep(self.chance.expovariate(2.0 * self.pace))

    async def read(self, member: Member) -> None:
        while not self.calm:
            how: dict[str, Any] = {"timeout": 5.0}
            match self.chance.randrange(4):
                case 0 | 1:
                    how["consistency"] = "strong"
                case 2:
                    how["at_least"] = max(self.ledger.history.epochs.values(), default=0)
            await self.ledger.read(member, **how)
            await asyncio.sleep(self.chance.expovariate(1.0 * self.pace))

    # -- faults ------------------------------------------------------------------------------------------------------

    def weather(self) -> Weather:
        latency = self.chance.choice([0.005, 0.03, 0.1])
        if self.chance.random() < 0.4:
            return Weather(latency)
        rate = self.chance.choice([0.01, 0.03])
        return Weather(
            latency,
            lost=rate,
            unanswered=rate,
            failed=rate,
            failed_after=rate,
            late=rate,
            late_seconds=self.chance.choice([10.0, 100.0]),
            twice=rate,
            conflict=rate,
        )

    async def step(self) -> None:
        """Something happens, more often to a leader."""
        alive = [member for member in self.s.alive if not member.machine.frozen]
        if len(self.s.alive) < 2 or not alive:
            await self.come()
            return
        leaders = [member for member in alive if member.node.is_leader]
        member = self.chance.choice(leaders if leaders and self.chance.random() < 0.5 else alive)
        kinds = [self.come, self.crash, self.leave, self.stand_still, self.cut_off, self.cut_from_store]
        kinds += [self.store_fails, self.jump, self.change_weather, self.step_down, self.slow_down, self.fill_disk]
        kind = self.chance.choice(kinds)
        if kind == self.come and len(self.s.alive) >= self.members:
            kind = self.crash
        if kind == self.come:
            await self.come()
        else:
            await kind(member)  # type: ignore[operator]

    def happens(self, kind: str, text: str) -> None:
        self.faults[kind] += 1
        self.note(text)

    def later(self, seconds: float, undo: Any, text: str) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            undo()
            self.note(text)

        self._beside_(wait())

    def _beside_(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._beside[task] = None
        task.add_done_callback(lambda task: self._beside.pop(task, None))

    def long(self) -> float:
        """From a moment to longer than any time-out."""
        return self.chance.choice([0.3, 1.0, 4.0, 15.0, 40.0]) * (0.5 + self.chance.random())

    async def come(self) -> None:
        dead = [member for member in self.s.members if member.machine.dead and not self._lives_again(member)]
        if dead and self.chance.random() < 0.5:
            await self.join(disk_of=self.chance.choice(dead))
        else:
            await self.join()

    def _lives_again(self, dead: Member) -> bool:
        return any(member.name == dead.name for member in self.s.alive)

    async def crash(self, member: Member) -> None:
        silently = self.chance.random() < 0.5
        kind = "power cut" if silently else "kill"
        self.happens(kind, f"{kind} of {member.name}")
        await self.s.crash(member, silently=silently)

    async def leave(self, member: Member) -> None:
        self.happens("leave", f"{member.name} leaves")

        async def leaving() -> None:
            with contextlib.suppress(LbcError, OSError):
                await member.leave()

        task = member.spawn(leaving())
        self._leaving[task] = member
        task.add_done_callback(self._leaving.pop)

    async def stand_still(self, member: Member) -> None:
        seconds, suspended = self.long(), self.chance.random() < 0.3
        kind = "suspend" if suspended else "pause"
        self.happens(kind, f"{kind} {member.name} for {seconds:.1f} s")
        self._beside_(self.s.pause(member, seconds, suspended=suspended))

    async def cut_off(self, member: Member) -> None:
        others = [other for other in self.s.alive if other is not member]
        others = self.chance.sample(others, self.chance.randint(1, len(others)))
        one_way = self.chance.random() < 0.4
        direction = self.chance.random() < 0.5
        names = ", ".join(other.name for other in others)
        kind = "one-way partition" if one_way else "partition"
        self.happens(kind, f"{kind} between {member.name} and {names}")
        here, there = ([member], others) if direction else (others, [member])
        self.s.partition(here, there, one_way=one_way)

        def mend() -> None:
            for other in others:
                self.s.net.mend(member.name, other.name)
                self.s.net.mend(other.name, member.name)

        self.later(self.long(), mend, f"{member.name} and {names} reach each other again")

    async def cut_from_store(self, member: Member) -> None:
        store = self.s.store
        ways = self.chance.choice(["from", "to", "both", "refused", "creates"])
        sets = {
            "from": [store.cut_from],
            "to": [store.cut_to],
            "refused": [store.refused],
            "creates": [store.cut_creates],
        }
        chosen = sets.get(ways, [store.cut_from, store.cut_to])
        self.happens("cut from the store", f"{member.name} is cut off the store ({ways})")
        for cut in chosen:
            cut.add(member.name)

        def mend() -> None:
            for cut in chosen:
                cut.discard(member.name)

        self.later(self.long(), mend, f"{member.name} reaches the store again")

    async def store_fails(self, member: Member) -> None:
        store = self.s.store
        if self.chance.random() < 0.5:
            self.happens("store outage", "the store is down")
            store.down = True
        else:
            store.throttled = self.chance.choice([0.3, 0.8])
            self.happens("throttling", f"the store throttles {store.throttled:.0%} of all requests")

        def mend() -> None:
            store.down, store.throttled = False, 0.0

        self.later(self.long(), mend, "the store works again")

    async def jump(self, member: Member) -> None:
        seconds = self.chance.choice([-3600.0, -5.0, 5.0, 3600.0, 86400.0])
        self.happens("clock jump", f"the time of day of {member.name} jumps by {seconds:g} s")
        member.machine.wall_offset += seconds

    async def change_weather(self, member: Member) -> None:
        self.s.store.weather = self.weather()
        self.s.net.latency_seconds = self.chance.choice([0.0005, 0.005, 0.05])
        self.happens("weather", f"{self.s.store.weather}")

    async def step_down(self, member: Member) -> None:
        if not member.node.is_leader:
            return
        self.happens("step down", f"{member.name} steps down")

        async def stepping() -> None:
            with contextlib.suppress(LbcError):
                await member.node.step_down()

        member.spawn(stepping())

    async def fill_disk(self, member: Member) -> None:
        self.happens("full disk", f"the disk of {member.name} is full")
        member.machine.disk_full = True

        def mend() -> None:
            member.machine.disk_full = False

        self.later(self.long(), mend, f"the disk of {member.name} has room again")

    async def slow_down(self, member: Member) -> None:
        self.happens("slow threads", f"threads of {member.name} are slow")
        member.machine.slowness = self.chance.choice([20.0, 200.0])

        def mend() -> None:
            member.machine.slowness = 1.0

        self.later(self.long(), mend, f"threads of {member.name} are as fast as before")
