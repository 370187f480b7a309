"""`lbc doctor`: what a store keeps of what a cluster needs."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from littlebigcluster.cli import text
from littlebigcluster.store import Check, Examination, Location, examine_store


async def doctor(location: Location, *, as_json: bool) -> bool:
    """Print what was found; whether a cluster can live there."""
    console = Console(stderr=True)
    with console.status("") as status:
        found = await examine_store(location, on_check=lambda name: status.update(f"{name} ..."))
    if as_json:
        print(text.json_line({"sound": found.sound} | asdict(found)))
    else:
        _show(found)
    return found.sound


def _show(found: Examination) -> None:
    text.show(text.grid(["check", "result", "seen"], ([each.name, each.outcome, each.seen] for each in found.checks)))
    for check in found.checks:
        if check.outcome in ("fail", "warning"):
            text.show(text.printable(f"{check.name}: {check.meaning} {check.advice}"))
    made = sum(found.requests.values())
    text.show(f"{made:,} requests, about ${found.cost_dollars:.3f} at S3 Standard list prices; retries not counted.")
    text.show(f"{text.printable(found.store)}: {_verdict(found.checks)}")


def _verdict(checks: tuple[Check, ...]) -> str:
    outcomes = [check.outcome for check in checks]
    if failed := outcomes.count("fail"):
        return f"{text.count(failed, 'check')} failed; do not use it as it is"
    if "unknown" in outcomes:
        return "it could not be told whether a cluster can live there"
    warnings = outcomes.count("warning")
    return "a cluster can live there" + (f"; {text.count(warnings, 'warning')}" if warnings else "")
