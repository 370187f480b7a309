"""Points in time on the command line: an epoch, a date, or how long ago."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from littlebigcluster.epochs import Point

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class PointType(click.ParamType[Any]):
    """An epoch (1234), a date and time (2026-11-22T10:00Z), or how long ago (2h, 90m, 1d12h)."""

    name = "point"

    def __init__(self, *kinds: type) -> None:
        """`kinds`: which of int, datetime and timedelta it may be; by default any."""
        self._kinds = kinds or (int, datetime, timedelta)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Point:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        point = parse_point(value.strip())
        if point is None or not isinstance(point, self._kinds):
            kinds = " or ".join(_EXAMPLES[kind] for kind in self._kinds)
            self.fail(f"{value!r} is not {kinds}", param, ctx)
        return point


_EXAMPLES = {
    int: "an epoch (1234)",
    datetime: "a date and time (2026-11-22T10:00Z; without a zone, this machine's)",
    timedelta: "how long ago (2h, 90m, 1d12h)",
}


def parse_point(text: str) -> Point | None:
    """None when it cannot be read."""
    if text.isdecimal() and text.isascii():
        return int(text)
    if re.fullmatch(r"(\d+(\.\d+)?[smhdw])+", text):
        parts = re.findall(r"([\d.]+)([smhdw])", text)
        return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


def point_options(command: F) -> F:
    """--at, --epoch, --ago, as the argument `point`: None if none is given."""
    options = [
        click.option("--at", "at", type=PointType(datetime), metavar="TIME", help="At that time: 2026-11-22T10:00Z."),
        click.option("--epoch", "epoch", type=PointType(int), metavar="N", help="At that epoch."),
        click.option("--ago", "ago", type=PointType(timedelta), metavar="AGE", help="So long ago: 2h, 90m, 1d12h."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def one_point(at: Point | None, epoch: Point | None, ago: Point | None) -> Point | None:
    """The one that is given. Raises UsageError for several."""
    given = [point for point in (at, epoch, ago) if point is not None]
    if len(given) > 1:
        raise click.UsageError("--at, --epoch and --ago exclude each other")
    return given[0] if given else None
