"""What retention keeps: the decisions alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from littlebigcluster.epochs import names
from littlebigcluster.epochs.retention import (
    KEEP_ALL,
    Dated,
    Holdings,
    below,
    candidates,
    first_gap,
    holdings,
    thinned,
    wants_snapshot,
)
from littlebigcluster.store import ObjectInfo

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = 86400.0
seconds = st.floats(0, 20 * DAY)


def ago(age: float) -> datetime:
    return NOW - timedelta(seconds=age)


def seen(epochs: list[tuple[int, float]], snapshots: list[tuple[int, float]], *, marker: int = 0) -> Holdings:
    """Of (epoch, age in seconds), in order."""
    listing = [ObjectInfo(names.wal(epoch), 1, ago(age)) for epoch, age in epochs]
    listing += [ObjectInfo(names.snapshot(epoch), 1, ago(age)) for epoch, age in snapshots]
    return holdings(sorted(listing, key=lambda info: info.key), now=NOW, marker=marker)


@st.composite
def logs(draw: st.DrawFn) -> Holdings:
    """Any log, with dates that need not be in order."""
    first = draw(st.integers(0, 5))
    count = draw(st.integers(0, 30))
    ages = sorted(draw(st.lists(seconds, min_size=count + 1, max_size=count + 1)), reverse=True)
    jitter = draw(st.lists(st.floats(-2, 2), min_size=count + 1, max_size=count + 1))
    epochs = [(first + 1 + i, age + moved) for i, (age, moved) in enumerate(zip(ages[1:], jitter, strict=False))]
    chosen = draw(st.sets(st.integers(first, first + count)))
    snapshots = [(epoch, ages[epoch - first] - draw(st.floats(0, 100))) for epoch in sorted(chosen | {first})]
    return seen(epochs, snapshots, marker=first)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(found=logs(), retention=seconds, pinned=st.lists(st.integers(0, 40), max_size=3))
def test_whatever_is_young_or_pinned_is_reached_from_each_candidate(
    found: Holdings, retention: float, pinned: list[int]
) -> None:
    cutoff = ago(retention)
    # An epoch was the newest one until the next one came.
    needed = [each.epoch for each, after in pairwise(found.epochs) if after.written_at > cutoff]
    needed += [found.head, *pinned]
    if found.epochs and found.epochs[0].written_at > cutoff:
        needed.append(found.begin)
    for keep_from in candidates(found, retention, pinned):
        assert keep_from in {each.epoch for each in found.snapshots}
        assert keep_from <= min(needed)
        gone = below(found, keep_from)
        assert names.wal(keep_from) not in gone
        assert all(names.parse(name)[1] < keep_from for name in gone)  # type: ignore[index]
        assert gone == sorted(gone)
    # And the newest candidate is the best there is, when dates are in order.
    ordered = all(before.written_at <= after.written_at for before, after in pairwise(found.epochs))
    possible = [each.epoch for each in found.snapshots if each.epoch <= min(needed)]
    if ordered:
        assert max(candidates(found, retention, pinned), default=None) == max(possible, default=None)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ages=st.lists(st.floats(0, 40 * DAY), min_size=1, max_size=150),
    later=st.floats(0, 20 * DAY),
    pinned=st.lists(st.integers(0, 200), max_size=2),
    keep=st.integers(0, 20),
)
def test_thinned_snapshots_have_a_near_neighbour_however_often(
    ages: list[float], later: float, pinned: list[int], keep: int
) -> None:
    every = [Dated(number, ago(age)) for number, age in enumerate(sorted(ages, reverse=True))]
    keep_from = min(keep, len(every) - 1)
    left, now = every, NOW
    for step in (0.0, later / 2, later / 2, 0.0):
        now += timedelta(seconds=step)
        gone = thinned(Holdings(now, left, [], [], 0), keep_from, pinned)
        assert gone == sorted(gone)
        left = [each for each in left if names.snapshot(each.epoch) not in gone]
        kept = {each.epoch for each in left}
        assert {keep_from, every[-1].epoch} <= kept
        assert set(range(keep_from)) <= kept, "what is below goes otherwise"
        if pinned:
            base = max((epoch for epoch in kept if epoch <= min(pinned)), default=0)
            assert set(range(max(base, keep_from), len(every))) <= kept
        for each in every[keep_from:]:
            if now - each.written_at < KEEP_ALL:
                assert each.epoch in kept
            before = [other for other in left if keep_from <= other.epoch <= each.epoch]
            assert each.written_at - before[-1].written_at <= (now - each.written_at) / 5
    assert thinned(Holdings(now, left, [], [], 0), keep_from, pinned) == []


def test_snapshots_that_are_thinned_out_daily_stay_evenly_spread() -> None:
    left: list[Dated] = []
    every: list[Dated] = []
    for hour in range(24 * 30):
        now = NOW + timedelta(hours=hour)
        every.append(Dated(hour, now))
        left.append(Dated(hour, now))
        gone = thinned(Holdings(now, left, [], [], 0), 0, [])
        left = [each for each in left if names.snapshot(each.epoch) not in gone]
    for each in every:
        before = [other for other in left if other.epoch <= each.epoch]
        assert each.written_at - before[-1].written_at <= (now - each.written_at) / 5


def test_few_snapshots_stay_of_many() -> None:
    every = [Dated(number, ago(7 * DAY - number * 600)) for number in range(1008)]  # one every ten minutes of a week
    gone = thinned(Holdings(NOW, every, [], [], 0), 0, [])
    old = [each for each in every if NOW - each.written_at >= KEEP_ALL]
    assert 30 <= len(old) - len(gone) <= 50


def test_a_log_that_hangs_together_with_its_oldest_snapshot_is_not_cut_short() -> None:
    """Whatever the marker says: the snapshot before may be lost."""
    for marker in (0, 7, 99):
        found = seen([(epoch, 100.0) for epoch in range(1, 20)], [(10, 90.0)], marker=marker)
        assert (found.begin, found.strays) == (0, [])
        assert candidates(found, 3600, []) == []


def test_orphans_are_no_part_of_the_log() -> None:
    found = seen([(4, 1.0), *((epoch, 9000.0 - epoch) for epoch in range(10, 20))], [(10, 9000.0)], marker=2)
    assert (found.begin, found.strays) == (9, [4])
    assert candidates(found, 3600, []) == [10]
    assert below(found, 10) == [names.wal(4)]


def test_gaps_are_found() -> None:
    epochs = [(epoch, 1.0) for epoch in range(1, 10)]
    assert first_gap(seen(epochs, [(0, 1.0)]), 9) is None
    assert first_gap(seen(epochs, [(0, 1.0)]), 10) == 10
    assert first_gap(seen(epochs[:4] + epochs[5:], [(0, 1.0)]), 9) == 5
    assert first_gap(seen(epochs[:4] + epochs[5:], [(0, 1.0), (5, 1.0)], marker=5), 9) is None
    assert first_gap(seen([], [(0, 1.0)]), 0) is None


def test_a_snapshot_is_wanted_when_the_newest_is_old_and_something_came_since() -> None:
    for age, count, wanted in ((DAY, 3, True), (DAY / 4 - 1, 3, False), (DAY / 4, 3, True), (9 * DAY, 2, False)):
        found = seen([(epoch, 0.0) for epoch in range(1, count + 1)], [(0, 30 * DAY), (2, age)])
        assert wants_snapshot(found, DAY) is wanted
    assert not wants_snapshot(seen([], []), DAY)
