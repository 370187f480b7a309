"""Can a history have happened one step after the other, each step between its call and its return?

The object is a list to which everybody appends values of their own, and which is read as a whole. That makes the
question easy where in general it is exponential: the longest read tells the order of all appends that anybody saw, so
every operation has one place only, and what is left is to look whether time agrees. Linearizability is local (Herlihy
and Wing, 1990, theorem 1): a history over many lists is linearizable if that of each list is, so long histories are
cut into many short lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Append:
    """`returned` is infinite while nobody knows whether it has taken effect: it may at any later moment, or never."""

    value: int
    called: float
    returned: float = inf


@dataclass(frozen=True)
class Seen:
    """A read that has returned, and all that was in the list."""

    values: tuple[int, ...]
    called: float
    returned: float


def violation(appends: Iterable[Append], reads: Iterable[Seen]) -> str | None:
    """Why no order of these operations explains what was seen; None if one does."""
    of_value, reads = {append.value: append for append in appends}, list(reads)
    longest = max((read.values for read in reads), key=len, default=())
    for value, times in Counter(longest).items():
        if times > 1:
            return f"{value} is there {times} times"
        if value not in of_value:
            return f"{value} is there, and nobody has appended it"
    for read in reads:
        if read.values != longest[: len(read.values)]:
            return f"{_shown(read)} is no beginning of what another read saw: {longest}"
    # A read of n values stands at 2n, the append of the n-th before it, at 2n - 1. What was acknowledged and never seen
    # must come after all that was.
    placed: list[tuple[int, Append | Seen]] = [(2 * len(read.values), read) for read in reads]
    placed += [(2 * number + 1, of_value[value]) for number, value in enumerate(longest)]
    seen = set(longest)
    placed += [
        (2 * len(longest) + 1, each) for value, each in of_value.items() if value not in seen and each.returned < inf
    ]
    return _against_time(placed)


def _against_time(placed: list[tuple[int, Append | Seen]]) -> str | None:
    """Somebody whose place is before that of another one, who had returned before he called."""
    by_return = sorted(placed, key=lambda each: each[1].returned)
    last: tuple[int, Append | Seen] | None = None
    returned = 0
    for place, operation in sorted(placed, key=lambda each: each[1].called):
        while by_return[returned][1].returned < operation.called:
            if last is None or by_return[returned][0] > last[0]:
                last = by_return[returned]
            returned += 1
        if last is not None and last[0] > place:
            return f"{_shown(operation)} comes before {_shown(last[1])}, which had returned before it was called"
    return None


def _shown(operation: Append | Seen) -> str:
    when = f"from {operation.called:.3f} to {operation.returned:.3f}"
    if isinstance(operation, Append):
        return f"the append of {operation.value} {when}"
    return f"the read {when} that ends with {operation.values[-1] if operation.values else 'nothing'}"
