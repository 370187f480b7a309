"""The clock and the randomness of a simulated machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from littlebigcluster.clock import Clock, seeded
from littlebigcluster.testing.loop import Machine, VirtualLoop

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def time_of_day(loop: VirtualLoop) -> datetime:
    """The true one."""
    return BEGINNING + timedelta(seconds=loop.now)


class SimulatedClock(Clock):
    """Of one machine; None: a perfect one."""

    def __init__(self, loop: VirtualLoop, machine: Machine | None, seed: int) -> None:
        self._loop, self._machine = loop, machine
        self._random = seeded(seed)

    def monotonic(self) -> float:
        return self._loop.now if self._machine is None else self._machine.monotonic(self._loop.now)

    def boottime(self) -> float:
        return self.monotonic() + (0.0 if self._machine is None else self._machine.suspended_seconds)

    def now(self) -> datetime:
        wrong = 0.0 if self._machine is None else self._machine.wall_offset
        return time_of_day(self._loop) + timedelta(seconds=wrong)

    def token(self, size_bytes: int = 16) -> bytes:
        return self._random.randbytes(size_bytes)

    def uuid7(self) -> UUID:
        milliseconds, chance = int(self.now().timestamp() * 1000), self._random.getrandbits(74)
        rand_a, rand_b = chance >> 62, chance & (1 << 62) - 1
        return UUID(int=(milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)
