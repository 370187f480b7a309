"""The parts of the chaos that decide something: what is planned, and what is found in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Cluster, DeadlineExceeded, NotLeader, OutcomeUnknown
from tests.chaos import plan as planning
from tests.chaos.clients import Acknowledged, Clients
from tests.chaos.plan import plan
from tests.chaos.report import failovers, longest_gap
from tests.scenarios.checker import Recorder

GROUPS = (
    planning.PROCESS, planning.WIRE, planning.STORE_WIRE, planning.STORE, planning.NARROW, planning.FREEZE,
    planning.RESTART,
)  # fmt: skip
KINDS = [kind for group in GROUPS for kind in group]


def test_a_seed_is_a_schedule() -> None:
    first = plan(7, seconds=60, nodes=5, kinds=KINDS)
    assert first == plan(7, seconds=60, nodes=5, kinds=KINDS)
    assert first != plan(8, seconds=60, nodes=5, kinds=KINDS)


@pytest.mark.parametrize("seed", range(20))
def test_a_minute_has_every_kind_and_never_too_much_at_once(seed: int) -> None:
    planned = plan(seed, seconds=60, nodes=5, kinds=KINDS)
    assert {each.kind for each in planned} == set(KINDS)
    assert all(each.at + each.seconds <= 60.01 and sorted(each.nodes) == [1, 2, 3, 4, 5] for each in planned)
    for each in planned:
        beside = [other for other in planned if other.at <= each.at < other.at + other.seconds - 0.02]
        assert len(beside) <= planning.AT_ONCE


def test_a_failover_is_from_the_last_answer_of_a_term_to_the_first_of_the_next() -> None:
    answers = [
        Acknowledged(1, 1),
        Acknowledged(2, 2),
        Acknowledged(9, 3),
        Acknowledged(9.5, 2),
        Acknowledged(20, 4),
        Acknowledged(21, 99),
    ]
    found = failovers(answers, {1: 1, 2: 1, 3: 2, 4: 5})
    assert [(each.term, each.seconds) for each in found] == [(2, 0.0), (5, 11.0)]
    assert longest_gap(answers, 0, 21) == 10.5


class Puppet:
    """A host that answers as it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.id = "puppet"
        self.keys: list[str] = []

    async def execute(self, sql: str, parameters: Any, *, key: str, timeout: float) -> Any:
        self.keys.append(key)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def read(self, *question: Any, **how: Any) -> Any:
        return self.answers.pop(0)


class Done:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(Recorder(Cluster(tmp_path / "store")), [], 1, 30)


@pytest.mark.parametrize(
    ("answers", "fate"),
    [
        ([Done(3)], "acknowledged"),
        ([NotLeader("")], "refused"),
        ([OutcomeUnknown("")], "unknown"),
        ([NotLeader(""), OutcomeUnknown("")], "unknown"),
        ([DeadlineExceeded(""), DeadlineExceeded("")], "refused"),
        ([OutcomeUnknown(""), Done(3)], "acknowledged"),
    ],
)
async def test_the_fate_of_a_write_is_that_of_all_its_attempts(clients: Clients, answers: list[Any], fate: str) -> None:
    hosts: list[Any] = [Puppet(answer) for answer in answers]
    kind = "execute" if len(hosts) == 1 else "execute twice at once"
    assert await clients.write(kind, hosts) == fate
    history = clients.recorder.history
    assert history.fates == {1: fate}
    assert (clients.appends[1].returned < float("inf")) == (fate == "acknowledged")
    assert {key for host in hosts for key in host.keys} == {"write 1"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 1], [2, 2]], None),
        ([[2, 2]], "not linearizable, list 0: .* append of 1"),
        ([[1, 1]], "not linearizable, list 0: .* append of 2"),
        ([[2, 1], [1, 2]], "not linearizable, list 0: .* append of 1"),
        ([[1, 1], [2, 2], [1, 2]], "not linearizable, list 0: 1 is there 2 times"),
        ([[1, 1], [2, 2], [3, 2]], "not linearizable, list 0: 3 is there, and nobody"),
    ],
)
async def test_a_strong_read_that_is_wrong_is_found(clients: Clients, rows: list[Any], said: str | None) -> None:
    """Write 3 was refused."""
    host: Any = Puppet(Done(1), Done(2), NotLeader(""), [[None, 2], *rows])
    for _ in range(3):
        await clients.write("execute", [host])
    await clients.read(host, "strong", range(100))
    found = clients.violations()
    assert len(found) == (said is not None)
    if said is not None:
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(found[0])
