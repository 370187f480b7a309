"""The checker of linearizability: on histories that are known to be good or bad, and against a slow one that tries
every order."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from math import inf

import pytest

from tests.scenarios.linearizable import Append, Seen, violation

Operation = Append | Seen
GOOD: dict[str, list[Operation]] = {
    "nothing at all": [],
    "one after the other": [Append(1, 0, 1), Seen((1,), 2, 3), Append(2, 4, 5), Seen((1, 2), 6, 7)],
    "at the same time, in either order": [Append(1, 0, 9), Append(2, 0, 9), Seen((2,), 1, 2), Seen((2, 1), 10, 11)],
    "a read while it is written, with it": [Append(1, 0, 9), Seen((1,), 2, 3)],
    "a read while it is written, without it": [Append(1, 0, 9), Seen((), 2, 3), Seen((1,), 10, 11)],
    "unknown, and never there": [Append(1, 0), Seen((), 5, 6)],
    "unknown, and there at once": [Append(1, 0), Seen((1,), 5, 6)],
    "unknown, and there long after": [Append(1, 0), Append(2, 1, 2), Seen((2,), 5, 6), Seen((2, 1), 90, 91)],
    "acknowledged after the last read": [Seen((), 0, 1), Append(1, 2, 3), Append(2, 4, 5)],
}
BAD: dict[str, tuple[list[Operation], str]] = {
    "a lost write": ([Append(1, 0, 1), Append(2, 2, 3), Seen((2,), 4, 5)], "append of 2 .* before .* append of 1"),
    "a lost last write": ([Append(1, 0, 1), Seen((), 4, 5)], "nothing comes before the append of 1"),
    "a stale read": ([Append(1, 0, 1), Append(2, 2, 3), Seen((1,), 4, 5), Seen((1, 2), 6, 7)], "ends with 1 comes"),
    "a read that goes back": ([Append(1, 0, 9), Seen((1,), 1, 2), Seen((), 3, 4)], "ends with nothing comes before"),
    "a doubled write": ([Append(1, 0, 1), Seen((1, 1), 2, 3)], "1 is there 2 times"),
    "a phantom": ([Append(1, 0, 1), Seen((1, 7), 2, 3)], "nobody has appended it"),
    "a write from the future": ([Seen((1,), 0, 1), Append(1, 2, 3)], "append of 1 .* before the read"),
    "an unknown write from the future": ([Seen((1,), 0, 1), Append(1, 2)], "append of 1 .* before the read"),
    "reordered": ([Append(1, 0, 1), Append(2, 2, 3), Seen((2, 1), 4, 5)], "append of 2 .* before the append of 1"),
    "two orders": (
        [Append(1, 0, 9), Append(2, 0, 9), Seen((1, 2), 1, 2), Seen((2,), 1, 2)],
        "no beginning of what another read saw",
    ),
    "an unknown write that was there and went": ([Append(1, 0), Seen((1,), 1, 2), Seen((), 3, 4)], "nothing comes"),
    "never seen, and followed by what was": ([Append(1, 0, 1), Append(2, 5, 9), Seen((2,), 6, 7)], "append of 2"),
}


def verdict(history: list[Operation]) -> str | None:
    reads = [each for each in history if isinstance(each, Seen)]
    return violation([each for each in history if isinstance(each, Append)], reads)


def explained(history: list[Operation], state: tuple[int, ...] = (), tried: set[object] | None = None) -> bool:
    """By trying every order (Wing and Gong, with Lowe's memory of what was tried)."""
    tried = set() if tried is None else tried
    if all(isinstance(each, Append) and each.returned == inf for each in history):
        return True
    here = (frozenset(history), state)
    if here in tried:
        return False
    tried.add(here)
    first_return = min(each.returned for each in history)
    for number, each in enumerate(history):
        rest = history[:number] + history[number + 1 :]
        if each.called > first_return or (isinstance(each, Seen) and each.values != state):
            continue
        after = (*state, each.value) if isinstance(each, Append) else state
        if explained(rest, after, tried):
            return True
    return False


def lived(chance: random.Random) -> list[Operation]:
    """A good history: each operation takes effect at a moment between call and return; unknown ones much later."""
    moments: list[tuple[float, float, float, int | None]] = []
    for value in range(chance.randint(1, 7)):
        called = chance.random()
        known = chance.random() < 0.7
        lasts = chance.random() * (0.4 if known else 2)
        moments.append((called + lasts * chance.random(), called, called + lasts if known else inf, value))
    for _ in range(chance.randint(1, 5)):
        called, lasts = chance.random() * 1.2, chance.random() * 0.4
        moments.append((called + lasts * chance.random(), called, called + lasts, None))
    state: tuple[int, ...] = ()
    history: list[Operation] = []
    for _, called, returned, value in sorted(moments):
        if value is None:
            history.append(Seen(state, called, returned))
        else:
            state = (*state, value)
            history.append(Append(value, called, returned))
    return history


def mutated(history: list[Operation], chance: random.Random) -> list[Operation]:
    """One thing is otherwise: a value missing, doubled, strange or moved; a read or a write earlier or later."""
    at = chance.randrange(len(history))
    changed = history[at]
    if isinstance(changed, Append) or not changed.values or chance.random() < 0.3:
        by = chance.uniform(-1, 1)
        changed = replace(changed, called=changed.called + by, returned=changed.returned + by)
    else:
        values, place = list(changed.values), chance.randrange(len(changed.values))
        match chance.randrange(4):
            case 0:
                del values[place]
            case 1:
                values.insert(chance.randrange(len(values) + 1), values[place])
            case 2:
                values.insert(place, 99)
            case 3:
                values.insert(chance.randrange(len(values)), values.pop(place))
        changed = replace(changed, values=tuple(values))
    return [*history[:at], changed, *history[at + 1 :]]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_explained(name: str) -> None:
    assert verdict(GOOD[name]) is None
    assert explained(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found(name: str) -> None:
    history, said = BAD[name]
    found = verdict(history)
    assert found is not None
    assert re.search(said, found), found
    assert not explained(history)


def test_random_histories_and_their_mutants_get_the_verdict_of_who_tries_every_order() -> None:
    chance = random.Random(1)
    verdicts = {"good": 0, "still good": 0, "bad": 0}
    for _ in range(1500):
        history = lived(chance)
        assert verdict(history) is None, history
        assert explained(history), history
        verdicts["good"] += 1
        mutant = mutated(history, chance)
        assert (verdict(mutant) is None) == explained(mutant), mutant
        verdicts["still good" if explained(mutant) else "bad"] += 1
    assert min(verdicts.values()) > 300, verdicts


def test_ten_minutes_are_judged_in_a_moment() -> None:
    """One list of 20,000 values, if need be."""
    values = tuple(range(20_000))
    history: list[Operation] = [Append(value, value, value + 5) for value in values]
    history += [Seen(values[:number], number + 5, number + 5.5) for number in range(0, len(values), 500)]
    assert verdict(history) is None
    stale = Seen(values[:100], 200, 201)
    assert verdict([*history, stale]) is not None
