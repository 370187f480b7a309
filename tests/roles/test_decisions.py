"""The decision core: who claims, and when, by the local clock alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from littlebigcluster.epochs import Beacon, Leader, Metadata
from littlebigcluster.roles import decisions
from littlebigcluster.roles.decisions import Claim, Timing, View, Wait

TIMING = Timing(leader_timeout=20.0, poll_interval=1.0, suspect_timeout=1.5)
ME = Leader(UUID(int=1), "", "AZ0")
OTHER = Leader(UUID(int=2), "", "AZ1")


def metadata(term: int, leader: Leader | None) -> Metadata:
    return Metadata(
        kind="wal", cluster_id="lol", epoch=5, term=term, leader=leader, created_at=datetime(2026, 1, 1, tzinfo=UTC),
        nonce="", transactions=0, pages=1, page_size=4096, database_pages=1, raw_size_bytes=0, raw_sha256="",
        stored_xxh3="", previous_sha256="", state_checksum="", min_sqlite_version="3.35.0", compression="zstd",
    )  # fmt: skip


def decide(view: View, now: float, *, can_lead: bool = True, patience: float = 0.0) -> Wait | Claim:
    return decisions.decide(view, now, TIMING, me=ME, can_lead=can_lead, patience=patience)


def listen(view: View, *, until: float, step: float = 1.0) -> View:
    """Look every `step` seconds and find nothing."""
    now = view.looked_at
    while now < until:
        now = min(until, now + step)
        view = decisions.saw_nothing(view, now, TIMING)
    return view


def test_a_node_looks_before_it_decides() -> None:
    assert decide(decisions.begin(1, None, 0.0), 0.0) == Wait(0.0)


def test_a_standby_claims_at_once_when_nobody_leads() -> None:
    view = listen(decisions.begin(1, None, 0.0), until=1.0)
    assert decide(view, 1.0) == Claim("nobody leads")


def test_a_node_that_cannot_lead_never_claims() -> None:
    view = listen(decisions.begin(1, None, 0.0), until=500.0)
    assert decide(view, 500.0, can_lead=False) == Wait(1.0)


def test_a_silent_leader_is_replaced_after_its_time_out_and_not_before() -> None:
    view = listen(decisions.begin(1, OTHER, 0.0), until=19.5)
    assert decide(view, 19.5) == Wait(0.5)
    view = listen(view, until=20.0)
    assert isinstance(decide(view, 20.0), Claim)


def test_patience_spreads_the_claims_of_several_standbys() -> None:
    view = listen(decisions.begin(1, OTHER, 0.0), until=20.5)
    assert isinstance(decide(view, 20.5, patience=0.4), Claim)
    assert isinstance(decide(view, 20.5, patience=0.9), Wait)


def test_an_epoch_is_a_sign_of_life() -> None:
    view = listen(decisions.begin(1, OTHER, 0.0), until=19.0)
    view = decisions.saw_epoch(view, metadata(1, OTHER), 19.5)
    view = listen(view, until=39.0)
    assert isinstance(decide(view, 39.0), Wait)
    view = listen(view, until=39.5)
    assert isinstance(decide(view, 39.5), Claim)


def test_a_new_beacon_is_a_sign_of_life_and_an_old_one_is_not() -> None:
    view = listen(decisions.begin(1, OTHER, 0.0), until=8.0)
    view = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=3), 8.0)
    assert view.sign_of_life_at == 0.0  # it may have been there all the time
    view = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=4), 10.0)
    assert view.sign_of_life_at == 10.0
    view = decisions.saw_beacon(listen(view, until=15.0), Beacon("lol", term=1, epoch=5, count=4), 15.0)
    assert isinstance(decide(listen(view, until=30.0), 30.0), Claim)


def test_the_first_beacon_of_a_term_is_news_for_who_has_looked_before() -> None:
    view = decisions.saw_beacon(decisions.begin(1, OTHER, 0.0), None, 7.0)
    view = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=1), 8.0)
    assert view.sign_of_life_at == 8.0


@pytest.mark.parametrize("term", [0, 2])
def test_a_beacon_of_another_term_counts_for_nothing(term: int) -> None:
    view = decisions.saw_beacon(decisions.begin(1, OTHER, 0.0), None, 0.0)
    assert decisions.saw_beacon(view, Beacon("lol", term=term, epoch=5, count=9), 10.0) == view
    assert decisions.saw_beacon(view, None, 10.0) == view


def test_beacons_count_anew_in_a_new_term() -> None:
    view = decisions.saw_beacon(decisions.begin(1, OTHER, 0.0), None, 0.0)
    view = decisions.saw_beacon(view, Beacon("lol", 1, 5, count=9), 1.0)
    view = decisions.saw_epoch(view, metadata(2, OTHER), 2.0)
    view = decisions.saw_beacon(view, Beacon("lol", 2, 6, count=1), 5.0)
    assert view.sign_of_life_at == 2.0
    assert decisions.saw_beacon(view, Beacon("lol", 2, 6, count=2), 6.0).sign_of_life_at == 6.0


def test_an_answer_of_the_present_leader_is_a_sign_of_life() -> None:
    view = listen(decisions.begin(2, OTHER, 0.0), until=10.0)
    assert decisions.heard_leader(view, 1, 0.0, 11.0) == view
    assert decisions.heard_leader(view, 2, 0.0, 11.0).sign_of_life_at == 11.0


def test_a_leader_that_answers_but_does_not_reach_the_store_falls_silent() -> None:
    view = decisions.begin(2, OTHER, 0.0)
    for now in range(1, 25):
        view = decisions.saw_nothing(view, float(now), TIMING)
        view = decisions.heard_leader(view, 2, float(now), float(now))  # its last answer was at 0
    assert isinstance(decide(view, 24.0), Claim)


def test_silence_is_not_counted_while_nobody_listens() -> None:
    view = listen(decisions.begin(1, OTHER, 0.0), until=5.0)
    view = decisions.saw_nothing(view, 500.0, TIMING)  # frozen, or cut off from the store, meanwhile
    assert decide(view, 500.0) == Wait(1.0)
    view = listen(view, until=520.0)
    assert isinstance(decide(view, 520.0), Claim)


@pytest.mark.parametrize("leader_timeout", [1.0, 3.0, 20.0])
def test_who_was_fed_and_looked_rarely_looks_on_when_the_leader_does_not_reach_the_store(leader_timeout: float) -> None:
    """However late it notices: that the count begins anew is no reason to look rarely again."""
    timing = replace(TIMING, leader_timeout=leader_timeout, poll_interval=leader_timeout / 10)
    view = decisions.heard_leader(decisions.begin(1, OTHER, 0.0), 1, 0.0, 0.0)
    now, rarely, looks = 0.0, timing.longest_gap * 1.1, 0
    action: Wait | Claim = Wait(rarely, relaxed=True)
    while isinstance(action, Wait) and (looks := looks + 1) < 100:
        now += rarely if action.relaxed else action.seconds
        view = decisions.saw_nothing(decisions.heard_leader(view, 1, now, now), now, timing)
        action = decisions.decide(view, now, timing, me=ME, can_lead=True, patience=0.0, fed=True)
    assert isinstance(action, Claim)
    assert now == pytest.approx(rarely + leader_timeout)


def test_a_node_that_is_fed_looks_when_the_leader_gets_suspect_in_time_to_count_all_of_its_silence() -> None:
    for timing in (replace(TIMING, leader_timeout=timeout) for timeout in (1.0, 3.0, 20.0)):
        view = decisions.heard_leader(decisions.begin(1, OTHER, 0.0), 1, 0.0, 5.0)
        assert decisions.suspect_at(view, timing) - view.looked_at < timing.longest_gap


def test_a_beacon_is_no_news_of_a_leader_that_tells_itself_when_it_reached_the_store() -> None:
    view = decisions.saw_beacon(decisions.begin(1, OTHER, 0.0), Beacon("lol", term=1, epoch=5, count=3), 0.0)
    view = decisions.heard_leader(view, 1, 7.0, 8.0)
    assert not decisions.wants_beacon(view, 8.5, TIMING, fed=True)
    view = decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=4), 10.0)  # not fed any more; is it old?
    assert view.sign_of_life_at == 1.0
    assert decisions.saw_beacon(view, Beacon("lol", term=1, epoch=5, count=5), 11.0).sign_of_life_at == 11.0


def test_looks_that_are_slow_but_regular_still_find_a_silent_leader() -> None:
    view = listen(decisions.begin(1, OTHER, 0.0), until=30.0, step=9.0)
    assert isinstance(decide(view, 30.0), Claim)


def test_a_release_lets_a_standby_claim_at_once() -> None:
    view = decisions.saw_epoch(decisions.begin(1, OTHER, 0.0), metadata(1, None), 3.0)
    assert decide(view, 3.0) == Wait(0.0)
    assert decide(decisions.saw_nothing(view, 3.1, TIMING), 3.1) == Claim("nobody leads")


def test_who_may_not_claim_looks_often_for_the_next_leader_and_then_ever_less() -> None:
    now, looks = 100.0, []
    view = decisions.saw_epoch(decisions.begin(1, OTHER, 0.0), metadata(1, None), now)
    while now < 110.0:
        view = decisions.saw_nothing(view, now, TIMING)
        action = decide(view, now, can_lead=False)
        assert isinstance(action, Wait)
        looks.append(action.seconds)
        now += action.seconds
    assert looks == sorted(looks)
    assert looks[0] == decisions.SHORTEST_PAUSE_SECONDS
    assert looks[-1] == TIMING.poll_interval
    assert sum(pause < 0.5 for pause in looks) < 12


def test_a_node_that_led_last_and_lost_nothing_claims_again() -> None:
    view = listen(decisions.begin(1, ME, 0.0), until=1.0)
    assert decide(view, 1.0) == Claim("this node led last")


def test_the_beacon_is_read_only_when_it_is_quiet() -> None:
    view = decisions.begin(1, OTHER, 0.0)
    assert not decisions.wants_beacon(view, 6.0, TIMING)
    assert decisions.wants_beacon(view, 7.0, TIMING)
    assert not decisions.wants_beacon(replace(view, leader=None), 7.0, TIMING)
