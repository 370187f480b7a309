"""The decision core: who should do what, given what was seen and when. No I/O, no clock, no asyncio.

A follower tells the core what it saw (`saw_epoch`, `saw_beacon`, `saw_nothing`, `heard_leader`) and asks what to do
(`decide`). Times are local monotonic seconds; no other machine's clock is ever looked at.

There are two ways to miss a leader. One that was never heard directly is replaced after `leader_timeout` without a
sign of life in the store. One that was heard, and is not heard any more for `suspect_timeout` (`suspected_at`), is
replaced as soon as nobody who is asked reaches it (`heard_from_members`).

Silence is counted only while somebody listens: when two looks lie too far apart (this process was frozen, or the
store was out of reach) the count starts again, so that a leader that went through the same outage gets its time
to show itself. A wrong decision here costs a needless failover, never data: the conditional create is the fence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from littlebigcluster.epochs import Beacon, Leader, Metadata

SHORTEST_PAUSE_SECONDS = 0.02
"""Between two looks of a node that waits for the next leader: about ten looks, ever slower, in the first second."""

RANK_SECONDS = 0.5
"""A standby claims so much later than the one before it in rank: longer than a claim usually takes to be seen."""

_LOWEST_RANK = 6
_SHORTEST_DEAFNESS_SECONDS = 1.0

_FIRST_PATIENCE_SECONDS, _LONGEST_PATIENCE_SECONDS = 0.5, 2.0
"""For the answers of one round: who was too busy to answer gets more time in the next one."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 4.0
"""Between two rounds, growing too, until the leader is heard."""


@dataclass(frozen=True, slots=True)
class View:
    """What one node knows of the leadership.

    Invariant: sign_of_life_at <= silent_since <= looked_at.
    """

    term: int
    leader: Leader | None
    sign_of_life_at: float
    """When this node last learned something new from the leader, or began to listen."""
    silent_since: float
    """From when on silence counts: since the last sign of life, as far as this node has looked all the time."""
    looked_at: float
    """When this node last looked at the store and got an answer."""
    beacon_count: int | None = None
    """The last beacon of this term that was seen; None before the first look at it."""
    at_head: bool = False
    """The last look found no further epoch."""
    contact_at: float | None = None
    """When the leader of this term was last heard directly; None: never. Who was never heard cannot be lost: else a
    node that reaches nobody would take the leadership from one leader after the other."""
    listened_at: float = float("-inf")
    """When this node last listened."""
    awake_since: float = float("-inf")
    """Since when it has listened without standing still."""
    claim_at: float | None = None
    """From when on, for `suspect_timeout`, this node may claim because nobody reaches the leader."""
    rounds: int = 0
    """So often the others have been asked since the leader was last heard. A mere answer to the question is no word."""
    ask_at: float = float("-inf")
    """They are not asked again before."""
    alone_since: float | None = None
    """Since when nobody who is asked answers at all, while this node looks at the store without a gap, and sees no
    sign of life there either."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again, at the latest after so many seconds."""

    seconds: float
    relaxed: bool = False
    """But at once when the leader, which tells whether it reaches the store, gets suspect meanwhile (`suspect_at`)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Try to create the next epoch as its leader."""

    reason: str


@dataclass(frozen=True, slots=True)
class Question:
    """Does anybody reach this leader? To be asked now."""

    leader: Leader
    term: int
    patience: float
    """Seconds to wait for the answers."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of asking around for the leader of `term`."""

    term: int
    leader: Literal["leads", "gone", "silent"]
    """Asked itself: it answers; nobody listens at its address, or it does not lead; there is no answer."""
    reach: int
    """Members that have heard it lately."""
    miss: int
    """Members that have not, or are gone themselves: nobody listens at their address."""
    silent: int
    """Members without an answer."""
    rank: int
    """Standbys that go before this node, but for those that were asked and are silent or gone."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The settings that decisions depend on, in seconds."""

    leader_timeout: float
    poll_interval: float
    suspect_timeout: float

    @property
    def fed_poll_interval(self) -> float:
        """Between two looks of a node that the leader feeds."""
        return max(self.poll_interval, self.leader_timeout * 3 / 4)

    @property
    def suspicious_silence(self) -> float:
        """An idle leader shows life more often than this. Shorter than `longest_gap`, or looks that begin with the
        suspicion would not continue the watch."""
        return self.leader_timeout * 0.4

    @property
    def watchful_pause(self) -> float:
        """Between two looks of a node that has just lost its leader: what that has still written, and what the next
        one writes, is seen soon."""
        return min(self.poll_interval, self.suspect_timeout / 4)

    @property
    def longest_deafness(self) -> float:
        """A node that did not listen for longer has stood still."""
        return max(_SHORTEST_DEAFNESS_SECONDS, self.suspect_timeout / 2)

    @property
    def lonely_silence(self) -> float:
        """So long the store has to be without a sign of life for a node to which nobody answers: an idle leader shows
        one every third of `leader_timeout`."""
        return self.leader_timeout / 2

    @property
    def lonely_gap(self) -> float:
        """Between two looks of such a node. What keeps it from looking may keep the leader from showing life: shorter
        than this, it cannot make `lonely_silence` out of that third."""
        return self.leader_timeout / 6

    @property
    def longest_gap(self) -> float:
        """Two looks further apart than this do not belong to one watch."""
        return max(self.leader_timeout / 2, 3 * self.poll_interval)


def begin(metadata_term: int, leader: Leader | None, now: float) -> View:
    """A node that has just joined: it begins to listen now."""
    return View(metadata_term, leader, sign_of_life_at=now, silent_since=now, looked_at=now)


def saw_epoch(view: View, metadata: Metadata, now: float) -> View:
    """A new epoch: the leader it names was alive to write it."""
    if metadata.term != view.term:
        view = replace(view, beacon_count=None, contact_at=None, rounds=0, ask_at=float("-inf"))
    return replace(
        view,
        term=metadata.term,
        leader=metadata.leader,
        sign_of_life_at=now,
        silent_since=now,
        looked_at=now,
        at_head=False,
        claim_at=None,
        alone_since=None,
    )


def saw_nothing(view: View, now: float, timing: Timing) -> View:
    """The store answered: no further epoch. After too long without a look, silence counts from now on; that is no sign
    of life, so that whoever has looked rarely goes on looking often."""
    gap = now - view.looked_at
    if gap > timing.longest_gap:
        view = replace(view, silent_since=now, claim_at=None, alone_since=None)
    elif gap > timing.lonely_gap and view.alone_since is not None:
        view = replace(view, claim_at=None, alone_since=None)
    return replace(view, looked_at=now, at_head=True)


def saw_beacon(view: View, beacon: Beacon | None, now: float) -> View:
    """A beacon counts when it is of the present term and newer than the last; one of an older term never.

    The first one that is seen may be old. It only tells what will be news.
    """
    if view.beacon_count is None:
        of_this_term = beacon is not None and beacon.term == view.term
        return replace(view, beacon_count=beacon.count if beacon is not None and of_this_term else -1)
    if beacon is None or beacon.term != view.term or beacon.count <= view.beacon_count:
        return view
    return replace(_alive(view, now), beacon_count=beacon.count, claim_at=None, alone_since=None)


def heard_leader(view: View, term: int, store_age: float, now: float) -> View:
    """The leader of `term` answered this node directly, and has reached the store `store_age` seconds ago.

    A leader that only its followers can reach is of no use: what counts is when it last reached the store. It is as
    good as a look at the store of that time. But it is not lost. Whatever beacon is there now is no news after that.
    """
    if term != view.term:
        return view
    told = isfinite(store_age)
    view = _alive(view, now - max(0.0, store_age)) if told else view
    view = replace(view, rounds=0, ask_at=float("-inf"), claim_at=None, alone_since=None)
    return replace(view, contact_at=now, beacon_count=None if told else view.beacon_count)


def _alive(view: View, at: float) -> View:
    """The leader has shown life in the store at that time."""
    return replace(
        view,
        sign_of_life_at=max(view.sign_of_life_at, at),
        silent_since=max(view.silent_since, at),
        looked_at=max(view.looked_at, at),
    )


def listened(view: View, now: float, timing: Timing) -> View:
    """This node listens, as it does again and again. If it did not for too long, it was frozen: whatever it has not
    heard meanwhile says nothing of the leader."""
    if now - view.listened_at > timing.longest_deafness:
        return replace(view, listened_at=now, awake_since=now, claim_at=None, alone_since=None)
    return replace(view, listened_at=now)


def missed_since(view: View) -> float:
    """Since when there is no sign of a leader that was heard before; infinity when there is none to miss."""
    if view.contact_at is None or view.leader is None:
        return float("inf")
    return max(view.contact_at, view.silent_since, view.awake_since)


def is_missed(view: View, now: float, timing: Timing) -> bool:
    """Whether the leader is not heard for longer than one that lives, but not yet for so long as to ask for it."""
    return now - missed_since(view) >= timing.suspect_timeout / 2


def suspected_at(view: View, timing: Timing) -> float:
    """When to ask the others whether they reach the leader; infinity when there is no reason to."""
    # Who could not claim, perhaps as the store did not answer, has to ask again.
    since = view.claim_at if view.claim_at is not None else missed_since(view)
    return max(since + timing.suspect_timeout, view.ask_at)


def question(view: View, now: float, timing: Timing) -> Question | None:
    """What to ask the others now."""
    if view.leader is None or now < suspected_at(view, timing):
        return None
    return Question(view.leader, view.term, _grown(_FIRST_PATIENCE_SECONDS, view.rounds, _LONGEST_PATIENCE_SECONDS))


def heard_from_members(view: View, findings: Findings, now: float, timing: Timing) -> View:
    """The others have been asked. When none of them reaches the leader either, this node may claim, in its turn.

    A node to which nobody has answered at all, though there is somebody, is probably cut off itself: it asks again, and
    claims only when the store has been silent, too, for longer than it is under any leader. Not so when the leader's
    machine, or a member's, says that nobody listens there.
    """
    view = listened(view, now, timing)
    if view.term != findings.term or now < suspected_at(view, timing):
        return view
    alone_since = now if view.alone_since is None else view.alone_since
    pause = _grown(_FIRST_PAUSE_SECONDS, view.rounds, _LONGEST_PAUSE_SECONDS)
    view = replace(view, rounds=view.rounds + 1, ask_at=now + pause, claim_at=None, alone_since=None)
    if findings.leader == "leads":
        return replace(view, contact_at=now)
    if findings.reach:
        return view
    if findings.leader == "silent" and findings.silent > 0 and findings.miss == 0:
        view = replace(view, alone_since=alone_since)
        if now - alone_since < timing.lonely_silence:
            return view
    claim_at = now + RANK_SECONDS * min(findings.rank, _LOWEST_RANK)
    return replace(view, claim_at=claim_at, rounds=0, ask_at=now)


def _grown(first: float, rounds: int, longest: float) -> float:
    return min(first * 2.0 ** min(rounds, 10), longest)


def reaches(view: View, leader: Leader | None, now: float, timing: Timing) -> bool:
    """What this node answers to who asks whether it reaches `leader`. Asked by somebody who has heard nothing for
    `suspect_timeout`, it must have heard something later than that."""
    return (
        leader is not None
        and view.leader == leader
        and view.contact_at is not None
        and now - view.contact_at < timing.suspect_timeout * 2 / 3
    )


def patience(view: View, rank: int | None, chance: float, timing: Timing) -> float:
    """Seconds for which this node leaves the leadership to others: by its rank among the standbys, or by chance when
    it does not know them."""
    if rank is not None:
        return RANK_SECONDS * min(rank, _LOWEST_RANK)
    return 0.0 if view.leader is None else chance * timing.poll_interval


def suspect_at(view: View, timing: Timing) -> float:
    """From when on the leader has shown no life for longer than an idle one would."""
    return view.sign_of_life_at + timing.suspicious_silence


def decide(
    view: View, now: float, timing: Timing, *, me: Leader, can_lead: bool, patience: float, fed: bool = False
) -> Wait | Claim:
    """What a follower that has just looked does next.

    `patience` (seconds) spreads the claims of several standbys, so that one claims and the others see its epoch. A
    node that is `fed` looks rarely, as long as its leader reaches the store.
    """
    if not view.at_head:
        return Wait(0.0)
    relaxed = fed and view.leader is not None and now < suspect_at(view, timing)
    pause = timing.fed_poll_interval if relaxed else timing.poll_interval
    if view.leader is None:  # somebody else claims within a moment, and all wait for him
        pause = min(pause, max(SHORTEST_PAUSE_SECONDS, (now - view.silent_since) / 2))
    elif _just_lost(view, now, timing, fed=fed):
        pause, relaxed = timing.watchful_pause, False
    if not can_lead:
        return Wait(pause, relaxed)
    silence = now - view.silent_since
    if view.leader is None:
        return Claim("nobody leads") if silence >= patience else Wait(min(pause, patience - silence))
    if view.leader.uuid == me.uuid:
        return Claim("this node led last")
    if view.claim_at is not None and now < view.claim_at + timing.suspect_timeout:
        if now >= view.claim_at:
            return Claim(f"nobody reaches {view.leader.uuid}, not heard for {now - missed_since(view):.1f} s")
        pause = min(pause, view.claim_at - now)
    limit = timing.leader_timeout + patience
    if silence >= limit:
        return Claim(f"no sign of life of {view.leader.uuid} for {silence:.1f} s")
    return Wait(min(pause, limit - silence), relaxed)


def _just_lost(view: View, now: float, timing: Timing, *, fed: bool) -> bool:
    """Whether the leader was heard until a moment ago: somebody is about to replace it."""
    if view.contact_at is None or (fed and now - view.contact_at < timing.suspect_timeout / 2):
        return False
    return now - view.contact_at < 3 * timing.suspect_timeout


def wants_beacon(view: View, now: float, timing: Timing, *, fed: bool = False) -> bool:
    """Whether to read the beacon: only when it is quiet for longer than an idle leader's interval, or the leader is
    not heard any more. One that feeds this node tells when it last reached the store, which a beacon does not."""
    idle = view.leader is not None and now - view.sign_of_life_at >= timing.leader_timeout / 3
    return (idle and not fed) or is_missed(view, now, timing)
