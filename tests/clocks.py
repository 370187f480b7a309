"""A clock that tests turn by hand."""

from __future__ import annotations

from littlebigcluster.clock import Clock


class HandClock(Clock):
    """Real randomness and time of day; `boottime` and `monotonic` go with real time plus what was added."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_seconds = self.passed_seconds = 0.0

    def sleep_machine(self, seconds: float) -> None:
        """The machine was suspended: only `boottime` tells."""
        self.slept_seconds += seconds

    def pass_time(self, seconds: float) -> None:
        """Only `monotonic` goes on: for who waits by it, without any harm to what is timed by `boottime`."""
        self.passed_seconds += seconds

    def monotonic(self) -> float:
        return super().monotonic() + self.passed_seconds

    def boottime(self) -> float:
        return super().boottime() + self.slept_seconds
