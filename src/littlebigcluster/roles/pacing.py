"""How often epochs may be written: a token bucket. Pure: times are passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """One epoch per `interval_seconds` on average, and up to `burst` at once after a quiet time.

    Invariant: 0 <= tokens <= burst.
    """

    interval_seconds: float
    burst: int
    tokens: float
    filled_at: float

    @classmethod
    def full(cls, interval_seconds: float, burst: int, now: float) -> TokenBucket:
        return cls(interval_seconds, burst, float(burst), now)

    def delay(self, now: float) -> float:
        """Seconds until an epoch may start; 0 when it may now."""
        if self.interval_seconds == 0:
            return 0.0
        self._fill(now)
        return max(0.0, (1.0 - self.tokens) * self.interval_seconds)

    def take(self, now: float) -> None:
        """An epoch starts."""
        if self.interval_seconds:
            self._fill(now)
            self.tokens = max(0.0, self.tokens - 1.0)

    def _fill(self, now: float) -> None:
        gained = max(0.0, now - self.filled_at) / self.interval_seconds
        self.tokens = min(float(self.burst), self.tokens + gained)
        self.filled_at = now
