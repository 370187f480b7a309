"""What the demo shows while it runs: a live table on a terminal, plain lines elsewhere."""

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

from littlebigcluster.cli.text import console

_LEADER, _DEAD = "bold green", "red"
_GONE = ("killed", "starting")


@dataclass(frozen=True, slots=True)
class NodeState:
    """One line of the table."""

    name: str
    state: str
    """leader, standby, follower, killed or starting"""
    pid: int | None
    term: int
    epoch: int
    rows: int
    lag_seconds: float
    """The longest of the last second between a write's acknowledgement and its arrival here."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is shown of one moment."""

    elapsed_seconds: float
    nodes: Sequence[NodeState]
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

    def show(self, picture: Picture) -> None:
        """How things stand; called a few times a second."""


def make_view() -> View:
    """The one that fits stdout."""
    return LiveView() if console().is_terminal else PlainView()


def _stamp(elapsed_seconds: float) -> str:
    return f"{elapsed_seconds:6.1f} s"


class PlainView:
    """A line for each event, and one each second."""

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, elapsed_seconds: float, what: str, *, style: str = "") -> None:
        print(f"{_stamp(elapsed_seconds)}  {what}", flush=True)

    def show(self, picture: Picture) -> None:
        if picture.elapsed_seconds < self._next or not picture.nodes:
            return
        self._next = picture.elapsed_seconds + 1
        term = max((node.term for node in picture.nodes), default=0)
        lag = max((node.lag_seconds for node in picture.nodes if node.state not in _GONE), default=0.0)
        rows = ", ".join(f"{node.name} {_brief(node)}" for node in picture.nodes)
        done = f"term {term}, {picture.acknowledged:,} acknowledged, lag up to {lag * 1000:.0f} ms"
        self.event(picture.elapsed_seconds, f"  {done}; rows: {rows}")


def _brief(node: NodeState) -> str:
    if node.state in _GONE:
        return node.state
    return f"{node.rows:,}" + (f" ({node.state})" if node.state == "leader" else "")


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

    def show(self, picture: Picture) -> None:
        self._live.update(Group(_table(picture), _footer(picture)), refresh=True)


def _table(picture: Picture) -> Table:
    table = Table(box=box.SQUARE, header_style="bold")
    for name in ("Node", "Process", "State"):
        table.add_column(name, min_width=8)
    for name in ("Term", "Epoch", "Rows", "Lag"):
        table.add_column(name, justify="right", min_width=6)
    for node in picture.nodes:
        style = {"leader": _LEADER, "killed": _DEAD}.get(node.state, "")
        numbers = (
            ("", "", "", "") if node.state in _GONE else (str(node.term), str(node.epoch), f"{node.rows:,}", _lag(node))
        )
        table.add_row(node.name, str(node.pid or ""), node.state, *numbers, style=style)
    return table


def _lag(node: NodeState) -> str:
    return f"{node.lag_seconds * 1000:.0f} ms" if node.lag_seconds else "-"


def _footer(picture: Picture) -> Text:
    writes = f"{picture.acknowledged:,} writes acknowledged, {picture.rate:.0f} per second"
    return Text(f"{_stamp(picture.elapsed_seconds)}  {writes}", style="dim")
