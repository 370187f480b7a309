"""What is seen from outside: `lbc sql` and `lbc log` read the store, `lbc members` asks the leader, `lbc status` both;
none joins."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.text import Text

from littlebigcluster.cli import text
from littlebigcluster.cli.members import members_table, view_from
from littlebigcluster.cluster import SNAPSHOT_PATH, SNAPSHOT_SECONDS, Cluster, Status
from littlebigcluster.cluster.certificates import LOOK_SECONDS
from littlebigcluster.epochs import Leader, Point
from littlebigcluster.errors import LbcError, NotLeader
from littlebigcluster.settings import NodeSettings

STATUS_SECONDS = 3.0
"""So long `lbc status` waits for the leader."""


async def show_members(cluster: Cluster, settings: NodeSettings, *, as_json: bool) -> None:
    """Print the members, as the leader tells them."""
    status = await cluster.ask_leader("GET", "/.lbc/status", settings=settings)
    if as_json:
        print(text.json_line(status["members"]))
    else:
        text.show(members_table(view_from(status)))


async def show_status(cluster: Cluster, settings: NodeSettings | None, *, as_json: bool) -> None:
    """Print how the cluster is: what the leader says, if there is one that answers, and else the store. Without
    `settings`, which say how to talk to the leader, it is not asked."""
    status = _stored(await cluster.status())
    if settings is not None:
        try:
            status |= _live(await cluster.ask_leader("GET", "/.lbc/status", settings=settings, timeout=STATUS_SECONDS))
        except LbcError as error:
            status["leader_error"] = str(error)
    if as_json:
        print(text.json_line(status))
        return
    for name, value in _status_lines(status):
        text.show(Text.assemble((f"{name:13}", "bold"), text.printable(value)))
    if status["members"]:
        text.show(members_table(view_from(status)))


def _stored(status: Status) -> dict[str, Any]:
    """All fields of the JSON, as far as the store tells."""
    identity, beacon = status.identity, status.beacon
    return {
        "source": "store",
        "leader_error": None,
        "cluster_id": identity.cluster_id,
        "store": status.store,
        "format_version": status.format_version,
        "compression": identity.settings.compression,
        "created_at": identity.created_at.isoformat(),
        "epoch": status.epoch,
        "term": status.term,
        "leader": leader_json(status.leader),
        "last_update": status.last_update.isoformat(),
        "snapshot_epoch": status.snapshot_epoch,
        "snapshot_size_bytes": status.snapshot_bytes,
        "log_epochs": status.log_epochs,
        "log_size_bytes": status.log_bytes,
        "database_size_bytes": status.database_bytes,
        "page_size": identity.settings.page_size,
        "beacon": {"term": beacon.term, "epoch": beacon.epoch, "count": beacon.count} if beacon else None,
        "members": None,
    }


_LIVE_FIELDS = ("epoch", "term", "leader", "last_update", "database_size_bytes", "members")


def _live(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the leader knows better. Raises NotLeader when it does not lead any more."""
    if not answer["is_leader"]:
        raise NotLeader(f"{answer['this']['address']} does not lead any more")
    return {"source": "leader", **{name: answer[name] for name in _LIVE_FIELDS}}


def _status_lines(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    beacon, leader = status["beacon"], status["leader"]
    log = f"{text.count(status['log_epochs'], 'epoch')}, {text.size(status['log_size_bytes'])}"
    nobody = "released" if status["term"] else "none yet"
    source = "the leader" if status["source"] == "leader" else "the store alone"
    why = f" ({status['leader_error']})" if status["leader_error"] else ""
    return [
        ("Source", source + why),
        ("Cluster", status["cluster_id"]),
        ("Store", status["store"]),
        ("Format", f"version {status['format_version']}, compression {status['compression']}"),
        ("Created", _moment(status["created_at"])),
        ("Epoch", str(status["epoch"])),
        ("Term", str(status["term"])),
        ("Leader", " ".join(filter(None, leader.values())) if leader else nobody),
        ("Last update", _moment(status["last_update"])),
        ("Snapshot", f"epoch {status['snapshot_epoch']}, {text.size(status['snapshot_size_bytes'])}"),
        ("Log since", log),
        ("Database", f"{text.size(status['database_size_bytes'])}, pages of {status['page_size']} bytes"),
        ("Last beacon", "number {count} of term {term}, at epoch {epoch}".format(**beacon) if beacon else "none"),
    ]


def _moment(value: str) -> str:
    return text.moment(datetime.fromisoformat(value))


def leader_json(leader: Leader | None) -> dict[str, str] | None:
    return leader.to_json() if leader else None


async def show_snapshot(cluster: Cluster, settings: NodeSettings, *, as_json: bool) -> None:
    """Have one made, and print what came of it."""
    path, limit = SNAPSHOT_PATH, SNAPSHOT_SECONDS
    made = await cluster.ask_leader("POST", path, {"here": False}, settings=settings, timeout=limit)
    if as_json:
        print(text.json_line(made))
    else:
        print(f"Snapshot of epoch {made['epoch']}, {text.size(made['size_bytes'])}, made by {made['by']}.")


async def show_rotation(cluster: Cluster, *, at_once: bool) -> None:
    """Change the authority, and print what happens when."""
    rotation = await cluster.rotate_authority(at_once=at_once)
    look = f"{LOOK_SECONDS / 60:g} minutes"
    if rotation.former_end_at is None:
        print(f"Authority {rotation.number} is made, and the former ones are deleted.")
        print(f"  within {look}: each node looks, and from then on trusts nothing else. Until all have")
        print("    looked, some refuse each other and poll the store. A restart of a node is a look, too.")
        print("  This helps only if nobody can read the bucket any more who should not: change its credentials first.")
        return
    done = "is made; nodes go on meanwhile" if rotation.begun_now else "is being introduced; nothing was changed"
    print(f"Authority {rotation.number} {done}.")
    print(f"  until {text.moment(rotation.signs_at)}  nodes come to trust it; the former one signs their certificates")
    print(f"  from  {text.moment(rotation.signs_at)}  it signs; within {look} all nodes show certificates by it")
    print(f"  from  {text.moment(rotation.former_end_at)}  within {look} no node trusts the former any more")
    print("There is nothing else to do.")


async def show_sql(cluster: Cluster, statement: str, point: Point | None, *, as_json: bool) -> None:
    """Print the rows of a query on the state of then (None: of now), as a table or as one JSON object per line."""
    async with cluster.head() if point is None else cluster.at(point) as state:
        result = await state.query(statement)
        epoch = state.metadata.epoch
    if as_json:
        names = _unique(result.columns)
        for row in result.rows:
            print(text.json_line(dict(zip(names, row, strict=True))))
        return
    if result.columns:
        text.show(text.grid(result.columns, result.rows))
    print(f"{text.count(len(result.rows), 'row')}, at epoch {epoch}")


def _unique(names: list[str]) -> list[str]:
    """The names; a name that comes again gets a number, because an object holds each name once."""
    found: dict[str, None] = {}
    for name in names:
        unique, number = name, 2
        while unique in found:
            unique, number = f"{name}:{number}", number + 1
        found[unique] = None
    return list(found)
