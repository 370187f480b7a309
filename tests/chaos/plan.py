"""Which faults come when: from a seed, and nothing else. No I/O."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

PROCESS = ("kill", "kill leader", "leave", "step down", "stop", "stop leader", "full disk")
WIRE = ("unplug", "unplug leader", "deaf", "mute", "cut pair", "cut one way", "split", "lossy")
STORE_WIRE = ("cut from store", "cut leader from store", "store is deaf to one", "one is deaf to store")
STORE = ("slow store", "throttled store", "lost answers")
NARROW = ("narrow line",)
DELAY = ("late packets",)
FREEZE = ("frozen store",)
RESTART = ("restarted gateway",)

EVERY_SECONDS = 1.8
"""Between the beginnings of two faults, on average; each lasts up to LONGEST_SECONDS."""
LONGEST_SECONDS = 6.0
AT_ONCE = 3


@dataclass(frozen=True)
class Planned:
    """One fault. `nodes` are all of them in a random order: the first one is its victim, the second one the other; a
    fault of the leader has whoever leads when it comes."""

    at: float
    kind: str
    seconds: float
    nodes: tuple[int, ...]
    strength: float
    """From 0 to 1; how many, how slow, how likely."""


def plan(seed: int, *, seconds: float, nodes: int, kinds: Sequence[str]) -> list[Planned]:
    """Faults that begin and end within `seconds`. Each kind once, before any comes again."""
    chance = random.Random(seed)
    planned: list[Planned] = []
    deck: list[str] = []
    at = chance.uniform(1, 2)
    while True:
        lasts = min(chance.uniform(0.5, LONGEST_SECONDS), seconds - at)
        order = tuple(chance.sample(range(1, nodes + 1), nodes))
        strength = chance.random()
        if lasts < 0.5:
            return planned
        if not deck:
            deck = list(kinds)
            chance.shuffle(deck)
        planned.append(Planned(round(at, 2), deck.pop(), round(lasts, 2), order, round(strength, 2)))
        ends = sorted(each.at + each.seconds for each in planned)
        at += chance.uniform(0.2, 2 * EVERY_SECONDS - 0.2)
        if len(ends) >= AT_ONCE:  # the system has to get some air
            at = max(at, ends[-AT_ONCE])
