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


@dataclass
class Findings:
    """What the demo has measured and proved."""

    ledger: Ledger
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """By place: every node, and the store."""
    failover_seconds: float = 0.0
    lags_seconds: Sequence[float] = ()
    """Of each acknowledged epoch on each node but the leader."""
    acknowledged_before: int = 0
    """Writes acknowledged before the leader was killed."""

    @property
    def holds(self) -> bool:
        """Whether every acknowledged write is everywhere, no other is anywhere, and all places agree."""
        rows = {verdict.rows for verdict in self.verdicts.values()}
        return (
            bool(self.ledger.acknowledged) and len(rows) == 1 and all(found.holds for found in self.verdicts.values())
        )


def opening(store: str, settings: Mapping[str, Any]) -> str:
    """What is about to happen, and with which settings."""
    defaults = NodeSettings()
    chosen = ", ".join(f"{name} {value:g} s" for name, value in settings.items())
    usual = ", ".join(f"{getattr(defaults, name):g} s" for name in settings)
    return f"A cluster of four processes in {shown(store)}\nQuick settings: {chosen}\n     (defaults: {usual})\n"


def shown(store: str) -> str:
    """The store without its settings, which may be secret."""
    location, query, _ = store.partition("?")
    return f"{location}?..." if query and "://" in location else store


def summary(findings: Findings) -> str:
    """What was measured, and whether the proof holds."""
    ledger, verdicts = findings.ledger, findings.verdicts
    lost = sum(len(verdict.lost) for verdict in verdicts.values())
    phantom = sum(len(verdict.phantom) for verdict in verdicts.values())
    after = len(ledger.acknowledged) - findings.acknowledged_before
    nodes = [verdict for place, verdict in verdicts.items() if place != "the store"]
    lines = [
        ("failover", f"{findings.failover_seconds:.2f} s from kill -9 to the first durable write of the new leader"),
        ("writes", f"{findings.acknowledged_before:,} acknowledged before the kill, {after:,} after it"),
        ("latency", f"{_quantiles(ledger.latencies_seconds)} from a write to its acknowledgement: it is durable"),
        ("lag", f"{_quantiles(findings.lags_seconds)} from then until another node has it"),
        ("rows", _rows(findings, len(nodes))),
        ("lost", f"{lost:,} acknowledged writes missing somewhere"),
        ("phantom", f"{phantom:,} rows that nobody wrote, or that were refused"),
        ("unknown", _unknown(findings)),
    ]
    if findings.holds:
        verdict = "PASSED: every acknowledged write is on every node, and no other."
    else:
        verdict = "FAILED: " + "; ".join(_failure(place, found) for place, found in verdicts.items())
    return "\n" + "\n".join(f"  {name:9} {text}" for name, text in lines) + f"\n\n{verdict}"


def _quantiles(seconds: Sequence[float]) -> str:
    return f"p50 {quantile(seconds, 0.5) * 1000:.1f} ms, p99 {quantile(seconds, 0.99) * 1000:.1f} ms"


def _rows(findings: Findings, nodes: int) -> str:
    rows = sorted({verdict.rows for verdict in findings.verdicts.values()})
    if len(rows) == 1:
        return f"{rows[0]:,} on each of {count(nodes, 'node')}, and in a copy restored from the store"
    return "differ: " + ", ".join(f"{place} {verdict.rows:,}" for place, verdict in findings.verdicts.items())


def _unknown(findings: Findings) -> str:
    unknown = len(findings.ledger.unknown)
    present = max((verdict.unknown_present for verdict in findings.verdicts.values()), default=0)
    return f"{count(unknown, 'write')} without an answer when the leader died; {present:,} of them took effect"


def _failure(place: str, verdict: Verdict) -> str:
    return f"{place} has {verdict.rows:,} rows, {len(verdict.lost):,} lost, {len(verdict.phantom):,} phantom"


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
