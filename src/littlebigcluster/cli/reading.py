"""`lbc status`, `lbc sql` and `lbc log` read the store, `lbc members` asks the leader; none joins."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from littlebigcluster.cli import text
from littlebigcluster.cli.members import members_table, view_from
from littlebigcluster.cluster import Cluster, LogEntry, Status
from littlebigcluster.epochs import Leader


async def show_members(cluster: Cluster, *, as_json: bool) -> None:
    """Print the members, as the leader tells them."""
    status = await cluster.ask_leader("GET", "/.lbc/status")
    if as_json:
        print(text.json_line(status["members"]))
    else:
        text.show(members_table(view_from(status)))


async def show_status(cluster: Cluster, *, as_json: bool) -> None:
    """Print what the store says about the cluster."""
    status = await cluster.status()
    if as_json:
        print(text.json_line(_status_json(status)))
        return
    for name, value in _status_lines(status):
        text.show(Text.assemble((f"{name:13}", "bold"), text.printable(value)))


def _status_lines(status: Status) -> list[tuple[str, str]]:
    identity, beacon = status.identity, status.beacon
    log = f"{text.count(status.log_epochs, 'epoch')}, {text.size(status.log_bytes)}"
    beacon_text = f"number {beacon.count} of term {beacon.term}, at epoch {beacon.epoch}" if beacon else "none"
    return [
        ("Cluster", identity.cluster_id),
        ("Store", status.store),
        ("Format", f"version {status.format_version}, compression {identity.settings.compression}"),
        ("Created", text.moment(identity.created_at)),
        ("Epoch", str(status.epoch)),
        ("Term", str(status.term)),
        ("Leader", _leader_text(status)),
        ("Last update", text.moment(status.last_update)),
        ("Snapshot", f"epoch {status.snapshot_epoch}, {text.size(status.snapshot_bytes)}"),
        ("Log since", log),
        ("Database", f"{text.size(status.database_bytes)}, pages of {identity.settings.page_size} bytes"),
        ("Last beacon", beacon_text),
    ]


def _leader_text(status: Status) -> str:
    if status.leader is None:
        return "released" if status.term else "none yet"
    return " ".join(filter(None, (str(status.leader.uuid), status.leader.address, status.leader.az)))


def _status_json(status: Status) -> dict[str, Any]:
    identity, beacon = status.identity, status.beacon
    return {
        "cluster_id": identity.cluster_id,
        "store": status.store,
        "format_version": status.format_version,
        "compression": identity.settings.compression,
        "created_at": identity.created_at.isoformat(),
        "epoch": status.epoch,
        "term": status.term,
        "leader": _leader_json(status.leader),
        "last_update": status.last_update.isoformat(),
        "snapshot_epoch": status.snapshot_epoch,
        "snapshot_size_bytes": status.snapshot_bytes,
        "log_epochs": status.log_epochs,
        "log_size_bytes": status.log_bytes,
        "database_size_bytes": status.database_bytes,
        "page_size": identity.settings.page_size,
        "beacon": {"term": beacon.term, "epoch": beacon.epoch, "count": beacon.count} if beacon else None,
    }


def _leader_json(leader: Leader | None) -> dict[str, str] | None:
    return leader.to_json() if leader else None


async def show_sql(cluster: Cluster, statement: str, *, as_json: bool) -> None:
    """Print the rows of a query on the newest state, as a table or as one JSON object per line."""
    async with cluster.head() as head:
        result = await head.query(statement)
        epoch = head.metadata.epoch
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


_WIDE_ENOUGH = 115
_SHORT = 8


async def show_log(cluster: Cluster, *, limit: int | None, as_json: bool) -> None:
    """Print the epochs, as a table or as one JSON object per line."""
    if as_json:
        async for entry in cluster.history(limit=limit):
            print(text.json_line(_entry_json(entry)))
        return
    entries = [entry async for entry in cluster.history(limit=limit)]
    if not entries:
        print("no epochs yet: nobody has led this cluster")
        return
    short = text.console().width < _WIDE_ENOUGH
    transactions = "Tx" if short else "Transactions"
    columns = ("Epoch", "Time", "Term", "Leader", transactions, "Pages", "Size")
    table = text.grid(columns, [_entry_row(entry, short=short) for entry in entries])
    table.columns[-1].justify = "right"
    text.show(table)


def _entry_row(entry: LogEntry, *, short: bool) -> list[Any]:
    metadata = entry.metadata
    leader = str(metadata.leader.uuid) if metadata.leader else "released"
    if short and metadata.leader:
        leader = "…" + leader[-_SHORT:]
    return [
        metadata.epoch,
        text.moment(metadata.created_at),
        metadata.term,
        leader,
        metadata.transactions,
        metadata.pages,
        text.size(entry.size_bytes),
    ]


def _entry_json(entry: LogEntry) -> dict[str, Any]:
    metadata = entry.metadata
    return {
        "epoch": metadata.epoch,
        "time": metadata.created_at.isoformat(),
        "term": metadata.term,
        "leader": _leader_json(metadata.leader),
        "transactions": metadata.transactions,
        "pages": metadata.pages,
        "size_bytes": entry.size_bytes,
    }
