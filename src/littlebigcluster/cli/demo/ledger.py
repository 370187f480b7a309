"""What the demo was told about each of its writes, and whether a node's rows agree with that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the rows of one place compare with the ledger."""

    rows: int
    lost: frozenset[int]
    """Acknowledged, but not there."""
    doubled: frozenset[int]
    """There more than once."""
    phantom: frozenset[int]
    """There, but refused, or never written at all."""
    unknown_present: frozenset[int]
    """The writes without an answer that have taken effect."""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.phantom)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What is known of an acknowledged write."""

    through: str
    """The name of the node that was asked."""
    led: bool
    """Whether that node led when it was asked; else the library had to carry the write to the leader."""
    epoch: int
    at: float
    """Monotonic seconds."""
    latency_seconds: float


@dataclass
class Ledger:
    """Every write has a number of its own, is asked for once, and ends in exactly one of the three ways."""

    acknowledged: dict[int, Acknowledgement] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    """Certainly not written, said the node."""
    unknown: set[int] = field(default_factory=set)
    """Without an answer: done once or not at all, and the rows tell which."""

    def first_after(self, epoch: int) -> float | None:
        """When the first write of a later epoch than this was acknowledged; None when there is none."""
        return min((done.at for done in self.acknowledged.values() if done.epoch > epoch), default=None)

    @property
    def last_epoch(self) -> int:
        """The newest epoch with an acknowledged write."""
        return max((done.epoch for done in self.acknowledged.values()), default=0)

    def through(self) -> Counter[str]:
        """How many writes were acknowledged through each node."""
        return Counter(done.through for done in self.acknowledged.values())

    def latencies_seconds(self, *, led: bool) -> list[float]:
        """Of the acknowledged writes through the leader, or through the others."""
        return [done.latency_seconds for done in self.acknowledged.values() if done.led == led]

    def check(self, rows: Iterable[int]) -> Verdict:
        """Compare with the numbers that one place holds."""
        times = Counter(rows)
        return Verdict(
            rows=times.total(),
            lost=frozenset(self.acknowledged.keys() - times.keys()),
            doubled=frozenset(number for number, count in times.items() if count > 1),
            phantom=frozenset(times.keys() - self.acknowledged.keys() - self.unknown),
            unknown_present=frozenset(times.keys() & self.unknown),
        )


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them stays; 0.5 is the median. 0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
