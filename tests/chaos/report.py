"""What a run amounts to, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from tests.chaos.clients import Acknowledged


@dataclass(frozen=True)
class Failover:
    """From the last acknowledged write of one term to the first one of the next."""

    term: int
    seconds: float


def failovers(answers: Sequence[Acknowledged], terms: Mapping[int, int]) -> list[Failover]:
    """`terms` are those of the epochs, as the log has them. Terms in which nothing was acknowledged are passed over."""
    found: list[Failover] = []
    last: dict[int, float] = {}
    first: dict[int, float] = {}
    for answer in sorted((each for each in answers if each.epoch in terms), key=lambda answer: answer.at):
        term = terms[answer.epoch]
        first.setdefault(term, answer.at)
        last[term] = answer.at
    in_order = sorted(first)
    for before, term in pairwise(in_order):
        # An answer of the former leader may be late, and come after the first one of the next.
        found.append(Failover(term, max(0.0, first[term] - last[before])))
    return found


def longest_gap(answers: Sequence[Acknowledged], began: float, ended: float) -> float:
    """For how long no write was acknowledged, at most."""
    times = [began, *sorted(answer.at for answer in answers if began <= answer.at <= ended), ended]
    return max(after - before for before, after in pairwise(times))


def by_kind(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items())) or "none"


def spread(values: Sequence[float]) -> str:
    """Seconds: the one in the middle, and the longest."""
    return f"median {median(values):.1f} s, longest {max(values):.1f} s" if values else "none"
