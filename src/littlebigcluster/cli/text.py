"""Text for terminals and files: tables, sizes, and nothing that could control the terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_WIDE = 10_000


def colours_of(stream: TextIO) -> bool:
    """Whether this stream is a terminal that should get colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(stream: TextIO | None = None) -> Console:
    """A console that never folds lines of a file or a pipe."""
    stream = stream or sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else _WIDE,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def show(what: RenderableType) -> None:
    """Print to stdout."""
    console().print(what)


def rendered(what: RenderableType) -> str:
    """What `show` would print, as text."""
    target = console()
    with target.capture() as capture:
        target.print(what)
    return capture.get().rstrip("\n")


def grid(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of values; numbers to the right."""
    rows = [list(row) for row in rows]
    table = Table(box=box.SQUARE, header_style="bold")
    for index, name in enumerate(columns):
        values = [row[index] for row in rows if row[index] is not None]
        numbers = bool(values) and all(isinstance(value, int | float) for value in values)
        table.add_column(Text(printable(name)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


def cell(value: Any) -> Text:
    """A value of SQLite for people."""
    match value:
        case None:
            return Text("NULL", style="dim")
        case bytes():
            return Text(f"x'{value.hex()}'")
        case _:
            return Text(printable(str(value)))


def printable(text: str) -> str:
    """`text` with control characters escaped, line breaks excepted: data must not steer the terminal."""
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def one_line(text: str) -> str:
    """`text` on one line."""
    return printable(" ".join(text.split()))


def json_line(value: Any) -> str:
    """One line of JSON; bytes as {"hex": ...}, infinities, which JSON lacks, as strings."""
    return json.dumps(_plain(value), ensure_ascii=False, default=_default)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case float() if not math.isfinite(value):
            return str(value)
    return value


def _default(value: Any) -> Any:
    return {"hex": value.hex()} if isinstance(value, bytes) else str(value)


def size(size_bytes: float) -> str:
    """A size for people: "812 B", "4.0 KiB", "1.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def moment(value: datetime) -> str:
    """A time for people, in UTC, to the second."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def count(number: int, thing: str) -> str:
    """ "1 epoch", "12,000 epochs"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def spans(found: list[tuple[int, int]]) -> str:
    """Runs of epochs, for people."""
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in found)
