"""What the demo was told about each of its writes, and whether a node's rows agree with that."""

from __future__ import annotations

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
    phantom: frozenset[int]
    """There, but refused, or never written at all."""
    unknown_present: int
    """Of the writes without an answer, so many have taken effect."""

    @property
    def holds(self) -> bool:
        return not self.lost and not self.phantom


@dataclass
class Ledger:
    """Every write has a number of its own, is sent once, and ends in exactly one of the three ways."""

    acknowledged: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    latencies_seconds: list[float] = field(default_factory=list)
    """Of the acknowledged writes."""
    last_epoch: int = 0

    def record(self, number: int, outcome: Outcome, *, latency_seconds: float, epoch: int = 0) -> None:
        ends = {"acknowledged": self.acknowledged, "refused": self.refused, "unknown": self.unknown}
        ends[outcome].add(number)
        if outcome == "acknowledged":
            self.latencies_seconds.append(latency_seconds)
            self.last_epoch = max(self.last_epoch, epoch)

    def check(self, rows: Iterable[int]) -> Verdict:
        """Compare with the numbers that one place holds. A number that is there twice is a phantom."""
        present: set[int] = set()
        twice: set[int] = set()
        for number in rows:
            (twice if number in present else present).add(number)
        phantom = present - self.acknowledged - self.unknown | twice
        return Verdict(
            len(present), frozenset(self.acknowledged - present), frozenset(phantom), len(present & self.unknown)
        )


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them stays; 0.5 is the median. 0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
