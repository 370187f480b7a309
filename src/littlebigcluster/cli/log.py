"""`lbc log`: the epochs, without their content."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from rich.table import Table

from littlebigcluster.cli import text
from littlebigcluster.cli.reading import leader_json
from littlebigcluster.cluster import Cluster, LogEntry
from littlebigcluster.epochs import Point

_WIDE_ENOUGH = 115
_SHORT = 8


async def show_log(
    cluster: Cluster,
    *,
    limit: int | None,
    since: Point | None,
    term: int | None,
    leader: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the last `limit` epochs of those asked for, as a table or as one JSON object per line; with `follow` also
    those to come. `leader` is the beginning or the end of a UUID."""
    everything = since is None and term is None and leader is None
    found = cluster.history(limit=limit if everything else None, since=since)
    entries = deque([entry async for entry in found if _is_wanted(entry, term, leader)], maxlen=limit)
    if as_json:
        for entry in entries:
            print(text.json_line(_entry_json(entry)))
    elif entries:
        text.show(_table(list(entries)))
    elif not follow:
        print("no epochs yet: nobody has led this cluster" if everything else "no such epochs")
    if follow:
        last = entries[-1].metadata.epoch if entries else None
        async for entry in _to_come(cluster, last):
            if _is_wanted(entry, term, leader):
                line = (
                    text.json_line(_entry_json(entry))
                    if as_json
                    else "  ".join(map(str, _entry_row(entry, short=True)))
                )
                print(line, flush=True)


async def _to_come(cluster: Cluster, last: int | None) -> AsyncIterator[LogEntry]:
    """The epochs after `last`; None: after those that are there now."""
    since = (await cluster.status()).epoch if last is None else last
    async for entry in cluster.history(since=since, follow=True):
        if entry.metadata.epoch > since:
            yield entry


def _is_wanted(entry: LogEntry, term: int | None, leader: str | None) -> bool:
    metadata = entry.metadata
    uuid = str(metadata.leader.uuid) if metadata.leader else ""
    return (term is None or metadata.term == term) and (
        leader is None or (uuid != "" and (uuid.startswith(leader) or uuid.endswith(leader)))
    )


def _table(entries: list[LogEntry]) -> Table:
    short = text.console().width < _WIDE_ENOUGH
    transactions = "Tx" if short else "Transactions"
    columns = ("Epoch", "Time", "Term", "Leader", transactions, "Pages", "Size")
    table = text.grid(columns, [_entry_row(entry, short=short) for entry in entries])
    table.columns[-1].justify = "right"
    return table


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
        "leader": leader_json(metadata.leader),
        "transactions": metadata.transactions,
        "pages": metadata.pages,
        "size_bytes": entry.size_bytes,
    }
