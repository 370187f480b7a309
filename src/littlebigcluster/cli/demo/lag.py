"""How far a node trails the leader."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from littlebigcluster.clock import Clock

_RECENT_SECONDS = 1.0


class Lag:
    """Of one node, for each epoch: from the moment the store answered the leader that the epoch is created, to the
    moment the node saw its own copy at that epoch, so that every read there sees it.

    Both processes note their moment themselves, on the monotonic clock of the one machine, and tell it later, in any
    order. A node may see an epoch before the leader has the store's answer: no lag. What was durable before the node
    had joined does not count.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._awaited: deque[tuple[int, float]] = deque()  # durable, not seen yet; epochs grow
        self._seen: list[tuple[int, float]] = []  # epochs and moments grow; an epoch brings those before it
        self._recent: deque[tuple[float, float]] = deque()
        self.all_seconds: list[float] = []

    def durable(self, epoch: int, at: float) -> None:
        """The store has answered the leader. Epochs only grow."""
        if not self._seen or epoch > self._seen[-1][0]:
            self._awaited.append((epoch, at))
        else:
            self._sample(at, self._seen[bisect_left(self._seen, (epoch, 0.0))][1])

    def visible(self, epoch: int, at: float) -> None:
        """The node sees this epoch, and all before it."""
        self._seen.append((epoch, at))
        while self._awaited and self._awaited[0][0] <= epoch:
            _, durable_at = self._awaited.popleft()
            self._sample(durable_at, at)

    def worst_of_late(self) -> float | None:
        """The longest lag of the last second, in seconds, and it may go on; None when there was nothing to see."""
        now = self._clock.monotonic()
        while self._recent and now - self._recent[0][0] > _RECENT_SECONDS:
            self._recent.popleft()
        waiting = [now - self._awaited[0][1]] if self._awaited else []
        return max([*waiting, *(lag for _, lag in self._recent)], default=None)

    def _sample(self, durable_at: float, visible_at: float) -> None:
        if durable_at >= self._seen[0][1]:
            lag = max(0.0, visible_at - durable_at)
            self._recent.append((self._clock.monotonic(), lag))
            self.all_seconds.append(lag)
