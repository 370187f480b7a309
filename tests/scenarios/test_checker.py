"""The checker finds what it is there to find."""

from __future__ import annotations

import pytest

from tests.scenarios.checker import History, Read, State, problems

GOOD = [(1, 2), (2, 2), (3, 4)]


def end(*rows: tuple[int, int], epoch: int = 5, name: str = "the store") -> State:
    return State(name, epoch, list(rows))


def history(*reads: Read) -> History:
    """Writes 1 and 2 acknowledged, 3 unknown, 4 refused."""
    history = History(reads=list(reads))
    history.acknowledge(1, 2)
    history.acknowledge(2, 2)
    history.fates |= {3: "unknown", 4: "refused"}
    return history


def read(*rows: tuple[int, int], epoch: int = 3, not_before: int = 0, **more: object) -> Read:
    return Read("n", State("n", epoch, list(rows)), not_before, **more)  # type: ignore[arg-type]


def test_a_good_history_has_no_problems() -> None:
    reads = [
        read((1, 2), (2, 2), not_before=3, at_least=3),
        read(epoch=1),
        read(*GOOD, epoch=4, acknowledged=frozenset({1, 2})),
        read((2, 2), among=range(2, 4), acknowledged=frozenset({2})),
    ]
    assert problems(history(*reads), [end(*GOOD), end(*GOOD, epoch=6, name="n")]) == []


def test_an_unknown_write_may_be_there_or_not() -> None:
    assert problems(history(), [end((1, 2), (2, 2))]) == []


def test_a_write_that_travelled_may_be_older_than_its_acknowledgement_and_not_newer() -> None:
    travelled = history()
    travelled.later |= {1, 2}
    assert problems(travelled, [end((1, 1), (2, 2))]) == []
    assert problems(travelled, [end((1, 3), (2, 2))]) != []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(1, 2)], "write 2, acknowledged in epoch 2, is lost"),
        ([*GOOD, (1, 2)], "write 1 is there 2 times"),
        ([*GOOD, (4, 3)], "write 4 was refused, and is there"),
        ([*GOOD, (9, 3)], "nobody has written 9"),
        ([(1, 3), (2, 2)], "write 1 is of epoch 3, acknowledged in 2"),
        ([(1, 2), (2, 2), (3, 6)], "write 3 is of epoch 6, and this is epoch 5"),
    ],
)
def test_a_bad_end_is_found(rows: list[tuple[int, int]], said: str) -> None:
    assert any(said in problem for problem in problems(history(), [end(*rows)]))


def test_copies_that_differ_are_found() -> None:
    assert "n and the store differ" in problems(history(), [end(*GOOD), end((1, 2), (2, 2), name="n")])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (read((1, 2), (2, 2), not_before=4), "older than epoch 4"),
        (read((1, 2), (2, 2), at_least=4), "should be at least at 4"),
        (read((1, 2)), "lacks write 2 of epoch 2"),
        (read(among=range(2, 4)), "lacks write 2 of epoch 2"),
        (read(epoch=1, acknowledged=frozenset({1})), "lacks the acknowledged write 1"),
        (read((1, 2), (2, 2), (7, 3)), "shows write 7, which is not there at the end"),
    ],
)
def test_a_bad_read_is_found(bad: Read, said: str) -> None:
    assert any(said in problem for problem in problems(history(bad), [end(*GOOD)]))
