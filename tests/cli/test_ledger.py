"""The proof of the demo must fail when anything is wrong."""

from __future__ import annotations

from littlebigcluster.cli.demo.lag import Lag
from littlebigcluster.cli.demo.ledger import Acknowledgement, Ledger, quantile
from littlebigcluster.cli.demo.summary import Findings, shown, summary
from littlebigcluster.clock import Clock


def ledger() -> Ledger:
    """Writes 1 to 4 acknowledged, the even ones through a follower, 5 refused, 6 and 7 without an answer."""
    acknowledged = {
        number: Acknowledgement(f"node {2 - number % 2}", number % 2 == 1, number + 10, 100.0 - number, number / 1000)
        for number in (1, 2, 3, 4)
    }
    return Ledger(acknowledged, {5}, {6, 7})


def test_rows_that_agree_hold_whatever_became_of_the_unknown_ones() -> None:
    for rows in ([1, 2, 3, 4], [4, 3, 2, 1, 6], [1, 2, 3, 4, 6, 7]):
        verdict = ledger().check(rows)
        assert verdict.holds
        assert verdict.rows == len(rows)
        assert verdict.unknown_present == set(rows) - {1, 2, 3, 4}


def test_an_acknowledged_row_that_is_missing_is_lost() -> None:
    verdict = ledger().check([1, 2, 4])
    assert (verdict.lost, verdict.holds) == ({3}, False)


def test_a_refused_row_is_a_phantom() -> None:
    assert ledger().check([1, 2, 3, 4, 5]).phantom == {5}


def test_a_row_that_nobody_wrote_is_a_phantom() -> None:
    assert ledger().check([1, 2, 3, 4, 8]).phantom == {8}


def test_a_write_that_is_done_twice_is_doubled() -> None:
    verdict = ledger().check([1, 2, 2, 3, 4])
    assert (verdict.doubled, verdict.phantom, verdict.lost, verdict.holds) == ({2}, frozenset(), frozenset(), False)
    assert verdict.rows == 5


def test_a_write_without_an_answer_may_not_be_done_twice_either() -> None:
    verdict = ledger().check([1, 2, 3, 4, 6, 6])
    assert (verdict.doubled, verdict.holds) == ({6}, False)


def test_the_ledger_tells_through_which_node_when_and_how_fast() -> None:
    made = ledger()
    assert made.through() == {"node 1": 2, "node 2": 2}
    assert (made.latencies_seconds(led=True), made.latencies_seconds(led=False)) == ([0.001, 0.003], [0.002, 0.004])
    assert made.last_epoch == 14
    assert (made.first_after(12), made.first_after(14)) == (96.0, None)


def test_quantiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1)) == (51.0, 100.0, 100.0)
    assert quantile([], 0.5) == 0.0


class SetClock(Clock):
    """Shows what it is set to."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_lag_lasts_from_durable_until_visible_in_whatever_order_that_is_told() -> None:
    clock = SetClock()
    lag = Lag(clock)
    lag.visible(10, 0.5)  # what it had when it joined
    clock.seconds = 1.0
    lag.durable(11, 0.75)
    assert lag.worst_of_late() == 0.25  # and it goes on
    lag.visible(12, 1.0)
    assert lag.all_seconds == [0.25]
    lag.durable(12, 0.875)  # told late
    assert lag.all_seconds == [0.25, 0.125]
    lag.visible(13, 1.0)
    lag.durable(13, 1.5)  # visible before the leader had its answer
    assert lag.all_seconds == [0.25, 0.125, 0.0]
    assert lag.worst_of_late() == 0.25
    clock.seconds = 2.5
    assert lag.worst_of_late() is None


def test_what_was_durable_before_a_node_had_joined_is_no_lag() -> None:
    lag = Lag(SetClock())
    lag.durable(9, 0.0)
    lag.durable(11, 4.0)
    lag.visible(10, 5.0)
    lag.durable(10, 0.0)
    lag.durable(12, 5.5)
    lag.visible(12, 6.0)
    assert lag.all_seconds == [0.5]


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
    assert summary(made).endswith(
        "FAILED:\n  a has 5 rows; none lost, doubled or phantom\n  b has 4 rows; none lost, doubled or phantom"
    )
    assert not findings(a=[1, 2, 3, 4, 6], b=[1, 2, 3, 4, 7]).holds  # as many, but others


def test_the_proof_fails_when_anything_is_lost_doubled_or_too_much() -> None:
    for rows, line in [
        ([1, 2, 3], "lost      1 acknowledged"),
        ([1, 2, 3, 3, 4], "doubled   1 writes"),
        ([1, 2, 3, 4, 5], "phantom   1 rows"),
    ]:
        made = findings(a=rows, b=rows)
        assert not made.holds
        assert line in summary(made)
        assert "FAILED" in summary(made)
    assert "a has 6 rows; lost: 4; doubled: 1, 2; phantom: 5" in summary(findings(a=[1, 1, 2, 2, 3, 5]))
    assert "phantom: 10, 11, 12, 13, 14 and 2 more" in summary(findings(a=[1, 2, 3, 4, *range(10, 17)]))


def test_writes_caught_by_the_kill_are_told() -> None:
    made = findings(a=[1, 2, 3, 4, 6])
    made.killed, made.caught = "node 1", {"node 1": frozenset([6]), "node 2": frozenset([2, 4, 7])}
    assert "3 under way through other nodes at the kill, 2 acknowledged in the end" in summary(made)
    assert "2 writes without an answer; looked up: 1 took effect" in summary(made)


def test_the_settings_of_a_store_are_not_shown() -> None:
    assert shown("s3://bucket/a?secret_access_key=x") == "s3://bucket/a?..."
    assert shown("/tmp/why?") == "/tmp/why?"


def test_nothing_written_proves_nothing() -> None:
    assert not Findings(Ledger()).holds
