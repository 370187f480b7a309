"""What the demo shows while it runs: a live table on a terminal, plain lines and a few tables elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from littlebigcluster.cli.text import console, count, rendered

_STYLES = {"leader": "bold green", "killed": "red", "dead": "red"}
_GONE = ("killed", "dead", "starting")


@dataclass(frozen=True, slots=True)
class NodeState:
    """One line of the table."""

    name: str
    state: str
    """leader, standby, follower, killed, dead (without being told to), starting"""
    pid: int | None
    az: str
    roles: str
    epoch: int
    rows: int
    writes: int
    """Acknowledged through this node."""
    lag_seconds: float | None
    """The longest of the last second, from durable on the leader to visible here; None for the leader, and when
    nothing was written."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is shown of one moment."""

    elapsed_seconds: float
    nodes: Sequence[NodeState]
    term: int
    members: int | None
    """As the leader counts them; None while nobody leads."""
    acknowledged: int
    rate: float
    """Acknowledged writes per second, of late."""


class View(Protocol):
    """Shows what happens, and how things stand."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def event(self, elapsed_seconds: float, what: str, *, style: str = "") -> None:
        """Something has happened."""

    def table(self, picture: Picture) -> None:
        """How things stand after an event that changed them."""

    def show(self, picture: Picture) -> None:
        """How things stand; called a few times a second."""


def make_view() -> View:
    """The one that fits stdout."""
    return LiveView() if console().is_terminal else PlainView()


def _stamp(elapsed_seconds: float) -> str:
    return f"{elapsed_seconds:6.1f} s"


class PlainView:
    """A line for each event, one each second while there are writes, and the table after some events."""

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, elapsed_seconds: float, what: str, *, style: str = "") -> None:
        print(f"{_stamp(elapsed_seconds)}  {what}", flush=True)

    def table(self, picture: Picture) -> None:
        print(rendered(_table(picture)), flush=True)

    def show(self, picture: Picture) -> None:
        if picture.elapsed_seconds < self._next or not picture.acknowledged:
            return
        self._next = picture.elapsed_seconds + 1
        lags = ", ".join(f"{node.name} {_lag(node)}" for node in picture.nodes if node.lag_seconds is not None)
        standing = "nobody leads" if picture.members is None else f"lag {lags or '-'}"
        self.event(picture.elapsed_seconds, f"  {_writes(picture)}; {standing}")


class LiveView:
    """The events scroll by above one table that is kept up to date."""

    def __init__(self) -> None:
        self._live = Live(console=console(sys.stdout), auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, elapsed_seconds: float, what: str, *, style: str = "") -> None:
        self._live.console.print(Text.assemble((_stamp(elapsed_seconds), "dim"), "  ", (what, style)))

    def table(self, picture: Picture) -> None:
        self.show(picture)

    def show(self, picture: Picture) -> None:
        footer = Text(f"{_stamp(picture.elapsed_seconds)}  {_standing(picture)}; {_writes(picture)}", style="dim")
        self._live.update(Group(_table(picture), footer), refresh=True)


def _table(picture: Picture) -> Table:
    """78 columns wide, for any terminal."""
    table = Table(box=box.SQUARE, header_style="bold")
    for name, width in (("Node", 6), ("Process", 7), ("State", 8), ("AZ", 3), ("Roles", 6)):
        table.add_column(name, min_width=width, no_wrap=True)
    for name in ("Epoch", "Rows", "Writes", "Lag"):
        table.add_column(name, justify="right", min_width=6 if name == "Lag" else 5, no_wrap=True)
    for node in picture.nodes:
        gone = node.state in _GONE
        table.add_row(
            node.name,
            str(node.pid or ""),
            node.state,
            node.az,
            node.roles,
            "" if gone else f"{node.epoch}",
            "" if gone else f"{node.rows:,}",
            f"{node.writes:,}",
            "" if gone else _lag(node),
            style=_STYLES.get(node.state, ""),
        )
    return table


def _lag(node: NodeState) -> str:
    return f"{node.lag_seconds * 1000:.0f} ms" if node.lag_seconds is not None else "-"


def _standing(picture: Picture) -> str:
    if picture.members is None:
        return f"nobody leads, term {picture.term}"
    return f"term {picture.term}, {count(picture.members, 'member')}"


def _writes(picture: Picture) -> str:
    return f"{picture.acknowledged:,} writes acknowledged, {picture.rate:.0f}/s"
