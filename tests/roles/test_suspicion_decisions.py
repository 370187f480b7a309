"""A leader that was heard and is not any more: who claims, when, and who holds back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

import pytest
from tests.roles.test_decisions import ME, OTHER, TIMING, metadata

from littlebigcluster.epochs import Beacon, Leader
from littlebigcluster.roles import decisions
from littlebigcluster.roles.decisions import RANK_SECONDS, Claim, Findings, Question, Timing, View, Wait

NEVER = float("inf")


def heard(*, at: float = 10.0) -> View:
    """A standby that has listened from 0 to `at`, and heard the leader of term 1 then."""
    view = decisions.begin(1, OTHER, 0.0)
    for tick in range(int(at * 4) + 1):
        view = decisions.listened(view, tick / 4, TIMING)
    return decisions.heard_leader(decisions.saw_nothing(view, at, TIMING), 1, 0.0, at)


def listening(view: View, *, until: float) -> View:
    """It goes on listening, and hears nothing."""
    now = view.listened_at
    while now < until:
        now = min(until, now + 0.25)
        view = decisions.listened(view, now, TIMING)
    return view


def found(
    leader: Literal["leads", "gone", "silent"] = "silent", *, reach: int = 0, miss: int = 0, silent: int = 0,
    rank: int = 0, term: int = 1,
) -> Findings:  # fmt: skip
    return Findings(term, leader, reach, miss, silent, rank)


def asked(view: View, findings: Findings, now: float) -> View:
    """What the others say, and a look at the store that finds nothing."""
    return decisions.saw_nothing(decisions.heard_from_members(view, findings, now, TIMING), now, TIMING)


def decide(view: View, now: float, *, fed: bool = False, timing: Timing = TIMING) -> Wait | Claim:
    return decisions.decide(view, now, timing, me=ME, can_lead=True, patience=0.0, fed=fed)


def test_a_leader_is_suspected_when_it_was_not_heard_for_the_time_out() -> None:
    assert decisions.suspected_at(heard(), TIMING) == 11.5
    assert decisions.suspected_at(decisions.heard_leader(heard(), 1, 0.0, 10.5), TIMING) == 12.0


def test_a_leader_that_was_never_heard_is_not_suspected() -> None:
    """Only silence counts for it: else a node that reaches nobody would take over from one after the other."""
    view = listening(replace(heard(), contact_at=None), until=18.0)
    assert decisions.suspected_at(view, TIMING) == NEVER
    assert isinstance(decide(asked(view, found("gone", miss=5), 18.0), 18.0), Wait)


def test_contact_with_one_leader_is_none_with_the_next() -> None:
    view = decisions.saw_epoch(heard(), metadata(2, OTHER), 10.1)
    assert decisions.suspected_at(view, TIMING) == NEVER
    assert decisions.suspected_at(decisions.heard_leader(view, 1, 0.0, 10.2), TIMING) == NEVER
    assert decisions.suspected_at(decisions.heard_leader(view, 2, 0.0, 10.2), TIMING) == 11.7


def test_a_released_leadership_is_not_suspected() -> None:
    assert decisions.suspected_at(decisions.saw_epoch(heard(), metadata(1, None), 10.1), TIMING) == NEVER


@pytest.mark.parametrize(
    "findings",
    [found(), found("gone"), found(miss=2), found(miss=1, silent=7), found("gone", silent=8)],
    ids=["nobody to ask", "gone", "others miss it", "one misses it, the rest is silent", "gone, others too"],
)  # fmt: skip
def test_a_leader_that_nobody_reaches_is_replaced_at_once(findings: Findings) -> None:
    view = asked(listening(heard(), until=11.5), findings, 11.5)
    action = decide(view, 11.5)
    assert isinstance(action, Claim)
    assert action.reason == f"nobody reaches {OTHER.uuid}, not heard for 1.5 s"


@pytest.mark.parametrize(
    "findings",
    [found("leads", miss=3), found("silent", reach=1, miss=3), found("gone", reach=1), found("silent", silent=3)],
    ids=["it answers", "one reaches it", "one reaches it after all", "this node is cut off"],
)  # fmt: skip
def test_a_leader_that_somebody_may_reach_stays(findings: Findings) -> None:
    view = asked(listening(heard(), until=11.5), findings, 11.5)
    assert isinstance(decide(view, 11.5), Wait)
    assert isinstance(decide(listening(view, until=19.0), 19.0), Wait)


def test_a_leader_that_answers_is_heard_again() -> None:
    view = decisions.heard_from_members(listening(heard(), until=11.5), found("leads"), 11.5, TIMING)
    assert decisions.suspected_at(view, TIMING) == 13.0


def rounds(view: View, findings: Findings, count: int) -> tuple[list[float], list[float]]:
    """The next rounds come to this, each as soon as it is due: when each ends, and how long it waits for answers."""
    now, ends, patience = view.listened_at, [], []
    for _ in range(count):
        due = decisions.suspected_at(view, TIMING)
        view = listening(view, until=due)
        asking = decisions.question(view, due, TIMING)
        assert asking is not None
        now = due + asking.patience
        view = decisions.heard_from_members(listening(view, until=now), findings, now, TIMING)
        ends.append(now)
        patience.append(asking.patience)
    return ends, patience


def test_there_is_no_question_before_it_is_due() -> None:
    view = listening(heard(), until=11.5)
    assert decisions.question(view, 11.4, TIMING) is None
    assert decisions.question(view, 11.5, TIMING) == Question(OTHER, 1, 0.5)


@pytest.mark.parametrize(
    "findings", [found("silent", silent=2), found(reach=1)], ids=["nobody answers", "one hears it"]
)
def test_a_suspicion_that_stays_is_asked_about_again_soon_and_then_more_rarely(findings: Findings) -> None:
    ends, patience = rounds(heard(), findings, 5)
    assert ends[0] == 12.0
    assert ends[1] == 12.0 + 0.25 + 1.0, "who needs a second to answer is heard in the second round"
    pauses = [end - before - wait for end, before, wait in zip(ends[1:], ends, patience[1:], strict=False)]
    assert pauses == pytest.approx([0.25, 0.5, 1.0, 2.0])
    assert patience == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_a_leader_that_answers_but_does_not_feed_is_asked_more_and_more_rarely() -> None:
    """Each time costs it, and the others, a connection."""
    ends, patience = rounds(heard(), found("leads"), 8)
    pauses = [end - before - wait for end, before, wait in zip(ends[1:], ends, patience[1:], strict=False)]
    assert pauses == pytest.approx([1.5, 1.5, 1.5, 2.0, 4.0, 4.0, 4.0])


def test_a_leader_that_is_heard_again_is_asked_for_at_once_the_next_time() -> None:
    view = heard()
    for now in (11.5, 12.5, 14.0, 17.0):
        view = decisions.heard_from_members(listening(view, until=now), found(reach=1), now, TIMING)
    assert decisions.suspected_at(view, TIMING) == 19.0
    view = decisions.heard_leader(view, 1, 0.0, 17.5)
    assert decisions.suspected_at(view, TIMING) == 19.0
    assert decisions.question(listening(view, until=19.0), 19.0, TIMING) == Question(OTHER, 1, 0.5)


@dataclass
class Alone:
    """A standby to which nobody answers from 10 s on, and which looks at the store; until it claims."""

    beacons: tuple[float, ...] = ()
    blind: tuple[float, float] = (NEVER, NEVER)
    """The store does not answer between these moments."""
    frozen: tuple[float, float] = (NEVER, NEVER)

    def claims_at(self) -> float:
        view, looks_at, count = heard(), 10.5, 0
        view = decisions.saw_beacon(view, None, 10.0)
        for tick in range(10 * 20, 60 * 20):
            now = tick / 20
            if self.frozen[0] < now < self.frozen[1]:
                continue
            view = decisions.listened(view, now, TIMING)
            if decisions.question(view, now, TIMING) is not None:
                view = decisions.heard_from_members(view, found("silent", silent=2), now, TIMING)
                looks_at = now if view.claim_at is not None else looks_at
            if now < looks_at:
                continue
            looks_at = now + TIMING.poll_interval
            if self.blind[0] < now < self.blind[1]:
                continue
            view = decisions.saw_nothing(view, now, TIMING)
            if decisions.wants_beacon(view, now, TIMING) and count < sum(at <= now for at in self.beacons):
                count += 1
                view = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=count), now)
            if isinstance(decide(view, now), Claim):
                return now
        return NEVER


def test_a_node_to_which_nobody_answers_waits_for_a_sign_of_life_in_the_store_first() -> None:
    """Half of the time that silence alone would take: who is cut off itself sees the beacons of an idle leader."""
    assert 11.5 + TIMING.lonely_silence <= Alone().claims_at() <= 11.5 + TIMING.lonely_silence + 4.0
    idle = tuple(11.0 + 6.7 * number for number in range(8))
    assert Alone(beacons=idle).claims_at() == NEVER
    assert Alone(beacons=(15.0,)).claims_at() >= 15.0 + TIMING.lonely_silence


def test_a_node_to_which_nobody_answers_begins_anew_after_the_store_did_not_answer_either() -> None:
    """The leader could show no life meanwhile."""
    assert Alone(blind=(14.0, 19.0)).claims_at() >= 19.0 + TIMING.lonely_silence
    late = Alone(blind=(17.0, 23.5), beacons=(11.0, 17.0, 24.0, 30.7, 37.4, 44.1, 50.8, 57.5))
    assert late.claims_at() == NEVER


def test_a_node_to_which_nobody_answers_begins_anew_after_it_stood_still() -> None:
    assert Alone(frozen=(15.0, 17.0)).claims_at() >= 17.0 + TIMING.lonely_silence


def test_who_comes_later_in_rank_waits_for_the_others() -> None:
    view = asked(listening(heard(), until=11.5), found(rank=2), 11.5)
    action = decide(view, 11.5)
    assert isinstance(action, Wait)
    assert action.seconds <= 2 * RANK_SECONDS
    assert isinstance(decide(view, 11.5 + 1.9 * RANK_SECONDS), Wait)
    assert isinstance(decide(view, 11.5 + 2 * RANK_SECONDS), Claim)


def test_the_epoch_of_a_faster_standby_ends_the_claim() -> None:
    view = asked(listening(heard(), until=11.5), found(rank=1), 11.5)
    view = decisions.saw_nothing(decisions.saw_epoch(view, metadata(2, OTHER), 11.7), 11.8, TIMING)
    assert isinstance(decide(view, 11.5 + RANK_SECONDS), Wait)


def test_an_epoch_in_the_store_begins_the_suspicion_anew() -> None:
    """It may be the last one of a leader that died, so it buys no more than that."""
    view = asked(listening(heard(), until=11.5), found(miss=1), 11.5)
    view = decisions.saw_nothing(decisions.saw_epoch(view, metadata(1, OTHER), 11.6), 11.6, TIMING)
    assert isinstance(decide(view, 11.6), Wait)
    assert decisions.suspected_at(view, TIMING) == 13.1
    view = asked(listening(view, until=13.1), found(miss=1), 13.1)
    assert isinstance(decide(view, 13.1), Claim)


def test_a_new_beacon_begins_the_suspicion_anew_and_an_old_one_does_not() -> None:
    view = listening(heard(), until=11.0)
    assert decisions.wants_beacon(view, 11.0, TIMING)
    view = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=3), 11.0)
    view = asked(listening(view, until=11.5), found(miss=1), 11.5)
    same = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=3), 11.5)
    assert isinstance(decide(same, 11.5), Claim)
    new = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=4), 11.5)
    assert isinstance(decide(new, 11.5), Wait)
    assert decisions.suspected_at(new, TIMING) == 13.0


def test_a_word_of_the_leader_ends_the_claim() -> None:
    view = asked(listening(heard(), until=11.5), found(rank=1), 11.5)
    view = decisions.heard_leader(view, 1, 0.0, 11.6)
    assert isinstance(decide(view, 12.5), Wait)


def test_a_node_that_stood_still_has_to_listen_anew() -> None:
    """Its own feed broke meanwhile; that says nothing of the leader."""
    view = decisions.listened(heard(), 70.0, TIMING)
    assert decisions.suspected_at(view, TIMING) == 71.5
    view = asked(view, found(miss=1), 70.0)
    assert isinstance(decide(view, 70.0), Wait)
    view = asked(listening(view, until=71.5), found(miss=1), 71.5)
    assert isinstance(decide(view, 71.5), Claim)


def test_a_node_that_stood_still_while_it_asked_does_not_believe_the_answers() -> None:
    view = asked(listening(heard(), until=11.5), found("silent"), 70.0)
    assert isinstance(decide(view, 70.0), Wait)


def test_a_claim_that_could_not_be_made_in_time_is_not_made_later() -> None:
    """The store did not answer meanwhile: ask again first."""
    view = decisions.heard_from_members(listening(heard(), until=11.5), found(miss=1), 11.5, TIMING)
    assert decisions.suspected_at(view, TIMING) == 13.0
    view = decisions.saw_nothing(listening(view, until=13.0), 13.0, TIMING)
    assert isinstance(decide(view, 13.0), Wait)
    view = asked(view, found(miss=1), 13.0)
    assert isinstance(decide(view, 13.0), Claim)


def test_findings_about_a_former_leader_count_for_nothing() -> None:
    view = decisions.heard_leader(decisions.saw_epoch(heard(), metadata(2, OTHER), 10.0), 2, 0.0, 10.0)
    view = asked(listening(view, until=11.5), found("gone", term=1), 11.5)
    assert isinstance(decide(view, 11.5), Wait)


def test_findings_come_too_late_when_the_leader_was_heard_meanwhile() -> None:
    view = decisions.heard_leader(listening(heard(), until=11.5), 1, 0.0, 11.6)
    assert isinstance(decide(asked(view, found("gone"), 11.8), 11.8), Wait)


def test_a_leader_without_the_store_is_not_lost_but_falls_silent() -> None:
    view = heard()
    for tick in range(1, 100):
        now = 10 + tick / 4
        view = decisions.listened(decisions.saw_nothing(view, now, TIMING), now, TIMING)
        view = decisions.heard_leader(view, 1, tick / 4, now)
        assert decisions.suspected_at(view, TIMING) > now
    assert isinstance(decide(view, 34.0, fed=True), Claim)


def test_who_has_just_lost_the_leader_looks_often_for_a_while() -> None:
    """So it sees soon what the leader has written last, and who comes next."""
    view = decisions.saw_nothing(heard(), 10.1, TIMING)
    assert decide(view, 10.1, fed=True) == Wait(TIMING.fed_poll_interval, relaxed=True)
    assert decide(view, 10.1) == Wait(TIMING.watchful_pause)
    assert decide(view, 11.0, fed=True) == Wait(TIMING.watchful_pause)  # frozen: the connection still stands
    assert decide(decisions.saw_nothing(view, 15.0, TIMING), 15.0) == Wait(TIMING.poll_interval)


def test_a_member_reaches_the_leader_if_it_heard_it_lately() -> None:
    view = heard()
    assert decisions.reaches(view, OTHER, 10.9, TIMING)
    assert not decisions.reaches(view, OTHER, 11.0, TIMING)  # no later than who asks, after 1.5 s
    assert not decisions.reaches(view, Leader(UUID(int=9), "", ""), 10.1, TIMING)
    assert not decisions.reaches(view, None, 10.1, TIMING)


def test_patience_goes_by_rank_and_by_chance_without_one() -> None:
    view = heard()
    released = replace(view, leader=None)
    assert decisions.patience(view, 0, 0.9, TIMING) == 0.0
    assert decisions.patience(released, 2, 0.9, TIMING) == 2 * RANK_SECONDS
    assert decisions.patience(view, None, 0.9, TIMING) == 0.9 * TIMING.poll_interval
    assert decisions.patience(released, None, 0.9, TIMING) == 0.0
    assert decisions.patience(view, 10_000, 0.9, TIMING) < 5.0


def test_a_released_leadership_is_left_to_those_before_in_rank() -> None:
    view = decisions.saw_nothing(decisions.saw_epoch(heard(), metadata(1, None), 10.0), 10.1, TIMING)
    action = decisions.decide(view, 10.1, TIMING, me=ME, can_lead=True, patience=RANK_SECONDS)
    assert isinstance(action, Wait)
    assert 10.1 + action.seconds <= 10.0 + RANK_SECONDS
    assert isinstance(decisions.decide(view, 10.5, TIMING, me=ME, can_lead=True, patience=RANK_SECONDS), Claim)


def test_suspicion_can_be_turned_off() -> None:
    off = replace(TIMING, suspect_timeout=NEVER)
    view = decisions.saw_nothing(heard(), 18.0, off)
    assert decisions.suspected_at(view, off) == NEVER
    assert not decisions.is_missed(view, 18.0, off)
    assert decide(view, 18.0, timing=off) == Wait(TIMING.poll_interval)
