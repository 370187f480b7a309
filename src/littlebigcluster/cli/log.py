"""`lbc log`: the epochs, without their content."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any

from rich.table import Table

from littlebigcluster.cli import text
from littlebigcluster.cli.reading import leader_json
from littlebigcluster.cluster import Cluster, LogEntry
from littlebigcluster.epochs import Point, Repair, read_repairs

_WIDE_ENOUGH = 115
_TABLES_WIDTH = 20
_SHORT = 8


async def show_log(
    cluster: Cluster,
    *,
    limit: int | None,
    since: Point | None,
    term: int | None,
    leader: str | None,
    follow: bool,
    tables: bool,
    as_json: bool,
) -> None:
    """Print the last `limit` epochs of those asked for, as a table or as one JSON object per line; with `follow` also
    those to come, with `tables` also which they touched. `leader` is the beginning or the end of a UUID."""
    everything = since is None and term is None and leader is None
    found = cluster.history(limit=limit if everything else None, since=since)
    entries = deque([entry async for entry in found if _is_wanted(entry, term, leader)], maxlen=limit)
    repairs = await read_repairs(cluster.store)
    if tables:
        entries = deque(await _with_tables(cluster, entries))
    if as_json:
        for entry in entries:
            print(text.json_line(_entry_json(entry, repairs, tables=tables)))
    elif entries:
        text.show(_table(list(entries), repairs, tables=tables))
        if lost := _lost_since(entries[0].metadata.epoch, repairs):
            print(f"Lost, as repairs tell: epochs {text.spans(lost)}")
    elif not follow:
        print("no epochs yet: nobody has led this cluster" if everything else "no such epochs")
    if follow:
        last = entries[-1].metadata.epoch if entries else None
        async with aclosing(_to_come(cluster, last, tables=tables)) as to_come:
            async for entry in to_come:
                if _is_wanted(entry, term, leader):
                    line = (
                        text.json_line(_entry_json(entry, [], tables=tables))
                        if as_json
                        else "  ".join(map(str, _entry_row(entry, short=True, tables=tables)))
                    )
                    print(line, flush=True)


async def _to_come(cluster: Cluster, last: int | None, *, tables: bool) -> AsyncGenerator[LogEntry, None]:
    """The epochs after `last`; None: after those that are there now."""
    since = (await cluster.status()).epoch if last is None else last
    async with aclosing(cluster.history(since=since, follow=True, tables=tables)) as entries:
        async for entry in entries:
            if entry.metadata.epoch > since:
                yield entry


async def _with_tables(cluster: Cluster, entries: Collection[LogEntry]) -> list[LogEntry]:
    """These entries, in a second pass: only now the first one is known, before which to restore."""
    wanted = [entry.metadata.epoch for entry in entries]
    told: list[LogEntry] = []
    if wanted:
        async with aclosing(cluster.history(since=wanted[0], tables=True)) as history:
            async for entry in history:
                if entry.metadata.epoch in wanted:
                    told.append(entry)
                if entry.metadata.epoch >= wanted[-1]:
                    break
    return told


def _is_wanted(entry: LogEntry, term: int | None, leader: str | None) -> bool:
    metadata = entry.metadata
    uuid = str(metadata.leader.uuid) if metadata.leader else ""
    return (term is None or metadata.term == term) and (
        leader is None or (uuid != "" and (uuid.startswith(leader) or uuid.endswith(leader)))
    )


def _lost_since(first: int, repairs: list[Repair]) -> list[tuple[int, int]]:
    """What is lost from there on: damaged objects among it have no line of their own."""
    return sorted({span for repair in repairs for span in repair.lost if span[1] >= first})


def _is_lost(entry: LogEntry, repairs: list[Repair]) -> bool:
    return any(repair.has_lost(entry.metadata.epoch) for repair in repairs)


def _table(entries: list[LogEntry], repairs: list[Repair], *, tables: bool) -> Table:
    short = text.console().width < _WIDE_ENOUGH + (_TABLES_WIDTH if tables else 0)
    counts = [] if short and tables else ["Tx" if short else "Transactions", "Pages"]
    columns = ["Epoch", "Time", "Term", "Leader", *counts, "Size", *(["Tables"] if tables else [])]
    rows = [_entry_row(entry, short=short, tables=tables) for entry in entries]
    lost = ["lost" if _is_lost(entry, repairs) else "" for entry in entries]
    if any(lost):
        columns, rows = [*columns, "State"], [[*row, note] for row, note in zip(rows, lost, strict=True)]
    table = text.grid(columns, rows)
    table.columns[columns.index("Size")].justify = "right"
    return table


def _entry_row(entry: LogEntry, *, short: bool, tables: bool) -> list[Any]:
    metadata = entry.metadata
    leader = str(metadata.leader.uuid) if metadata.leader else "released"
    if short and metadata.leader:
        leader = "…" + leader[-_SHORT:]
    counts = [] if short and tables else [metadata.transactions, metadata.pages]  # there is no room for all
    touched = ["unknown" if entry.tables is None else ", ".join(entry.tables)] if tables else []
    return [
        metadata.epoch,
        text.moment(metadata.created_at),
        metadata.term,
        leader,
        *counts,
        text.size(entry.size_bytes),
        *touched,
    ]


def _entry_json(entry: LogEntry, repairs: list[Repair], *, tables: bool) -> dict[str, Any]:
    metadata = entry.metadata
    return {
        "epoch": metadata.epoch,
        "time": metadata.created_at.isoformat(),
        "term": metadata.term,
        "leader": leader_json(metadata.leader),
        "transactions": metadata.transactions,
        "pages": metadata.pages,
        "size_bytes": entry.size_bytes,
        "lost": _is_lost(entry, repairs),
        **({"tables": entry.tables} if tables else {}),
    }
