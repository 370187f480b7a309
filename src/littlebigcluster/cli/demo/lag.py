"""How far a node trails the leader."""

from __future__ import annotations

from collections import deque

from littlebigcluster.clock import Clock

_RECENT_SECONDS = 1.0


class Lag:
    """From the moment the demo hears that a write is durable to the moment it hears that a node has its epoch."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reached = 0
        self._awaited: deque[tuple[int, float]] = deque()
        self._recent: deque[tuple[float, float]] = deque()
        self.all_seconds: list[float] = []

    def acknowledged(self, epoch: int) -> None:
        """A write of this epoch is durable. Epochs only grow."""
        now = self._clock.monotonic()
        if epoch > self._reached:
            self._awaited.append((epoch, now))
        else:
            self._sample(now, 0.0)

    def reached(self, epoch: int) -> None:
        """The node has this epoch."""
        now, self._reached = self._clock.monotonic(), epoch
        while self._awaited and self._awaited[0][0] <= epoch:
            self._sample(now, now - self._awaited.popleft()[1])

    def worst_of_late(self) -> float:
        """The longest lag of the last second, in seconds; it may go on."""
        now = self._clock.monotonic()
        while self._recent and now - self._recent[0][0] > _RECENT_SECONDS:
            self._recent.popleft()
        waiting = now - self._awaited[0][1] if self._awaited else 0.0
        return max([waiting, *(lag for _, lag in self._recent)])

    def _sample(self, now: float, lag: float) -> None:
        self._recent.append((now, lag))
        self.all_seconds.append(lag)
