"""`lbc doctor` tells the truth about every store, and docs/STORES.md says what it tells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from littlebigcluster import examine_store
from littlebigcluster.clock import Clock
from littlebigcluster.store import Location, open_store
from tests import buckets
from tests.stores_report import STORES, UNLUCKY, outcome

PAGE = Path(__file__).parents[2] / "docs" / "STORES.md"
SERVERS = ("ministack", "ceph", "azurite", "s3rver")
KINDS = [
    "directory",
    "memory",
    *(pytest.param(kind, marks=pytest.mark.server(kind)) for kind in SERVERS),
]


def outcomes_on_the_page(kind: str) -> dict[str, str]:
    """By the name of the check."""
    table = PAGE.read_text().partition("## Outcomes")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", table, re.M)]
    column = rows[0].index(kind)
    return {row[0]: row[column] for row in rows[2:]}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_page_says_what_a_run_finds(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind in STORES
    # How quick this machine is at the moment is no trait of the store.
    monkeypatch.setattr("littlebigcluster.store.doctor.surroundings.SLOW_SECONDS", 60.0)
    match kind:
        case "directory":
            location: Location = tmp_path / "store"
        case "memory":
            location = "memory://doctor"
        case "azurite":
            location = buckets.new_azure_url(request.getfixturevalue(kind))
        case _:
            location = buckets.new_s3_url(request.getfixturevalue(kind))
    store = open_store(location, clock=clock)
    await store.put("mine", b"x")
    found = await examine_store(location)
    seen, said = {check.name: outcome(check.outcome) for check in found.checks}, outcomes_on_the_page(kind)
    if kind == UNLUCKY:
        lucky = {name for name, outcome in said.items() if outcome == "pass"}
        assert {seen[name] for name in lucky} <= {"pass", "**FAIL**"}
        seen, said = ({name: each[name] for name in each if name not in lucky} for each in (seen, said))
    assert seen == said, "run python -m tests.stores_report > docs/STORES.md"
    assert found.sound == (kind != UNLUCKY)
    assert [info.key for info in await store.list("")] == ["mine"], "it cleans up, and touches nothing else"
    await store.close()
