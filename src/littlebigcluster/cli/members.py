"""Who is in the cluster, as a table, and what has changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from rich import box
from rich.table import Table

from littlebigcluster.cluster import Node


@dataclass(frozen=True, slots=True)
class Member:
    """One line of the table."""

    uuid: UUID
    address: str
    az: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """What this node knows of the cluster."""

    me: UUID | None
    """The node that looks; None from outside."""
    leader: UUID | None
    members: frozenset[Member]

    @property
    def leads(self) -> bool:
        """Whether this node is the leader."""
        return self.leader == self.me


def view_of(node: Node) -> View:
    """The members that the node has heard of, the leader by the log, and itself."""
    leader = node.leader.value
    known = {node.id: Member(node.id, node.address, node.az, node.roles)}
    if leader is not None:
        known.setdefault(leader.uuid, Member(leader.uuid, leader.address, leader.az))
    known |= {member.id: Member(member.id, member.address, member.az, member.roles) for member in node.members.value}
    return View(node.id, leader.uuid if leader else None, frozenset(known.values()))


def view_from(status: Mapping[str, Any]) -> View:
    """What the leader's `/.lbc/status` says."""
    members = [
        Member(UUID(member["id"]), member["address"], member["az"], tuple(member["roles"]))
        for member in status["members"]["members"]
    ]
    return View(None, UUID(status["leader"]["uuid"]) if status["leader"] else None, frozenset(members))


def members_table(view: View) -> Table:
    """As in the original: `*` marks this node, and `L` the leader."""
    table = Table(box=box.SQUARE, header_style="bold")
    for name in ("", f"UUID({len(view.members)})", "Address", "AZ", "Roles"):
        table.add_column(name, overflow="fold")
    for member in sorted(view.members, key=lambda member: member.uuid):
        mark = "*" * (member.uuid == view.me) + "L" * (member.uuid == view.leader)
        table.add_row(mark, str(member.uuid), member.address, member.az, ", ".join(member.roles))
    return table


def changes(old: View | None, new: View) -> Iterable[str]:
    """The headlines for what has changed, none when nothing has."""
    if old is None:
        yield "Initial members:"
    elif old.leader != new.leader:
        yield "Leader changed:" if new.leader else "Leader changed: nobody leads"
    elif old.members != new.members:
        yield "Members changed:"
