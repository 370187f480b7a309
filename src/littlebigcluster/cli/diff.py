"""`lbc diff`: what changed between two points; and the dry run of what would change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from littlebigcluster.cli import text
from littlebigcluster.cluster import Changes, Cluster, TableChanges
from littlebigcluster.database import RowChange
from littlebigcluster.database.tables import fold
from littlebigcluster.epochs import Metadata, Point

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
_LONG = 60
_LONG_BLOB = 16


async def show_diff(
    cluster: Cluster, from_: Point, to: Point | None, *, table: str | None, limit: int | None, as_json: bool
) -> None:
    """Print what changed between two points."""
    async with cluster.diff(from_, to, table=table) as changes:
        await show_changes(changes, limit=limit, as_json=as_json)


async def show_changes(changes: Changes, *, limit: int | None, as_json: bool) -> None:
    """Print the changes: first the schema and a summary, then up to `limit` rows of each table; or JSON lines."""
    if as_json:
        await _print_json(changes, limit)
        return
    print(f"From epoch {_epoch(changes.before)} to epoch {_epoch(changes.after)}")
    if not changes:
        print("Nothing differs.")
        return
    for change in changes.schema:
        text.show(Text(text.one_line(f"{change.kind} {change.type} {change.name}")))
    old, new = changes.user_versions
    if old != new:
        print(f"user_version {old} -> {new}")
    if changes.tables:
        rows = [(table.name, *_numbers(table), _note(table)) for table in changes.tables.values()]
        columns = ("Table", "Added", "Removed", "Changed", "Note")
        noted = any(row[-1] for row in rows)
        text.show(text.grid(columns if noted else columns[:-1], rows if noted else [row[:-1] for row in rows]))
    for table in changes.tables.values():
        await _print_rows(changes, table, limit)


def _epoch(metadata: Metadata) -> str:
    return f"{metadata.epoch} ({text.moment(metadata.created_at)})"


def _numbers(table: TableChanges) -> tuple[int, int, int]:
    return table.counts.added, table.counts.removed, table.counts.changed


def _note(table: TableChanges) -> str:
    if table.unreadable:
        return f"not compared: {table.unreadable}"
    if not table.columns_before or not table.columns_after:
        return "dropped" if table.columns_before else "created"
    gone, come = _beside(table.columns_before, table.columns_after), _beside(table.columns_after, table.columns_before)
    return "; ".join(f"{what} {', '.join(names)}" for what, names in (("without", gone), ("with new", come)) if names)


def _beside(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = {fold(name) for name in others}
    return [name for name in names if fold(name) not in known]


async def _print_rows(changes: Changes, table: TableChanges, limit: int | None) -> None:
    if not table.counts:
        return
    print()
    text.show(Text(text.one_line(table.name), style="bold"))
    shown = 0
    async for change in changes.rows(table.name, limit=limit):
        sign, style = _SIGNS[change.kind]
        text.show(Text.assemble((f"{sign} ", style), _line(table, change)))
        shown += 1
    left = sum(_numbers(table)) - shown
    if left:
        print(f"  and {text.count(left, 'row')} more")


def _line(table: TableChanges, change: RowChange) -> str:
    old, new = _named(table, change)
    values = old if new is None else new
    parts = [] if change.rowid is None else [f"rowid {change.rowid}"]
    if old is None or new is None:
        parts += [f"{text.one_line(name)} {shown(value)}" for name, value in (values or {}).items()]
        return ", ".join(parts)
    parts += [f"{text.one_line(name)} {shown(old[name])}" for name in table.key]
    different = [f"{text.one_line(a)} {shown(old[a])} -> {shown(new[b])}" for a, b in _different(table, old, new)]
    return f"{', '.join(parts)}: {', '.join(different)}"


def _named(table: TableChanges, change: RowChange) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    old = None if change.old is None else dict(zip(table.columns_before, change.old, strict=True))
    new = None if change.new is None else dict(zip(table.columns_after, change.new, strict=True))
    return old, new


def _different(table: TableChanges, old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The columns, as both states name them, whose values differ."""
    names = {fold(name): name for name in table.columns_after}
    for name in table.columns_before:
        other = names.get(fold(name))
        if other is not None and (type(old[name]), old[name]) != (type(new[other]), new[other]):
            yield name, other


def shown(value: Any) -> str:
    """A value as SQL would write it, on one line, and not too long."""
    match value:
        case None:
            return "NULL"
        case bytes():
            more = f"… ({text.size(len(value))})" if len(value) > _LONG_BLOB else ""
            return f"x'{value[:_LONG_BLOB].hex()}{more}'"
        case str():
            more = f"… ({text.count(len(value), 'character')})" if len(value) > _LONG else ""
            quoted = value[:_LONG].replace("'", "''")
            return text.printable(f"'{quoted}{more}'").replace("\n", "\\n")
        case float() if math.isinf(value):
            return "9e999" if value > 0 else "-9e999"
        case _:
            return str(value)


async def _print_json(changes: Changes, limit: int | None) -> None:
    """One object per line: the two epochs, each change of the schema, each table, and its rows after it."""
    both = zip((changes.before, changes.after), changes.user_versions, strict=True)
    ends = [{"epoch": at.epoch, "time": at.created_at.isoformat(), "user_version": version} for at, version in both]
    print(text.json_line({"from": ends[0], "to": ends[1]}))
    for change in changes.schema:
        print(
            text.json_line(
                {"schema": change.kind, "type": change.type, "name": change.name, "old": change.old, "new": change.new}
            )
        )
    for table in changes.tables.values():
        added, removed, changed = _numbers(table)
        counts: dict[str, Any] = {"table": table.name, "added": added, "removed": removed, "changed": changed}
        counts |= {"columns_before": table.columns_before, "columns_after": table.columns_after, "key": table.key}
        print(text.json_line(counts | {"unreadable": table.unreadable}))
        async for row in changes.rows(table.name, limit=limit):
            print(text.json_line(_row_json(table, row)))


def _row_json(table: TableChanges, change: RowChange) -> dict[str, Any]:
    old, new = _named(table, change)
    line: dict[str, Any] = {"row": change.kind, "table": table.name}
    if change.rowid is not None:
        line["rowid"] = change.rowid
    if old is not None and new is not None:
        line["key"] = {name: old[name] for name in table.key}
        different = list(_different(table, old, new))
        old, new = {a: old[a] for a, _ in different}, {b: new[b] for _, b in different}
    return line | {"old": _json_values(old), "new": _json_values(new)}


def _json_values(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Text that is not valid goes as its bytes."""
    if values is None:
        return None
    return {
        name: value.encode("utf-8", "surrogateescape") if isinstance(value, str) and not _is_valid(value) else value
        for name, value in values.items()
    }


def _is_valid(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
