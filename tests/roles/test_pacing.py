"""The token bucket: bursts at full speed, then one epoch per interval."""

from __future__ import annotations

import pytest

from littlebigcluster.roles.pacing import TokenBucket


def starts(bucket: TokenBucket, count: int, now: float = 0.0) -> list[float]:
    """When `count` epochs start that are all wanted at `now`."""
    times = []
    for _ in range(count):
        now += bucket.delay(now)
        bucket.take(now)
        times.append(now)
    return times


def test_a_burst_goes_at_full_speed_and_the_rest_at_the_interval() -> None:
    assert starts(TokenBucket.full(1.0, 3, 0.0), 6) == pytest.approx([0, 0, 0, 1, 2, 3])


def test_a_quiet_time_refills_at_most_the_burst() -> None:
    bucket = TokenBucket.full(1.0, 2, 0.0)
    starts(bucket, 2)
    assert starts(bucket, 4, now=100.0) == pytest.approx([100, 100, 101, 102])


def test_the_average_over_a_long_time_is_the_interval() -> None:
    assert starts(TokenBucket.full(0.5, 10, 0.0), 1010)[-1] == pytest.approx(500.0)


def test_no_interval_means_no_pacing() -> None:
    assert starts(TokenBucket.full(0.0, 1, 0.0), 100) == [0.0] * 100


def test_a_clock_that_stands_still_or_goes_back_gives_no_tokens() -> None:
    bucket = TokenBucket.full(1.0, 1, 100.0)
    bucket.take(100.0)
    assert bucket.delay(99.0) == pytest.approx(1.0)
    assert bucket.tokens == 0.0
