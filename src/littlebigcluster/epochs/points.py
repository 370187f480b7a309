"""Points in time: from an epoch, a date, or "so long ago" to an epoch of the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import names
from littlebigcluster.epochs.merged import span_of
from littlebigcluster.epochs.metadata import Metadata
from littlebigcluster.epochs.survey import Survey, epoch_of, read_metadata, survey_all
from littlebigcluster.errors import CorruptLog, NotRetained
from littlebigcluster.store import Store

Point = int | datetime | timedelta
"""An epoch; a date and time, with a time zone; or how long ago."""


async def retained(store: Store) -> Survey:
    """The snapshots and epochs from the oldest point that can be restored on. Raises StoreUnavailable."""
    # Read before the listing: it is raised before anything below it is deleted.
    oldest = names.parse_marker(await store.get(names.LAST_RETAINED)) or 0
    found = await survey_all(store)
    snapshots = [info for info in found.snapshots if epoch_of(info) >= oldest]
    first = epoch_of(snapshots[-1]) if snapshots else oldest
    epochs = [info for info in found.epochs if epoch_of(info) >= first]
    return Survey(snapshots, epochs, [info for info in found.merged if span_of(info).first > first])


async def find_epoch(store: Store, found: Survey, point: Point, *, clock: Clock) -> int:
    """The epoch that was the newest one at `point`, among those `retained`.

    Dates are those in the log, by the clocks of the leaders that wrote it; where these disagree it is one of the
    epochs around. Raises NotRetained, ValueError for a date without a time zone, TypeError, CorruptLog,
    StoreUnavailable.
    """
    if not found.snapshots:
        raise NotRetained(f"{store.url} holds no snapshot: there is nothing to restore")
    first, last = epoch_of(found.snapshots[-1]), found.head
    if isinstance(point, int) and point is not True and point is not False:
        if not first <= point <= last:
            raise NotRetained(f"epoch {point} is not in the log, which {await _extent(store, first, last)}")
        return point
    wanted = moment(point, clock)
    if wanted > clock.now():
        raise NotRetained(f"{_text(wanted)} is still to come; the log {await _extent(store, first, last)}")
    if wanted < await _begin(store, first):
        raise NotRetained(f"{_text(wanted)} is not in the log, which {await _extent(store, first, last)}")
    low, high = first, last + 1  # the epoch is at least `low` and below `high`
    while high - low > 1:
        middle = (low + high) // 2
        dated = middle
        while dated > low and (created_at := await _created_at(store, dated)) is None:
            dated -= 1  # what is damaged is taken for as old as what is before it
        if dated == low or (created_at is not None and created_at <= wanted):
            low = middle
        else:
            high = dated
    return low


async def _created_at(store: Store, epoch: int) -> datetime | None:
    """None for a damaged or missing one."""
    try:
        return (await metadata_of(store, epoch)).created_at
    except CorruptLog:
        return None


async def _begin(store: Store, first: int) -> datetime:
    """When the oldest epoch that can be restored was written; its snapshot is a little younger."""
    return await _created_at(store, first) or (await read_metadata(store, names.snapshot(first))).created_at


async def metadata_of(store: Store, epoch: int) -> Metadata:
    """The metadata of an epoch, without its content. Raises CorruptLog, FormatTooNew, StoreUnavailable."""
    return await read_metadata(store, names.wal(epoch) if epoch else names.snapshot(0))


def moment(point: Point, clock: Clock) -> datetime:
    """The date that a point other than an epoch means. Raises TypeError, ValueError for one without a time zone."""
    if isinstance(point, timedelta):
        return clock.now() - point
    if not isinstance(point, datetime):
        raise TypeError(f"a point in time is an epoch, a datetime or a timedelta, not {point!r}")
    if point.utcoffset() is None:
        raise ValueError(f"{point} has no time zone; give one, such as datetime(..., tzinfo=timezone.utc)")
    return point


async def _extent(store: Store, first: int, last: int) -> str:
    """For messages. Reads two objects."""
    begin, end = [await _created_at(store, epoch) for epoch in (first, last)]
    return f"goes from epoch {first} ({_text(begin)}) to epoch {last} ({_text(end)})"


def _text(moment: datetime | None) -> str:
    if moment is None:
        return "damaged"
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
