"""The only place that reads a clock or makes randomness.

Everything else is handed a `Clock`, so that a test or a simulation can stand in for all of them at once.
Waiting is asyncio's (`asyncio.sleep`, `asyncio.timeout`) and goes by the event loop's own time.
"""

from __future__ import annotations

import random
import secrets
import time
from datetime import UTC, datetime
from uuid import UUID


class Clock:
    """The clocks and the randomness of this machine."""

    def __init__(self) -> None:
        self._random = random.Random(secrets.randbits(128))

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back. Stands still while the machine is suspended."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds since some fixed moment; goes on while the machine is suspended, where the system can tell.

        Linux has CLOCK_BOOTTIME for this; the monotonic clocks of macOS (`mach_continuous_time` is not
        exposed) and Windows are the best that Python offers there.
        """
        if _BOOTTIME is not None:
            return time.clock_gettime(_BOOTTIME)
        return time.monotonic()

    def now(self) -> datetime:
        """The time of day, in UTC. Serves people and point-in-time restore; never safety."""
        return datetime.now(UTC)

    def random(self) -> float:
        """A number in [0, 1), for jitter."""
        return self._random.random()

    def token(self, size_bytes: int = 16) -> bytes:
        """Unpredictable bytes."""
        return secrets.token_bytes(size_bytes)

    def uuid7(self) -> UUID:
        """A UUID of version 7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
        millis = int(self.now().timestamp() * 1000)
        rand_a, rand_b = secrets.randbits(12), secrets.randbits(62)
        return UUID(int=(millis & (1 << 48) - 1) << 80 | 7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def seeded(seed: int) -> random.Random:
    """A generator that always gives the same numbers: for simulated faults and latencies, never for secrets."""
    return random.Random(seed)
