"""Every error this library raises on purpose.

    LbcError
    ├── NotInitialized        nothing was initialized at this place: run `init` first
    ├── AlreadyInitialized    a cluster lives here already
    ├── WrongCluster          the place holds another cluster than the one expected
    ├── UnsafeStore           the store breaks a promise that safety rests on; it is refused
    ├── StoreUnavailable      the store does not answer, or refuses the request
    ├── Overloaded            more is waiting than may; certainly not taken, back off and try again
    ├── NotLeader             only the leader can do this; certainly not written
    ├── Fenced                another node leads now; certainly not written
    ├── OutcomeUnknown        the write may or may not have taken effect
    ├── Aborted               the batch was lost before it was sent; certainly not written, try again
    ├── CorruptLog            an object of the log is not what it must be
    ├── NotRetained           the point in time asked for is not in the log: too old, or still to come
    ├── FormatTooNew          written by a newer version (of this library or of SQLite)
    ├── EpochTooLarge         one transaction changes more than an epoch may hold, or cannot travel; not written
    ├── NotAllowed            a statement that would break replication was refused
    ├── DeadlineExceeded      the time allowed for the call is over (also a TimeoutError)
    ├── SnapshotExpired       a read held its snapshot longer than `max_read_age`
    ├── DirectoryInUse        another node works in this directory
    ├── PeerUnavailable       another node cannot be reached, or the connection to it broke
    ├── RequestTimeout        another node did not answer in time (also a TimeoutError)
    └── NoMember              nobody leads, or nobody has the role, to send a request to

A class of its own exists only where a caller would act differently. Bad arguments raise `ValueError` or
`TypeError` at the call, and errors of SQL are `sqlite3.Error`, as everywhere in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LbcError(Exception):
    """Base of every error of this library."""


class NotInitialized(LbcError):
    """There is no cluster at this place."""


class AlreadyInitialized(LbcError):
    """There is a cluster at this place already."""


class WrongCluster(LbcError):
    """The place holds a cluster with another id than the one expected."""


class UnsafeStore(LbcError):
    """The store does not honour conditional creates; two nodes could lead at once."""


class StoreUnavailable(LbcError):
    """The store did not answer in time, failed, or refused the request.

    `transient` is False when trying again cannot help before somebody acts: no permission, no bucket.
    """

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


class Overloaded(LbcError):
    """More work is waiting than may (on this node, or on the leader), and this was not taken: certainly not written.
    Whoever sends should wait a moment before trying again, longer each time, or send less."""


class NotLeader(LbcError):
    """This node does not lead. `leader` is the `Leader` it follows, None while there is none."""

    def __init__(self, message: str, *, leader: Any = None) -> None:
        super().__init__(message)
        self.leader = leader


class Fenced(LbcError):
    """Another node has created the epoch this write was part of. It is certainly not written."""


class OutcomeUnknown(LbcError):
    """Leadership, or the patience of the caller, ended before the store said whether the write took effect.

    It may be in the log, or appear in it later. `epoch` is the only place where it can be, if known. `key`, if it
    has one, resolves it: the same write with that key is done now, or answered as it was done.
    """

    def __init__(self, message: str, *, epoch: int | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.key = key


class Aborted(LbcError):
    """The write was executed, but dropped before it was sent. Certainly not written; safe to try again."""


class CorruptLog(LbcError):
    """An object of the log is damaged, foreign, missing or out of order.

    `object` is its name, `offset` the byte where it was noticed (None when the whole object is meant), and
    `expected` what should have been there.
    """

    def __init__(self, object: str, expected: str, *, offset: int | None = None) -> None:
        where = f" at byte {offset}" if offset is not None else ""
        super().__init__(f"{object}{where}: expected {expected}")
        self.object = object
        self.offset = offset
        self.expected = expected


class NotRetained(LbcError):
    """The point in time asked for is not in the log any more, or not yet; the message says what is."""


class FormatTooNew(LbcError):
    """The data was written by a newer version than this one; upgrade this node."""


class EpochTooLarge(LbcError):
    """One transaction changed more than `max_epoch_bytes`, and was rolled back; or it is larger than what may travel to
    the leader, and was not sent. It is not written."""


class NotAllowed(LbcError):
    """A statement or call was refused because it would break replication or end the transaction."""


class DeadlineExceeded(LbcError, TimeoutError):
    """The time allowed for the call is over; what that means for a write, the message says."""


class SnapshotExpired(LbcError):
    """A read held its snapshot longer than `max_read_age` and was ended."""


class DirectoryInUse(LbcError):
    """Another node, of this process or another, works in this directory."""


class PeerUnavailable(LbcError):
    """Another node cannot be reached, or the connection broke before its answer was complete.

    `sent` is False when the request certainly never reached the other node, so that even a write may be sent again.
    `refused` is True when its machine answered that nobody listens at the address.
    """

    def __init__(self, message: str, *, sent: bool, refused: bool = False) -> None:
        super().__init__(message)
        self.sent, self.refused = sent, refused


class RequestTimeout(LbcError, TimeoutError):
    """Another node did not answer in time. It may have done what was asked, or still do it."""


class NoMember(LbcError):
    """In all the time allowed there was no leader, or no member of the role, that could be asked.

    The request was not sent, or what was sent is safe to send again.
    """


@contextmanager
def plain_errors() -> Iterator[None]:
    """Around a TaskGroup: one exception comes out as itself, not as a group of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
