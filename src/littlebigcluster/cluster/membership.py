"""Who belongs to the cluster. Pure: no I/O, no clock; times are passed in.

Each member reports to the leader; the leader keeps the `Roster` and gives every node the same numbered `Members`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from uuid import UUID

MAX_METADATA_BYTES = 4096
MAX_METADATA_LEVELS = 16
MAX_TEXT = 255
"""Characters of an address, a zone, a role."""
MAX_ROLES = 64
MAX_PRIORITY = 1000


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the cluster, as it has described itself."""

    id: UUID
    address: str
    """host:port, as other nodes reach it."""
    az: str = ""
    roles: tuple[str, ...] = ()
    can_lead: bool = False
    version: str = ""
    """Of LittleBigCluster on that node."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the application wants others to know; JSON."""
    epoch: int = -1
    """The newest epoch it has applied, as far as the leader knows."""
    leader_priority: int = 0
    """Of several standbys the one with the highest leads next."""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "address": self.address,
            "az": self.az,
            "roles": list(self.roles),
            "can_lead": self.can_lead,
            "version": self.version,
            "metadata": dict(self.metadata),
            "epoch": self.epoch,
            "leader_priority": self.leader_priority,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises ValueError, TypeError or KeyError for what is no member."""
        roles, can_lead, epoch = value["roles"], value["can_lead"], value["epoch"]
        if not isinstance(roles, list) or len(roles) > MAX_ROLES:
            raise TypeError(f"roles are a list of at most {MAX_ROLES}")
        if not isinstance(can_lead, bool) or type(epoch) is not int or not -1 <= epoch < 1 << 63:
            raise TypeError("can_lead is true or false, epoch is a number")
        return cls(
            UUID(check_text("an id", value["id"])),
            check_text("an address", value["address"]),
            check_text("az", value["az"]),
            tuple(check_text("a role", role) for role in roles),
            can_lead,
            check_text("a version", value["version"]),
            check_metadata(value["metadata"]),
            epoch,
            check_priority(value.get("leader_priority", 0)),  # older versions have none
        )

    def same_but_epoch(self, other: Member) -> bool:
        """Whether nothing has changed but how far it has come."""
        return replace(self, epoch=other.epoch) == other


@dataclass(frozen=True, slots=True)
class Members:
    """The member list of one moment. `(term, number)` grows with each change; the same number is the same list,
    but for the epochs."""

    term: int = 0
    number: int = 0
    all: tuple[Member, ...] = ()
    """Sorted by id, which is the order in which they joined."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def get(self, id: UUID) -> Member | None:
        """The member with this id, None if it is none."""
        return next((member for member in self.all if member.id == id), None)

    def with_role(self, role: str) -> list[Member]:
        """The members that have this role."""
        return [member for member in self.all if role in member.roles]

    def to_json(self) -> dict[str, Any]:
        return {"term": self.term, "number": self.number, "members": [member.to_json() for member in self.all]}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        return cls(int(value["term"]), int(value["number"]), tuple(map(Member.from_json, value["members"])))


def succession(members: Members, leader: UUID, az: str) -> list[Member]:
    """Who leads after this leader, of that zone, the first of those that live: of the highest priority, in another
    zone, which is not in trouble, with the lowest lag; and of those that are equal the oldest."""
    standbys = [member for member in members if member.can_lead and member.id != leader]
    return sorted(standbys, key=lambda each: (-each.leader_priority, each.az == az, -each.epoch, each.id))


def check_priority(priority: object) -> int:
    """Raises TypeError for what is no number, ValueError for one that is too large."""
    if type(priority) is not int:
        raise TypeError(f"leader_priority is a whole number, not {priority!r:.50}")
    if abs(priority) > MAX_PRIORITY:
        raise ValueError(f"leader_priority is at most {MAX_PRIORITY}, and at least {-MAX_PRIORITY}, not {priority}")
    return priority


def check_text(what: str, text: object) -> str:
    """Raises TypeError for what is no string, ValueError for one that is too long."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {text!r:.50}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{what} has at most {MAX_TEXT} characters, not {len(text)}")
    return text


def check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy, as the others will see it. Raises TypeError when it is no object that JSON can hold, ValueError when it
    is too large or nested too deeply."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"the metadata of a member is a mapping, not {metadata!r:.50}")
    try:
        text = json.dumps(dict(metadata), allow_nan=False)
    except RecursionError:
        raise ValueError("the metadata of a member is nested too deeply") from None
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"the metadata of a member has at most {MAX_METADATA_BYTES} bytes of JSON, not {len(text)}")
    copy: Mapping[str, Any] = json.loads(text)
    if _deeper(copy, MAX_METADATA_LEVELS):
        raise ValueError(f"the metadata of a member is nested more than {MAX_METADATA_LEVELS} levels deep")
    return copy


def _deeper(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(child, levels - 1) for child in children)


class DuplicateMember(Exception):
    """Two live nodes claim one id."""


class Roster:
    """The leader's list. Begins with the view that the former leader gave, and hears the members anew.

    Invariant: `members` holds exactly the members heard within `timeout`, after `expire`.
    """

    def __init__(self, term: int, me: Member, last: Members, now: float, timeout: float) -> None:
        self._timeout, self._me = timeout, me.id
        self.me = me
        """The leader itself, also after it has left."""
        self._heard = {member.id: now for member in last if member.id != me.id}
        self._sessions: dict[UUID, str] = {}
        self._members = {member.id: member for member in last} | {me.id: me}
        self.members = Members(term, 1, self._sorted())
        self._looked_at = now

    def report(self, member: Member, session: str, now: float) -> None:
        """A member has said what it is. `session` tells two processes apart that claim one id.

        Raises DuplicateMember when another process is alive under this id.
        """
        known = self._sessions.get(member.id)
        if member.id == self._me or (known not in (None, session) and now - self._heard[member.id] < self._timeout):
            raise DuplicateMember(f"{member.id} is the id of another node that is alive")
        self._sessions[member.id] = session
        self._heard[member.id] = now
        self._put(member)

    def describe(self, me: Member) -> None:
        """The leader says something new of itself."""
        self.me = me
        self._put(me)

    def advance(self, epoch: int) -> None:
        """The leader itself has come to this epoch."""
        self.me = replace(self.me, epoch=epoch)
        if self._me in self._members:
            self._put(self.me)

    def leave(self) -> None:
        """The leader itself leaves: the last view it gives is one without it."""
        if self._members.pop(self._me, None) is not None:
            self._renumber()

    def goodbye(self, id: UUID) -> None:
        """It leaves."""
        if id in self._heard:
            self._remove([id])

    def expire(self, now: float, *, interval: float) -> float:
        """Remove who was silent for too long. To be said every `interval` seconds: for what passes beyond the leader
        stood still, and heard nobody. That does not count as silence; it is returned, in seconds."""
        lost, self._looked_at = max(0.0, now - self._looked_at - interval), now
        if lost > interval / 2:
            self._heard = {id: min(now, heard + lost) for id, heard in self._heard.items()}
        self._remove([id for id, heard in self._heard.items() if now - heard >= self._timeout])
        return lost

    def _put(self, member: Member) -> None:
        former = self._members.get(member.id)
        self._members[member.id] = member
        if former is None or not former.same_but_epoch(member):
            self._renumber()
        elif former != member:
            self.members = replace(self.members, all=self._sorted())

    def _remove(self, ids: list[UUID]) -> None:
        for id in ids:
            del self._members[id], self._heard[id]
            self._sessions.pop(id, None)
        if ids:
            self._renumber()

    def _renumber(self) -> None:
        self.members = Members(self.members.term, self.members.number + 1, self._sorted())

    def _sorted(self) -> tuple[Member, ...]:
        return tuple(sorted(self._members.values(), key=lambda member: member.id))
