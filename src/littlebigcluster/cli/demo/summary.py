"""The words around the demo: what it does, what it found, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from littlebigcluster.cli.demo.ledger import Ledger, Verdict, quantile
from littlebigcluster.cli.text import count
from littlebigcluster.settings import NodeSettings

_SHOWN = 5
"""Numbers of writes that are named when the proof fails."""


@dataclass
class Findings:
    """What the demo has measured and proved."""

    ledger: Ledger
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """By place: every node, and the store."""
    epoch: int = 0
    """At which all places were compared."""
    killed: str = ""
    """The name of the leader that was killed."""
    failover_seconds: float = 0.0
    lags_seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of each epoch on each node that did not write it, by name."""
    acknowledged_before: int = 0
    """Writes acknowledged before the leader was killed."""
    caught: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """The writes under way at the kill, by the name of the node that had been asked."""

    @property
    def holds(self) -> bool:
        """Whether every acknowledged write is everywhere, once, no other is anywhere, and all places agree."""
        verdicts = self.verdicts.values()
        same = len({(verdict.rows, verdict.unknown_present) for verdict in verdicts}) == 1
        return bool(self.ledger.acknowledged) and same and all(verdict.holds for verdict in verdicts)


def opening(store: str, settings: Mapping[str, Any], phase_seconds: float) -> str:
    """What is about to happen, and with which settings."""
    defaults = NodeSettings()
    quick = ", ".join(f"{name} {value:g} ({getattr(defaults, name):g})" for name, value in settings.items())
    return (
        f"A cluster of four processes in {shown(store)}\n"
        f"All four are written through. After {phase_seconds:g} s the leader is killed; at the end\n"
        "every copy is compared with what was acknowledged.\n"
        f"Quick settings, in seconds, with the defaults in brackets:\n  {quick}\n"
    )


def shown(store: str) -> str:
    """The store without its settings, which may be secret."""
    location, query, _ = store.partition("?")
    return f"{location}?..." if query and "://" in location else store


def summary(findings: Findings) -> str:
    """What was measured, and whether the proof holds."""
    verdicts = findings.verdicts.values()
    lost = len(frozenset().union(*(verdict.lost for verdict in verdicts)))
    doubled = len(frozenset().union(*(verdict.doubled for verdict in verdicts)))
    phantom = len(frozenset().union(*(verdict.phantom for verdict in verdicts)))
    lines = [
        ("failover", f"{findings.failover_seconds:.2f} s from kill -9 to the first durable write of the new leader"),
        *_writes(findings),
        ("latency", f"through the leader   {_quantiles(findings.ledger.latencies_seconds(led=True))}"),
        ("", f"through another node {_quantiles(findings.ledger.latencies_seconds(led=False))}"),
        *_lags(findings),
        ("rows", _rows(findings)),
        ("lost", f"{lost:,} acknowledged writes missing somewhere"),
        ("doubled", f"{doubled:,} writes there more than once"),
        ("phantom", f"{phantom:,} rows that nobody wrote, or that were refused"),
        ("unknown", _unknown(findings)),
    ]
    if findings.holds:
        verdict = "PASSED: every acknowledged write is on every node, exactly once, and no other."
    else:
        verdict = "\n  ".join(["FAILED:", *(_failure(place, found) for place, found in findings.verdicts.items())])
    return "\n" + "\n".join(f"  {name:9} {text}" for name, text in lines) + f"\n\n{verdict}"


def _writes(findings: Findings) -> list[tuple[str, str]]:
    ledger = findings.ledger
    after = len(ledger.acknowledged) - findings.acknowledged_before
    through = ", ".join(f"{name} {writes:,}" for name, writes in sorted(ledger.through().items()))
    forwarded = frozenset().union(*(writes for name, writes in findings.caught.items() if name != findings.killed))
    done = len(forwarded & ledger.acknowledged.keys())
    refused = f", {len(ledger.refused):,} refused" if ledger.refused else ""
    return [
        ("writes", f"{findings.acknowledged_before:,} acknowledged before the kill, {after:,} after it{refused}"),
        ("", f"through {through or 'no node'}"),
        ("", f"{len(forwarded):,} under way through other nodes at the kill, {done:,} acknowledged in the end"),
    ]


def _quantiles(seconds: Sequence[float]) -> str:
    longest = max(seconds, default=0.0)
    return f"p50 {_ms(quantile(seconds, 0.5))}, p99 {_ms(quantile(seconds, 0.99))}, longest {_ms(longest)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _lags(findings: Findings) -> list[tuple[str, str]]:
    lines = [f"{name} {_quantiles(lags)}" for name, lags in findings.lags_seconds.items() if lags]
    return [
        ("lag", "from the store's answer to the leader until the node itself sees the epoch"),
        *(("", line) for line in lines),
    ]


def _rows(findings: Findings) -> str:
    verdicts = findings.verdicts
    rows = {verdict.rows for verdict in verdicts.values()}
    if len(rows) == 1:
        nodes = count(len(verdicts.keys() - {"the store"}), "node")
        return f"{rows.pop():,} on each of {nodes}, and in a copy restored from the store (epoch {findings.epoch})"
    return "differ: " + ", ".join(f"{place} {verdict.rows:,}" for place, verdict in verdicts.items())


def _unknown(findings: Findings) -> str:
    present = frozenset().union(*(verdict.unknown_present for verdict in findings.verdicts.values()))
    return f"{count(len(findings.ledger.unknown), 'write')} without an answer; looked up: {len(present):,} took effect"


def _failure(place: str, verdict: Verdict) -> str:
    kinds = {"lost": verdict.lost, "doubled": verdict.doubled, "phantom": verdict.phantom}
    found = "; ".join(f"{kind}: {_some(numbers)}" for kind, numbers in kinds.items() if numbers)
    return f"{place} has {verdict.rows:,} rows; {found or 'none lost, doubled or phantom'}"


def _some(numbers: frozenset[int]) -> str:
    first = ", ".join(map(str, sorted(numbers)[:_SHOWN]))
    return first if len(numbers) <= _SHOWN else f"{first} and {len(numbers) - _SHOWN:,} more"


def farewell(store: str, directory: Path, pids: Sequence[int], *, kept: bool) -> str:
    """How to go on."""
    command = f"lbc -p {shlex.quote(shown(store))}"
    if kept:
        return (
            f"\nThe cluster keeps running. Join it:   {command} follower\n"
            f"Look at it:                           {command} status\n"
            f"End it:                               kill {' '.join(map(str, pids))} && rm -r {directory}\n"
        )
    if Path(store).is_relative_to(directory):
        return ""
    return f"\nThe nodes have ended. What they wrote is still there: {command} log\n"
