"""What a cluster needs of a store: each promise with its trial, what it means when it is broken, and what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from . import consistency, listing, objects, surroundings
from .bench import Bench


@dataclass(frozen=True, slots=True)
class Promise:
    """`trial` returns what was seen; raises Broken, Doubtful, NotTried, or StoreUnavailable."""

    name: str
    trial: Callable[[Bench], Awaitable[str]]
    meaning: str
    advice: str


TWO_LEADERS = (
    "Two nodes could lead at once, and acknowledged writes would be lost. `init` and `join` refuse such a store."
)
CONDITIONS = (
    "Do not use it. Use a store that implements `If-None-Match: *` atomically; a proxy or an old version in front of "
    "one may be what drops the condition."
)
NO_CACHE = "Take away the cache, the replica or the gateway between; ask the store's maker for read-after-write."

PROMISES = (
    Promise(
        "create",
        consistency.creates,
        "Nothing can be written: no cluster can be made.",
        "Look at the credentials, their rights on the prefix, and whether the bucket exists.",
    ),
    Promise("refused create", consistency.refused_creates, TWO_LEADERS, CONDITIONS),
    Promise("concurrent creates", consistency.concurrent_creates, TWO_LEADERS, CONDITIONS),
    Promise(
        "new objects are read",
        consistency.new_objects_are_read,
        "A node could take an old epoch for the newest: strong reads would be wrong, a standby claim in vain.",
        NO_CACHE,
    ),
    Promise(
        "overwrites are read",
        consistency.overwrites_are_read,
        "A node that slept could miss that old epochs were deleted, and lead from a past state.",
        NO_CACHE,
    ),
    Promise(
        "objects are whole",
        consistency.objects_are_whole,
        "Markers and snapshots would look damaged now and then.",
        NO_CACHE,
    ),
    Promise(
        "lists",
        listing.lists,
        "A node that has lost its place in the log could find the wrong one. If only deleted objects stay listed: "
        "retention looks at them again, no more.",
        NO_CACHE,
    ),
    Promise(
        "long lists",
        listing.long_lists,
        "Joining, restoring and retention would overlook epochs.",
        "Look for a limit of the server, or of a proxy.",
    ),
    Promise(
        "delete",
        listing.deletes,
        "Retention could not delete, or would stop at what is gone already. If deleted objects stay readable for a "
        "moment: no harm.",
        "Look at the rights, versioning and locks of the bucket: deleting below the prefix must be allowed.",
    ),
    Promise(
        "ranges",
        objects.ranges,
        "`lbc log`, `verify` and retention could not read the metadata of objects.",
        "Look for a proxy that drops `Range`, or answers it with the whole object.",
    ),
    Promise(
        "large objects",
        objects.large_objects,
        "Large transactions, and snapshots of more than 8 MiB, would fail or be damaged.",
        "Look for a limit of the size of requests, of the server or of a proxy, and for multipart uploads.",
    ),
    Promise(
        "uploads in parts",
        objects.uploads_in_parts,
        "A node could join from half a snapshot; its checksum would give it away.",
        "Ask the store's maker for multipart uploads that are visible only when complete.",
    ),
    Promise(
        "absent objects",
        surroundings.absent_objects,
        "An absent epoch could not be told from a store that fails.",
        "Look at the rights: without the right to list, S3 answers 403 for what is absent.",
    ),
    Promise(
        "absent bucket",
        surroundings.absent_bucket,
        "A wrong name would look like an empty store or like an outage that passes.",
        "None is needed; take care with names.",
    ),
    Promise(
        "refused credentials",
        surroundings.refused_credentials,
        "Whoever reaches the store can read the cluster's authority and be a member, or it looks like an outage.",
        "For anything but tests, make the store ask for credentials, and the bucket private.",
    ),
    Promise(
        "dates",
        surroundings.dates,
        "Safety needs no clocks. Retention goes by the store's dates among themselves; points given as times, and the "
        "certificates of nodes (from a day apart on), go by the clocks of nodes.",
        "Set the clocks, of this machine and of the store's.",
    ),
    Promise(
        "latency",
        surroundings.latencies,
        "A durable write takes one PUT, a join some GETs and a LIST; a p99 of seconds delays failover and writes.",
        "Use a store that is closer, and `leader_timeout` of at least ten times that p99.",
    ),
)
