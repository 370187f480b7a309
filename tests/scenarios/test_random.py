"""Anything may happen: nodes join, leave, die, freeze and lose the store, while all of them write and read.

`LBC_SEEDS=1000` tries many; a seed that fails is run again with `LBC_SEED=N`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import Any

import pytest

from littlebigcluster import LbcError
from littlebigcluster.store import Fault
from tests.roles.long_logs import small_spans
from tests.scenarios.stage import WAIT, Actor, Stage, eventually, stage

__all__ = ["small_spans"]  # many epochs are merged even in a short life

SEEDS = (
    [int(os.environ["LBC_SEED"])] if "LBC_SEED" in os.environ else list(range(int(os.environ.get("LBC_SEEDS", "4"))))
)
STEPS = 14
MEMBERS = 4
RATES: dict[Any, Any] = {
    "create": {Fault.BEFORE: 0.02, Fault.AFTER: 0.04, Fault.HANG: 0.02, Fault.DUPLICATE: 0.03, Fault.CONFLICT: 0.03},
    "*": {Fault.BEFORE: 0.02, Fault.AFTER: 0.02, Fault.DELAY: 0.05, Fault.HANG: 0.01},
}


class Life:
    """One run: a stage, a source of chance, and what goes on beside."""

    def __init__(self, s: Stage, seed: int) -> None:
        self.s = s
        self.chance = random.Random(seed)
        self.feed = self.chance.random() < 0.5
        self.users: list[asyncio.Task[None]] = []
        self.calm = False
        self.happened: list[str] = []

    @property
    def living(self) -> list[Actor]:
        return [actor for actor in self.s.actors if not actor.ended]

    async def join(self) -> None:
        try:
            actor = await self.s.actor(
                feed=self.feed,
                can_lead=self.chance.random() < 0.8,
                leader_timeout=0.8,
                snapshot_epochs=self.chance.choice([7, 30, 1000]),
                write_timeout=self.chance.choice([0.3, 5]),
                transaction_timeout=2,
                fence_validity=self.chance.choice([0.2, 60]),
            )
        except LbcError:  # a fault at the wrong moment
            return
        actor.network._rates = {} if self.calm else RATES
        self.users += [asyncio.create_task(self.write(actor)), asyncio.create_task(self.read(actor))]

    async def write(self, actor: Actor) -> None:
        while not actor.ended:
            if actor.node.is_leader and self.chance.random() < 0.8:
                await self.s.recorder.writes(actor.node, self.chance.randint(1, 4))
            elif self.feed and self.chance.random() < 0.3:
                await self.s.recorder.forward(actor.node)
            await asyncio.sleep(self.chance.random() * 0.05)

    async def read(self, actor: Actor) -> None:
        recorder = self.s.recorder
        while not actor.ended:
            how: dict[str, Any] = {"timeout": 2}
            match self.chance.randrange(4):
                case 0:
                    how["consistency"] = "strong"
                case 1:
                    how["at_least"] = max(recorder.history.epochs.values(), default=0)
            with contextlib.suppress(LbcError):  # too late, no store, or the node has ended
                await recorder.read(actor.node, **how)
            await asyncio.sleep(self.chance.random() * 0.1)

    async def step(self) -> None:
        living = self.living
        actor = self.chance.choice(living) if living else None
        leaders = [each for each in living if each.node.is_leader]
        if leaders and self.chance.random() < 0.5:
            actor = leaders[0]
        what = self.chance.choice(["join", "join", "kill", "leave", "freeze", "cut off", "nothing", "nothing"])
        if actor is None or len(living) < 2:
            what = "join"
        elif what == "join" and len(living) >= MEMBERS:
            what = "kill"
        self.happened.append(what)
        match what:
            case "join":
                await self.join()
            case "kill":
                await actor.kill()  # type: ignore[union-attr]
            case "leave":
                await actor.leave()  # type: ignore[union-attr]
            case "freeze":
                actor.gate.shut(self.chance.choice([None, "create"]))  # type: ignore[union-attr]
                asyncio.get_running_loop().call_later(self.chance.random() * 2, actor.gate.open)  # type: ignore[union-attr]
            case "cut off":
                actor.network.outage(hang=self.chance.random() < 0.5)  # type: ignore[union-attr]
                asyncio.get_running_loop().call_later(self.chance.random() * 1.5, self.mend, actor)
        await asyncio.sleep(self.chance.random() * 0.5)

    def mend(self, actor: Actor) -> None:
        if not actor.ended:
            actor.network.outage(False)

    async def calm_down(self) -> None:
        """No more faults; somebody leads in the end, and everybody follows."""
        self.calm = True
        for actor in self.living:
            actor.gate.open()
            actor.network.outage(False)
            actor.network._rates = {}
        while sum(actor.node.can_lead for actor in self.living) < 2:
            await self.join()
        for actor in self.s.actors:
            await actor.network.settle()
        await eventually(lambda: any(actor.node.is_leader for actor in self.living), timeout=30)
        await eventually(lambda: self.s.recorder.history.count("acknowledged") > 10, timeout=30)


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_acknowledged_is_lost_whatever_happens(seed: int, small_spans: None) -> None:
    async with stage() as s:
        first = await s.leader()
        life = Life(s, seed)
        await first.leave()
        for _ in range(2):
            await life.join()
        try:
            for _ in range(STEPS):
                await life.step()
            await life.calm_down()
        finally:
            for user in life.users:
                user.cancel()
            results = await asyncio.gather(*life.users, return_exceptions=True)
        assert [r for r in results if isinstance(r, Exception)] == [], f"seed {seed}: {life.happened}"
        for actor in s.actors:
            assert actor.failure is None, f"seed {seed}: {actor.failure!r} after {life.happened}"
        async with asyncio.timeout(WAIT):
            while True:
                leaders = [actor for actor in life.living if actor.node.is_leader]
                if leaders and await s.recorder.write(leaders[0].node) == "acknowledged":
                    break
                await asyncio.sleep(0.05)
        await s.check()
        verified = await s.cluster.verify(deep=True)
        assert verified.findings == [], f"seed {seed}: {life.happened}"
        print(
            seed,
            verified.merged,
            life.feed,
            {f: s.recorder.history.count(f) for f in ("acknowledged", "refused", "unknown")},  # type: ignore[arg-type]
            len(s.recorder.history.reads),
            leaders[0].node.term,
            life.happened,
        )
