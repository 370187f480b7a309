"""The member list, without any I/O: who is on it, and under which number."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from littlebigcluster.cluster.membership import DuplicateMember, Member, Members, Roster

TIMEOUT = 10.0
INTERVAL = 0.5


def member(number: int, **what: Any) -> Member:
    return Member(UUID(int=number), f"10.0.0.{number}:1", **what)


A, B, C = member(1, can_lead=True), member(2), member(3)


def roster(*last: Member, me: Member = A, term: int = 1, now: float = 0.0) -> Roster:
    return Roster(term, me, Members(term - 1, 7, last), now, TIMEOUT)


def look(roster: Roster, *, until: float) -> None:
    """Again and again, as a leader does that does not stand still."""
    while (now := roster._looked_at + INTERVAL) < until:
        roster.expire(now, interval=INTERVAL)
    roster.expire(until, interval=INTERVAL)


def ids(roster: Roster) -> list[int]:
    return [each.id.int for each in roster.members]


def test_a_leader_alone_is_the_only_member() -> None:
    first = roster()
    assert ids(first) == [1]
    assert (first.members.term, first.members.number) == (1, 1)
    assert first.me == A


def test_members_are_in_the_order_in_which_they_joined_whoever_reports_first() -> None:
    r = roster(me=B)
    r.report(C, "c", 0)
    r.report(A, "a", 0)
    assert ids(r) == [1, 2, 3]


def test_each_change_has_a_number_and_a_mere_epoch_has_none() -> None:
    r = roster()
    r.report(B, "b", 0)
    assert r.members.number == 2
    r.report(B, "b", 1)
    assert r.members.number == 2
    r.report(replace(B, epoch=5), "b", 1)
    assert r.members.number == 2
    assert r.members.all[1].epoch == 5
    r.advance(6)
    assert (r.members.number, r.me.epoch) == (2, 6)
    r.report(replace(B, epoch=6, metadata={"load": 1}), "b", 2)
    assert r.members.number == 3
    r.describe(replace(A, roles=("x",)))
    assert r.members.number == 4
    assert r.members.with_role("x") == [replace(A, roles=("x",))]


def test_a_view_that_was_given_out_never_changes() -> None:
    r = roster()
    before = r.members
    r.report(B, "b", 0)
    r.report(replace(B, epoch=5), "b", 0)
    assert [each.id for each in before] == [A.id]


def test_who_says_goodbye_is_gone_at_once_and_may_come_back() -> None:
    r = roster()
    r.report(B, "b", 0)
    r.goodbye(B.id)
    assert (ids(r), r.members.number) == ([1], 3)
    r.goodbye(B.id)
    assert r.members.number == 3, "nothing has changed"
    r.report(B, "another process", 0)
    assert ids(r) == [1, 2]


def test_who_is_silent_is_taken_off() -> None:
    r = roster()
    r.report(B, "b", 0)
    r.report(C, "c", 5)
    look(r, until=9.9)
    assert ids(r) == [1, 2, 3]
    look(r, until=10)
    assert ids(r) == [1, 3]
    r.report(C, "c", 14)
    look(r, until=20)
    assert ids(r) == [1, 3]
    assert r.members.number == 4


def test_silence_while_the_leader_stood_still_does_not_count() -> None:
    r = roster()
    r.report(B, "b", 0)
    r.report(C, "c", 6)
    look(r, until=8)
    r.report(C, "c", 98)  # it was there when the leader went on, and is read before the list is looked at
    assert r.expire(98, interval=INTERVAL) == 90 - INTERVAL
    assert ids(r) == [1, 2, 3]
    look(r, until=99)
    assert ids(r) == [1, 2, 3]
    look(r, until=100)
    assert ids(r) == [1, 3], "it was silent for 8 s before, and for 2 s after"


def test_the_leader_itself_never_expires_nor_leaves_its_own_list() -> None:
    r = roster()
    look(r, until=1e4)
    r.goodbye(A.id)
    assert ids(r) == [1]


def test_a_new_leader_starts_from_the_last_view_and_keeps_whom_it_hears() -> None:
    r = roster(A, B, C, me=B, term=2, now=100)
    assert ids(r) == [1, 2, 3]
    assert (r.members.term, r.members.number) == (2, 1)
    r.report(C, "c", 105)
    look(r, until=110)
    assert ids(r) == [2, 3], "the former leader was not heard any more"


def test_a_view_of_a_later_term_counts_as_later() -> None:
    assert (roster(term=2).members.term, 1) > (roster(term=1).members.term, 99)


def test_a_member_of_the_last_view_may_report_with_any_session() -> None:
    r = roster(A, B, me=A, now=0)
    r.report(B, "whatever", 1)
    assert ids(r) == [1, 2]


def test_two_that_claim_one_id_are_refused_while_the_first_is_alive() -> None:
    r = roster()
    r.report(B, "first", 0)
    with pytest.raises(DuplicateMember, match=str(B.id)):
        r.report(B, "second", 9)
    r.report(B, "first", 9.5)
    with pytest.raises(DuplicateMember):
        r.report(B, "second", 19)
    r.report(B, "second", 19.5)  # the first has died; nobody else can have it now
    with pytest.raises(DuplicateMember):
        r.report(B, "first", 20)


def test_nobody_else_has_the_id_of_the_leader() -> None:
    with pytest.raises(DuplicateMember):
        roster().report(A, "other", 1e9)


def test_the_same_address_with_a_new_id_is_a_new_member_beside_the_old_one() -> None:
    r = roster()
    r.report(B, "b", 0)
    again = replace(member(9), address=B.address)
    r.report(again, "b2", 1)
    assert ids(r) == [1, 2, 9]
    look(r, until=10)
    assert ids(r) == [1, 9]


def test_a_member_and_a_list_survive_their_way_through_json() -> None:
    full = member(4, az="b", roles=("x", "y"), can_lead=True, version="1.2", metadata={"a": [1, {"b": None}]}, epoch=7)
    members = Members(3, 4, (A, full))
    assert Members.from_json(json.loads(json.dumps(members.to_json()))) == members


def test_a_list_can_be_asked() -> None:
    x = replace(B, roles=("x",))
    members = Members(1, 1, (A, x))
    assert members.get(B.id) is x
    assert members.get(C.id) is None
    assert members.with_role("x") == [x]
    assert members.with_role("y") == []
    assert len(members) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"id": "no uuid"}, {"id": 5}, {"id": None}, {"epoch": "x"}, {"epoch": None}, {"epoch": -2}, {"epoch": 1e400},
        {"epoch": 1 << 70}, {"epoch": 1.5}, {"epoch": True}, {"roles": "x"}, {"roles": None}, {"roles": [1]},
        {"roles": ["x"] * 1000}, {"roles": ["x" * 100_000]}, {"metadata": []}, {"metadata": None}, {"address": None},
        {"address": 5}, {"address": "x" * 10_000}, {"az": None}, {"az": "x" * 10_000}, {"version": 1},
        {"version": "x" * 10_000}, {"can_lead": "yes"},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_what_is_no_member_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Member.from_json({**A.to_json(), **change})


@pytest.mark.parametrize("value", [None, 5, "x", [], {}, {"id": str(A.id)}], ids=str)
def test_what_is_no_object_with_all_fields_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Member.from_json(value)


def test_a_leader_that_has_left_the_list_still_knows_itself() -> None:
    """It may be told to step down while it leaves."""
    r = roster(me=A)
    r.leave()
    r.advance(7)
    assert r.me == replace(A, epoch=7)
    assert ids(r) == []
