"""The decision core: who should do what, given what was seen and when. No I/O, no clock, no asyncio.

A follower tells the core what it saw (`saw_epoch`, `saw_beacon`, `saw_nothing`, `heard_leader`) and asks what to do
(`decide`). Times are local monotonic seconds; no other machine's clock is ever looked at.

Silence is counted only while somebody listens: when two looks lie too far apart (this process was frozen, or the
store was out of reach) the count starts again, so that a leader that went through the same outage gets its time
to show itself. A wrong decision here costs a needless failover, never data: the conditional create is the fence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from littlebigcluster.epochs import Beacon, Leader, Metadata

SHORTEST_PAUSE_SECONDS = 0.02
"""Between two looks of a node that waits for the next leader: about ten looks, ever slower, in the first second."""


@dataclass(frozen=True, slots=True)
class View:
    """What one node knows of the leadership.

    Invariant: sign_of_life_at <= looked_at.
    """

    term: int
    leader: Leader | None
    sign_of_life_at: float
    """When this node last learned something new from the leader, or began to listen."""
    looked_at: float
    """When this node last looked at the store and got an answer."""
    beacon_count: int | None = None
    """The last beacon of this term that was seen; None before the first look at it."""
    at_head: bool = False
    """The last look found no further epoch."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again, at the latest after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Claim:
    """Try to create the next epoch as its leader."""

    reason: str


@dataclass(frozen=True, slots=True)
class Timing:
    """The settings that decisions depend on, in seconds."""

    leader_timeout: float
    poll_interval: float

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
    def longest_gap(self) -> float:
        """Two looks further apart than this do not belong to one watch."""
        return max(self.leader_timeout / 2, 3 * self.poll_interval)


def begin(metadata_term: int, leader: Leader | None, now: float) -> View:
    """A node that has just joined: it begins to listen now."""
    return View(metadata_term, leader, sign_of_life_at=now, looked_at=now)


def saw_epoch(view: View, metadata: Metadata, now: float) -> View:
    """A new epoch: the leader it names was alive to write it."""
    same_term = metadata.term == view.term
    return View(
        term=metadata.term,
        leader=metadata.leader,
        sign_of_life_at=now,
        looked_at=now,
        beacon_count=view.beacon_count if same_term else None,
    )


def saw_nothing(view: View, now: float, timing: Timing) -> View:
    """The store answered: no further epoch."""
    if now - view.looked_at > timing.longest_gap:
        return replace(view, sign_of_life_at=now, looked_at=now, at_head=True)
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
    return replace(view, beacon_count=beacon.count, sign_of_life_at=max(view.sign_of_life_at, now), looked_at=now)


def heard_leader(view: View, term: int, store_age: float, now: float) -> View:
    """The leader of `term` answered this node directly, and has reached the store `store_age` seconds ago.

    A leader that only its followers can reach is of no use: what counts is when it last reached the store. It is as
    good as a look at the store of that time.
    """
    if term != view.term:
        return view
    at = now - max(0.0, store_age)
    return replace(view, sign_of_life_at=max(view.sign_of_life_at, at), looked_at=max(view.looked_at, at))


def is_suspect(view: View, now: float, timing: Timing) -> bool:
    """Whether the leader has shown no life for longer than an idle one would."""
    return now - view.sign_of_life_at >= timing.suspicious_silence


def decide(
    view: View, now: float, timing: Timing, *, me: Leader, can_lead: bool, patience: float, fed: bool = False
) -> Wait | Claim:
    """What a follower that has just looked does next.

    `patience` in [0, 1) spreads the claims of several standbys over one poll interval, so that one claims and the
    others see its epoch. A node that is `fed` looks rarely, as long as its leader reaches the store.
    """
    if not view.at_head:
        return Wait(0.0)
    relaxed = fed and view.leader is not None and not is_suspect(view, now, timing)
    pause = timing.fed_poll_interval if relaxed else timing.poll_interval
    if view.leader is None:  # somebody else claims within a moment, and all wait for him
        pause = min(pause, max(SHORTEST_PAUSE_SECONDS, (now - view.sign_of_life_at) / 2))
    if not can_lead:
        return Wait(pause)
    if view.leader is None:
        return Claim("nobody leads")
    if view.leader.uuid == me.uuid:
        return Claim("this node led last")
    silence = now - view.sign_of_life_at
    limit = timing.leader_timeout + patience * timing.poll_interval
    if silence >= limit:
        return Claim(f"no sign of life of {view.leader.uuid} for {silence:.1f} s")
    return Wait(min(pause, limit - silence))


def wants_beacon(view: View, now: float, timing: Timing) -> bool:
    """Whether to read the beacon: only when it is quiet for longer than an idle leader's interval."""
    return view.leader is not None and now - view.sign_of_life_at >= timing.leader_timeout / 3
