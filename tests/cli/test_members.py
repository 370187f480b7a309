"""The member table, and the headline above it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from littlebigcluster.cli.members import Member, View, changes, members_table
from littlebigcluster.cli.text import rendered

ONE = Member(UUID(int=1), "10.0.0.1:4000", "AZ0")
TWO = Member(UUID(int=2), "10.0.0.2:4000", "AZ1", ("worker", "web"))
BOTH = View(TWO.uuid, ONE.uuid, frozenset([TWO, ONE]))


def test_the_table_is_the_originals_with_a_mark_at_the_leader() -> None:
    assert rendered(members_table(BOTH)) == (
        "┌───┬──────────────────────────────────────┬───────────────┬─────┬─────────────┐\n"
        "│   │ UUID(2)                              │ Address       │ AZ  │ Roles       │\n"
        "├───┼──────────────────────────────────────┼───────────────┼─────┼─────────────┤\n"
        "│ L │ 00000000-0000-0000-0000-000000000001 │ 10.0.0.1:4000 │ AZ0 │             │\n"
        "│ * │ 00000000-0000-0000-0000-000000000002 │ 10.0.0.2:4000 │ AZ1 │ worker, web │\n"
        "└───┴──────────────────────────────────────┴───────────────┴─────┴─────────────┘"
    )


def test_only_changes_are_told() -> None:
    assert list(changes(None, BOTH)) == ["Initial members:"]
    assert list(changes(BOTH, BOTH)) == []
    assert list(changes(BOTH, replace(BOTH, leader=TWO.uuid))) == ["Leader changed:"]
    assert list(changes(BOTH, replace(BOTH, leader=None))) == ["Leader changed: nobody leads"]
    assert list(changes(BOTH, replace(BOTH, members=frozenset([ONE])))) == ["Members changed:"]
