"""The log of epochs: reading it in order, finding its head, appending to it.

Whoever creates epoch N+1 by conditional create leads. Two questions decide everything: *is there an epoch after
mine?* and *was the one I sent created?* Both are answered here and nowhere else.

**The fence.** Retention deletes old epochs, so an absent epoch N+1 proves that N is the head only for someone who
knew recently that N, or an epoch before it, was the head, or that `.last_retained` had not passed it: what
`.last_retained` has passed stays for longer than any `fence_validity` before it is deleted. `Log` keeps when that was
(`_confirmed_at`, by a clock that goes on while the machine sleeps, read *before* the request that proved it was sent).
Past `fence_validity` every question first goes through `_survey_after`: `.last_retained`, then a LIST. That an epoch
could be read confirms nothing: to one who is far behind, the next one may be gone. Nor is a position the head that a
listing has shown epochs behind (`_listed`): should the next one be absent, it has been deleted, whatever a late PUT has
made of the marker. `tests/model/protocol.pml` is this module as a formal model, docs/PROTOCOL.md its story.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass

from littlebigcluster.clock import Clock
from littlebigcluster.epochs import codec, names
from littlebigcluster.epochs.codec import Entry
from littlebigcluster.epochs.metadata import Metadata
from littlebigcluster.errors import CorruptLog, Fenced, LbcError, OutcomeUnknown, StoreUnavailable
from littlebigcluster.store import Mine, Resolution, Store, Theirs, Unresolved, put_if_absent
from littlebigcluster.store.retry import backoff_seconds

logger = logging.getLogger(__name__)

_ATTEMPT_SECONDS = 15.0
"""After so long without an answer an append looks at the fence again before it goes on."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log: an epoch, its term, and the hash of its whole object."""

    epoch: int
    term: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AtHead:
    """No epoch follows; this was so at some moment after the question was asked."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The log behind this position has been deleted: it tells nothing any more; restore from a snapshot."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The epoch is durable and ours."""

    position: Position


@dataclass(frozen=True, slots=True)
class Lost:
    """Another node has created the epoch. Ours is certainly not part of the log, and never will be."""

    def error(self, epoch: int) -> LbcError:
        return Fenced(f"another node has created epoch {epoch}; the write is not written")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The epoch was sent, and that part of the log is deleted: nobody can tell any more whether it was in it."""

    def error(self, epoch: int) -> LbcError:
        return OutcomeUnknown(f"the log around epoch {epoch} was deleted before its fate was known", epoch=epoch)


class Log:
    """One node's view of the log. Invariant: everything up to `position` is durable."""

    def __init__(
        self,
        store: Store,
        *,
        cluster_id: str,
        position: Position,
        confirmed_at: float,
        validity: float,
        clock: Clock,
    ) -> None:
        self._store, self._cluster_id, self._clock = store, cluster_id, clock
        self._validity = validity
        self._position = position
        self._confirmed_at = confirmed_at
        self._listed = 0
        """The newest epoch that a listing has shown."""

    @property
    def position(self) -> Position:
        return self._position

    @property
    def fence_holds(self) -> bool:
        """Whether an absent next epoch proves that `position` is the head."""
        return self.is_confirmed and self._listed <= self._position.epoch

    @property
    def is_confirmed(self) -> bool:
        """Whether the next epoch, if it is there, is the one of the log."""
        return self._clock.boottime() - self._confirmed_at < self._validity

    async def next(self) -> Entry | AtHead | Gone:
        """The entry after `position`, checked against the chain; `advance` moves on to it.

        Raises CorruptLog, FormatTooNew, StoreUnavailable.
        """
        at, name = self._position, names.wal(self._position.epoch + 1)
        while True:
            asked_at = self._clock.boottime()
            if not self.is_confirmed:
                later = await self._survey_after(at)
                if not isinstance(later, list):
                    return later
            body = await self._store.get(name)
            if body is not None:
                # After long it may be an orphan, put where retention has deleted the true one: then the log is gone.
                later = [] if self.is_confirmed else await self._survey_after(at)
                if isinstance(later, list):
                    break
                return later
            if self.fence_holds:  # still: the machine may have slept, or the store dawdled, over the request
                self._confirm(at.epoch, asked_at)
                return AtHead()
            self._confirmed_at = float("-inf")
        entry = codec.decode(body, name=name)
        check_follows(entry, at, cluster_id=self._cluster_id)
        return entry

    async def is_head(self) -> bool:
        """Whether no epoch follows `position`, at some moment after the call. Raises StoreUnavailable."""
        at, asked_at = self._position, self._clock.boottime()
        if self.fence_holds:
            if await self._store.get_range(names.wal(at.epoch + 1), 0, 1) is not None:
                return False
            if self.fence_holds:
                self._confirm(at.epoch, asked_at)
                return True
        return isinstance(await self._survey_after(at), AtHead)

    async def head(self) -> int | None:
        """The newest epoch of the log, at some moment after the call; None when the log behind `position` is gone.

        Raises StoreUnavailable.
        """
        at = self._position
        later = await self._survey_after(at)
        if isinstance(later, list):
            return later[-1]
        return at.epoch if isinstance(later, AtHead) else None

    def advance(self, position: Position) -> None:
        """Moves on to the next epoch, just read or appended, or to the end of merged ones, which has been seen to be in
        the log: it inherits when its predecessor was confirmed."""
        assert position.epoch > self._position.epoch
        self._position = position

    async def append(self, body: bytes, *, term: int) -> Appended | Lost | Forgotten:
        """Create the epoch after `position` with these bytes; returns when its fate is certain, or will never be.

        Trusts neither an error nor a success that took too long. Waits through outages, sending only these
        very bytes, until it is cancelled: then the outcome is unknown. Does not move `position`.
        Raises StoreUnavailable when the store has refused the request for good, and it is certainly not written.
        """
        at = self._position
        name = names.wal(at.epoch + 1)
        ours = Position(at.epoch + 1, term, hashlib.sha256(body).hexdigest())
        attempt = 0
        sent_at: float | None = None  # for the first time: if it is ours, then `at` was the head at some moment since
        while True:
            if self.fence_holds:
                sent_at = self._clock.boottime() if sent_at is None else sent_at
                result = await self._send(name, body, again=attempt > 0)
                # Only if the fence still holds: else the place may have been free because its epoch was deleted.
                if isinstance(result, Theirs) and self.fence_holds:
                    return Lost()
                if isinstance(result, Mine) and self.fence_holds:
                    self._confirm(at.epoch, sent_at)
                    return Appended(ours)
            attempt += 1
            try:
                fate = await self._fate(at, ours, sent=sent_at is not None)
            except StoreUnavailable as error:
                logger.warning("the outcome of epoch %d is not known yet: %s", ours.epoch, error)
                fate = None
            if fate is not None:
                return fate
            if not self.fence_holds or attempt > 1:
                await asyncio.sleep(backoff_seconds(attempt, self._clock))

    async def _send(self, name: str, body: bytes, *, again: bool) -> Resolution:
        try:
            return await put_if_absent(
                self._store,
                name,
                body,
                clock=self._clock,
                deadline_seconds=_ATTEMPT_SECONDS,
                still_valid=lambda: self.fence_holds,
            )
        except StoreUnavailable as error:
            if not again:
                raise
            return Unresolved(error)  # an earlier sending may still take effect

    async def _fate(self, at: Position, ours: Position, *, sent: bool) -> Appended | Lost | Forgotten | None:
        """What the store says of the epoch we sent; None when nothing follows `at`, and it may be sent again, or when
        the answer came too late to be believed."""
        later = await self._survey_after(at)
        if isinstance(later, Gone):
            return Forgotten() if sent else Lost()
        if isinstance(later, AtHead):
            return None
        body = await self._store.get(names.wal(ours.epoch))
        if not self.is_confirmed:
            return None
        if body is None and sent:
            return Forgotten()
        if body is None or hashlib.sha256(body).hexdigest() != ours.sha256:
            return Lost()
        if ours.epoch + 1 in later:
            # Somebody went on from an epoch of this number: from ours, or from one that retention has deleted
            # since, in whose place a late request of ours has put an orphan?
            name = names.wal(ours.epoch + 1)
            prefix = await self._store.get_range(name, 0, codec.HEADER.size + codec.MAX_METADATA_BYTES)
            if prefix is None:
                return Forgotten()
            if codec.decode_header(prefix, name=name)[0].previous_sha256 != ours.sha256:
                return Lost()
        return Appended(ours)

    async def _survey_after(self, at: Position) -> list[int] | AtHead | Gone:
        """The epochs after `at` by LIST, the next one first. Renews the fence."""
        while True:
            asked_at = self._clock.boottime()
            answer = await self._ask_after(at)
            if self._clock.boottime() - asked_at < self._validity:
                if not isinstance(answer, Gone):
                    self._confirm(at.epoch, asked_at)
                return answer

    async def _ask_after(self, at: Position) -> list[int] | AtHead | Gone:
        # `.last_retained` is raised before anything is deleted, so it is read before the listing.
        retained = names.parse_marker(await self._store.get(names.LAST_RETAINED))
        if retained is not None and retained > at.epoch + 1:
            return Gone()
        later = await self._listed_after(at)
        if _gap_at_start(at, later):
            # Not every listing shows one moment: an epoch created meanwhile may be in it without the one before.
            later = await self._listed_after(at)
        if not later:
            self._listed = 0
            return AtHead()
        # Behind a gap lies the retained log; in front of it may lie an orphan, of a create that came too late.
        if _gap_at_start(at, later):
            return Gone()
        self._listed = max(self._listed, later[-1])
        return later

    async def _listed_after(self, at: Position) -> list[int]:
        listed = await self._store.list(names.LOG_PREFIX, start_after=names.wal(at.epoch))
        parsed = [names.parse(info.key) for info in listed]
        return [epoch for kind, epoch in filter(None, parsed) if kind == "wal"]

    def _confirm(self, epoch: int, asked_at: float) -> None:
        # An answer about an earlier position says nothing about the present one.
        if epoch == self._position.epoch:
            self._confirmed_at = max(self._confirmed_at, asked_at)


def _gap_at_start(at: Position, later: list[int]) -> bool:
    """Whether one of the two epochs after `at` is missing in front of later ones."""
    return any(epoch != at.epoch + 1 + index for index, epoch in enumerate(later[:2]))


def check_follows(entry: Entry, at: Position, *, cluster_id: str) -> None:
    """Raises CorruptLog unless `entry` is the epoch right after `at` in the chain of this cluster."""
    metadata, name = entry.metadata, names.wal(at.epoch + 1)
    if metadata.kind != "wal":
        raise CorruptLog(name, f'an epoch (kind "wal"), found "{metadata.kind}"')
    if metadata.cluster_id != cluster_id:
        raise CorruptLog(
            name,
            f'an epoch of cluster "{cluster_id}", found one of "{metadata.cluster_id}"; if that one was here before,'
            " end those of its nodes that still run",
        )
    if metadata.epoch != at.epoch + 1:
        raise CorruptLog(name, f"epoch {at.epoch + 1}, found {metadata.epoch}")
    check_link(metadata, at, name=name)


def check_link(metadata: Metadata, at: Position, *, name: str) -> None:
    """Raises CorruptLog unless the object of this name, an epoch or merged ones, is chained to the one `at`."""
    if metadata.previous_sha256 != at.sha256:
        raise CorruptLog(
            name,
            f"an epoch that follows the object with SHA-256 {at.sha256}, found one after {metadata.previous_sha256}",
        )
    if metadata.term < at.term:
        raise CorruptLog(name, f"a term of at least {at.term}, found {metadata.term}")
