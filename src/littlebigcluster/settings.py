"""Frozen values: what all nodes of a cluster share (`ClusterSettings`) and what this node does (`NodeSettings`).

Durations are given as a `timedelta` or as seconds, and kept as seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

Duration = float | timedelta
Compression = Literal["zstd", "none"]

MIN_SUSPECT_TIMEOUT_SECONDS = 1.0
MAX_FENCE_VALIDITY_SECONDS = 1800.0
MIN_RETENTION_SECONDS = 3600.0
MAX_RETENTION_SECONDS = 100 * 365.25 * 86400
"""So long is for ever: nothing is deleted."""

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def seconds(value: Duration) -> float:
    """`value` as seconds. Raises TypeError for anything but a number or a timedelta, ValueError for NaN."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a duration is a timedelta or a number of seconds, not {value!r}")
    if value != value:
        raise ValueError("a duration cannot be NaN")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Chosen once, at `init`, for the life of the cluster; the same on all nodes."""

    page_size: int = 4096
    """SQLite's page size in bytes, a power of two from 512 to 65536."""

    compression: Compression = "zstd"
    """How the objects of the log are stored. "none" saves CPU and costs storage and transfer."""

    foreign_keys: bool = False
    """Whether foreign keys are enforced (SQLite's `PRAGMA foreign_keys`, which is off by default there too)."""

    def __post_init__(self) -> None:
        if self.page_size not in PAGE_SIZES:
            raise ValueError(f"page_size must be one of {PAGE_SIZES}, not {self.page_size!r}")
        if self.compression not in ("zstd", "none"):
            raise ValueError(f'compression must be "zstd" or "none", not {self.compression!r}')


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What this node does; nodes of one cluster may differ, but should agree on the time-outs."""

    directory: Path | None = None
    """Where the local copy lies. None makes a temporary directory that goes with the node. A given directory
    is kept and makes the next join faster; it is a cache and may be deleted while no node uses it."""

    epoch_interval: Duration = 1.0
    """Seconds between epochs on average; bounds the cost of writing: one PUT per interval is $13 a month at
    1 s on S3 Standard. 0 means no pacing: an epoch starts as soon as the previous one is durable."""

    epoch_burst: int = 10
    """So many epochs may follow each other without pacing after a quiet time."""

    leader_timeout: Duration = 20.0
    """Seconds without a sign of life of the leader after which a standby takes over. An idle leader gives one
    every third of it (one small PUT: $2 a month at 20 s on S3 Standard)."""

    suspect_timeout: Duration = 1.5
    """Seconds without a word from the leader, on a connection that was open before, after which a standby asks it again
    and asks the others; when nobody reaches it, the standby takes over. At least 1. Shorter means that a leader whose
    event loop or machine stands still for a moment is replaced needlessly, which costs no data. `float("inf")` is
    never: then `leader_timeout` alone decides."""

    poll_interval: Duration = 1.0
    """Seconds between two looks of a follower at the store for the next epoch, while there is none. One GET
    per interval is $1 a month at 1 s on S3 Standard, for each follower."""

    member_timeout: Duration = 10.0
    """Seconds without a sign of life after which a member is taken off the list."""

    tls: Literal["on", "off"] = "on"
    """Whether nodes talk over mutually authenticated TLS. "off" is for tests and debugging: everybody who reaches
    the port is trusted; only loopback addresses are served, unless `insecure` is set too."""

    insecure: bool = False
    """Allow `tls="off"` on addresses that other machines reach."""

    tls_certificate: Path | bytes | None = field(default=None, repr=False)
    """The node's own certificate instead of one by the cluster's authority: a PEM file, or what would be in it, with
    the certificates between it and its authority. It must name the address at which others reach the node, and be for
    servers and clients. Goes with `tls_private_key` and `tls_authorities`, on all nodes. Files that change are taken
    up while the node runs."""

    tls_private_key: Path | bytes | None = field(default=None, repr=False)
    """The key of `tls_certificate`, not encrypted: RSA, or EC on the curve P-256 or P-384."""

    tls_authorities: Path | bytes | None = field(default=None, repr=False)
    """The authorities of `tls_certificate`: whoever has a certificate by one of them is a member."""

    clients: Literal["members", "anyone"] = "members"
    """Who may talk to the application's `app` and `leader_app`: only members of the cluster, by certificate, or
    anyone who reaches the port (over TLS still). The library's own routes are for members in either case."""

    fence_validity: Duration = 60.0
    """Seconds for which a known position in the log proves that an absent next epoch means the head. Must
    stay far below the shortest retention (1 hour)."""

    write_timeout: Duration = 30.0
    """Seconds a write waits, in the queue and for durability, before `await` gives up on it."""

    transaction_timeout: Duration = 10.0
    """Seconds one transaction may run on the leader; it holds up all others meanwhile."""

    read_timeout: Duration = 30.0
    """Seconds an awaited read may take, waiting for its consistency level included."""

    max_read_age: Duration = 60.0
    """Seconds a read may hold its snapshot. An older one is ended: it would keep the local WAL growing."""

    max_epoch_bytes: int = 64 << 20
    """Size of an epoch (uncompressed pages) above which a transaction is refused with `EpochTooLarge`."""

    max_queued_writes: int = 20_000
    """Writes that may wait on the leader until they are sent to the store, and on each other node for the leader; one
    more is refused with `Overloaded`. Divided by the writes per second that the leader manages, the longest wait."""

    max_queued_bytes: int = 256 << 20
    """Size of the statements and parameters of the writes that may wait, in the same places; what would exceed it is
    refused with `Overloaded`, unless it would wait alone. What transaction functions hold is not known, nor counted."""

    snapshot_growth: float = 1.0
    """A snapshot is made when the log since the last one is larger than this times the snapshot, and at
    least 1 MiB. Smaller means faster joins and more uploads."""

    snapshot_epochs: int = 10_000
    """A snapshot is made at the latest after so many epochs. Since small epochs are merged, a join then fetches at most
    a few hundred objects, and lists one row for each epoch."""

    snapshot_age: Duration = 86400.0
    """Seconds after the first epoch since the last snapshot after which one is made, however little was written: at
    most one upload of the compressed database in that time. `float("inf")` leaves it to growth and number, and to
    `retention`, which needs one every quarter of itself."""

    retention: Duration = 7 * 86400.0
    """Seconds for which any point in time stays restorable, at least 3600; older epochs and snapshots are deleted by
    whoever leads, by its own setting. 100 years or more (`float("inf")`): nothing is. Costs the storage of all that
    was written in that time, and a tenth more, as it is deleted now and then."""

    readers: int = 4
    """Threads, with one connection each, that serve awaited reads; for each former state in use as many more."""

    past_cache_bytes: int = 1 << 30
    """Bytes of local disk for the former states of the database that `node.at` restores. The least recently used
    ones go first; when those in use leave no room for another one, that is an error."""

    shutdown_timeout: Duration = 10.0
    """Seconds a leader takes at most to finish its writes and release the leadership when it stops."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value: Any = getattr(self, each.name)
            if "Duration" in str(each.type):
                try:
                    object.__setattr__(self, each.name, seconds(value))
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{each.name}: {error}") from None
                if getattr(self, each.name) < 0:
                    raise ValueError(f"{each.name} cannot be negative")
            elif each.type in ("int", "float") and (isinstance(value, bool) or value <= 0):
                raise ValueError(f"{each.name} must be positive, not {value!r}")
        if self.tls not in ("on", "off"):
            raise ValueError(f'tls must be "on" or "off", not {self.tls!r}')
        if self.clients not in ("members", "anyone"):
            raise ValueError(f'clients must be "members" or "anyone", not {self.clients!r}')
        if self.directory is not None:
            object.__setattr__(self, "directory", Path(self.directory))
        self._check_own_certificate()
        for name in ("leader_timeout", "poll_interval", "fence_validity", "snapshot_age"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be positive")
        if seconds(self.suspect_timeout) < MIN_SUSPECT_TIMEOUT_SECONDS:
            raise ValueError(
                f"suspect_timeout must be at least {MIN_SUSPECT_TIMEOUT_SECONDS:g} s, as a leader is heard every half"
                f" second, not {self.suspect_timeout!r} s"
            )
        if seconds(self.fence_validity) > MAX_FENCE_VALIDITY_SECONDS:
            raise ValueError("fence_validity must stay below half of the shortest retention (1800 s)")
        if seconds(self.retention) < MIN_RETENTION_SECONDS:
            raise ValueError(f"retention must be at least 1 hour (3600 s), not {self.retention!r} s")

    def _check_own_certificate(self) -> None:
        names = ("tls_certificate", "tls_private_key", "tls_authorities")
        for name in names:
            value: Any = getattr(self, name)
            if isinstance(value, str):
                # Never quoted: somebody may have given a key where a file is wanted.
                if "\n" in value:
                    raise ValueError(f"{name} is a path, or bytes; a PEM text has to be encoded")
                object.__setattr__(self, name, Path(value))
            elif value is not None and not isinstance(value, Path | bytes):
                raise TypeError(f"{name} is a path, or bytes, not {type(value).__name__}")
        given = [name for name in names if getattr(self, name) is not None]
        if given and len(given) < len(names):
            raise ValueError(f"{', '.join(names)} go together; given: {', '.join(given)}")
        if given and self.tls == "off":
            raise ValueError(f'{given[0]} is of no use with tls="off"')
