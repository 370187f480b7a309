"""How many streams may be reset, and when again."""

from __future__ import annotations

from littlebigcluster.clock import Clock
from littlebigcluster.net.resets import ResetBudget


class Hand(Clock):
    time = 0.0

    def monotonic(self) -> float:
        return self.time


def test_the_budget_is_spent_and_comes_back() -> None:
    clock = Hand()
    budget = ResetBudget(clock, limit=3, window_seconds=10)
    for left in (3, 2, 1, 0, -1):
        assert budget.left() == left
        budget.spend()
    clock.time = 9.9
    assert budget.left() == -2
    clock.time = 10.0
    assert budget.left() == 3


def test_no_window_holds_more_than_the_limit() -> None:
    clock = Hand()
    budget = ResetBudget(clock, limit=5, window_seconds=10)
    spent = []
    for _ in range(200):
        clock.time += 0.7
        if budget.left() > 0:
            budget.spend()
            spent.append(clock.time)
    assert all(sum(start <= at < start + 10 for at in spent) <= 5 for start in spent)
    assert len(spent) > 60
