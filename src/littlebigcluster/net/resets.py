"""How many streams a client may reset before a server takes it for an attacker."""

from __future__ import annotations

from collections import deque

from littlebigcluster.clock import Clock


class ResetBudget:
    """How many streams a client may still reset.

    A server takes many resets in a short time for an attack and closes the connection, with all that is on it
    (h2corn: more than 200 in 10 s; others are of the same order). Half of that is left for streams, whose end
    cannot wait.
    """

    def __init__(self, clock: Clock, *, limit: int = 100, window_seconds: float = 10.0) -> None:
        self._clock = clock
        self._limit = limit
        self._window_seconds = window_seconds
        self._spent: deque[float] = deque()

    def left(self) -> int:
        """How many more are harmless now; negative when there were too many."""
        if self._spent:
            oldest = self._clock.monotonic() - self._window_seconds
            while self._spent and self._spent[0] <= oldest:
                self._spent.popleft()
        return self._limit - len(self._spent)

    def spend(self) -> None:
        """Count one reset."""
        self._spent.append(self._clock.monotonic())
