"""The proof of the demo must fail when anything is wrong."""

from __future__ import annotations

from littlebigcluster.cli.demo.lag import Lag
from littlebigcluster.cli.demo.ledger import Ledger, quantile
from littlebigcluster.cli.demo.summary import Findings, shown, summary
from littlebigcluster.clock import Clock


def ledger() -> Ledger:
    """Writes 1 to 4 acknowledged, 5 refused, 6 and 7 without an answer."""
    made = Ledger()
    for number in (1, 2, 3, 4):
        made.record(number, "acknowledged", latency_seconds=number / 1000, epoch=number + 10)
    made.record(5, "refused", latency_seconds=9.0)
    made.record(6, "unknown", latency_seconds=9.0)
    made.record(7, "unknown", latency_seconds=9.0)
    return made


def test_rows_that_agree_hold_whatever_became_of_the_unknown_ones() -> None:
    for rows in ([1, 2, 3, 4], [4, 3, 2, 1, 6], [1, 2, 3, 4, 6, 7]):
        verdict = ledger().check(rows)
        assert verdict.holds
        assert verdict.rows == len(rows)
        assert verdict.unknown_present == len(rows) - 4


def test_an_acknowledged_row_that_is_missing_is_lost() -> None:
    verdict = ledger().check([1, 2, 4])
    assert (verdict.lost, verdict.holds) == ({3}, False)


def test_a_refused_row_is_a_phantom() -> None:
    assert ledger().check([1, 2, 3, 4, 5]).phantom == {5}


def test_a_row_that_nobody_wrote_is_a_phantom() -> None:
    assert ledger().check([1, 2, 3, 4, 8]).phantom == {8}


def test_a_row_that_is_there_twice_is_a_phantom() -> None:
    verdict = ledger().check([1, 2, 2, 3, 4])
    assert (verdict.phantom, verdict.holds) == ({2}, False)


def test_only_acknowledged_writes_count_for_the_latency() -> None:
    assert ledger().latencies_seconds == [0.001, 0.002, 0.003, 0.004]
    assert ledger().last_epoch == 14


def test_quantiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1)) == (51.0, 100.0, 100.0)
    assert quantile([], 0.5) == 0.0


class SetClock(Clock):
    """Shows what it is set to."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_lag_lasts_until_the_node_has_the_epoch() -> None:
    clock = SetClock()
    lag = Lag(clock)
    lag.acknowledged(1)
    clock.seconds = 0.25
    lag.acknowledged(2)
    assert lag.worst_of_late() == 0.25
    clock.seconds = 0.5
    lag.reached(2)
    assert lag.all_seconds == [0.5, 0.25]
    assert lag.worst_of_late() == 0.5
    lag.reached(3)
    lag.acknowledged(3)
    assert lag.all_seconds == [0.5, 0.25, 0.0]
    clock.seconds = 2.0
    assert lag.worst_of_late() == 0.0


def findings(**rows: list[int]) -> Findings:
    made = Findings(ledger())
    for place, numbers in rows.items():
        made.verdicts[place] = made.ledger.check(numbers)
    return made


def test_the_proof_holds_when_all_places_agree() -> None:
    made = findings(a=[1, 2, 3, 4, 6], b=[1, 2, 3, 4, 6])
    assert made.holds
    assert "PASSED" in summary(made)


def test_the_proof_fails_when_places_differ() -> None:
    made = findings(a=[1, 2, 3, 4, 6], b=[1, 2, 3, 4])
    assert not made.holds
    assert "FAILED: a has 5 rows, 0 lost, 0 phantom; b has 4 rows" in summary(made)


def test_the_proof_fails_when_anything_is_lost_or_too_much() -> None:
    assert not findings(a=[1, 2, 3], b=[1, 2, 3]).holds
    assert not findings(a=[1, 2, 3, 4, 5], b=[1, 2, 3, 4, 5]).holds


def test_the_settings_of_a_store_are_not_shown() -> None:
    assert shown("s3://bucket/a?secret_access_key=x") == "s3://bucket/a?..."
    assert shown("/tmp/why?") == "/tmp/why?"


def test_nothing_written_proves_nothing() -> None:
    assert not Findings(Ledger()).holds
