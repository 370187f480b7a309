"""A cluster by its place in an object store: initialize it, join it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import changes, inspect, moving, past
from littlebigcluster.cluster.certificates import Rotation, rotate_authority
from littlebigcluster.cluster.description import Description, check_roles
from littlebigcluster.cluster.initialize import check_id, initialize
from littlebigcluster.cluster.inspect import LogEntry, State, Status
from littlebigcluster.cluster.join import Join
from littlebigcluster.cluster.outside import TIMEOUT_SECONDS, ask_leader
from littlebigcluster.cluster.repair import Repaired, repair
from littlebigcluster.cluster.touching import with_tables
from littlebigcluster.cluster.verify import Verified, verify
from littlebigcluster.database import Done
from littlebigcluster.epochs import Metadata, Point, read_identity
from littlebigcluster.net import ASGIApp
from littlebigcluster.settings import ClusterSettings, Duration, NodeSettings, seconds
from littlebigcluster.store import Location, Store, open_store

F = TypeVar("F", bound=Callable[..., Any])


class Cluster:
    """A cluster at `location`: "s3://bucket/prefix", "gs://", "az://", "file:///path", a path, "memory://", an
    obstore store, or a `littlebigcluster.store.Store`.

    With `id` every call refuses a place that holds another cluster (WrongCluster). Bad arguments raise ValueError
    or TypeError here; nothing is read or written yet.
    """

    def __init__(
        self,
        location: Location | Store,
        *,
        id: str | None = None,
        clock: Clock | None = None,
        store_timeout: Duration = 10.0,
    ) -> None:
        self._clock = clock or Clock()
        self._id = None if id is None else check_id(id)
        self._procedures: dict[str, Callable[..., Any]] = {}
        if isinstance(location, Store):
            self._store: Store = location
        else:
            self._store = open_store(location, timeout_seconds=seconds(store_timeout), clock=self._clock)

    def __repr__(self) -> str:
        return f"Cluster({self._store.url!r})"

    @property
    def store(self) -> Store:
        """The object store, `.lbc/` included. A node's `store` keeps applications out of that."""
        return self._store

    async def init(self, id: str | None = None, *, settings: ClusterSettings | None = None) -> str:
        """Make a new cluster here, after a probe that the store is safe; returns its id (made up if not given).

        Raises AlreadyInitialized, UnsafeStore, StoreUnavailable.
        """
        cluster_id = self._id if id is None else check_id(id)
        identity = await initialize(self._store, cluster_id, _checked(settings), clock=self._clock)
        return identity.cluster_id

    def join(
        self,
        *,
        az: str = "",
        can_lead: bool = False,
        leader_priority: int = 0,
        roles: Iterable[str] = (),
        address: str | None = None,
        advertise: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        app: ASGIApp | None = None,
        leader_app: ASGIApp | None = None,
        settings: NodeSettings | None = None,
    ) -> Join:
        """Become a member for the time of an `async with`, which gives the `Node`.

        A node that `can_lead` claims the leadership when nobody holds it; of several the one with the highest
        `leader_priority` goes first, then one of another zone than the last leader's. `az` names its availability zone;
        `roles` and `metadata` (JSON, 4 KiB) are for other members to see. It listens on `address`, "host:port"
        (default: the environment's LBC_ADDRESS, else an address that others can reach, and any free port), and tells
        others to reach it at `advertise`, if that differs. `app` is an ASGI application that every node serves;
        `leader_app` only the leader (below /leader when there is an `app` too); elsewhere it answers 503 and who leads.

        Entering raises NotInitialized, WrongCluster, UnsafeStore, StoreUnavailable, CorruptLog, FormatTooNew,
        DirectoryInUse, OSError when the address is taken, sqlite3.Error or OSError when the disk fails or is full,
        ValueError for an own certificate that cannot be used.
        """
        if settings is not None and not isinstance(settings, NodeSettings):
            raise TypeError(f"the settings of a node are NodeSettings, not {settings!r}")
        description = Description(
            az=az,
            can_lead=can_lead,
            leader_priority=leader_priority,
            roles=check_roles(roles),
            address=address,
            advertise=advertise,
            metadata=metadata or {},
            app=app,
            leader_app=leader_app,
        )
        return Join(self._store, self._id, settings or NodeSettings(), description, self._procedures, clock=self._clock)

    def procedure(self, function: F) -> F:
        """Decorator: register `function(db, **arguments)` under its name, for `node.call` from any node.

        It runs as a transaction on the leader: register it where nodes can lead. Raises ValueError for a taken name.
        """
        name = function.__name__
        if self._procedures.setdefault(name, function) is not function:
            raise ValueError(f"there is a procedure {name!r} already")
        return function

    async def status(self) -> Status:
        """What the objects in the store say about the cluster, without joining it.

        Raises NotInitialized, WrongCluster, CorruptLog, FormatTooNew, StoreUnavailable.
        """
        return await inspect.status(self._store, expected_id=self._id)

    def history(
        self, *, limit: int | None = None, since: Point | None = None, follow: bool = False, tables: bool = False
    ) -> AsyncGenerator[LogEntry, None]:
        """The last `limit` epochs of the log without their content, or all that are retained; the newest last. `since`
        (see `at`) leaves out what is older, and with `follow` those to come follow, for ever.

        With `tables` each tells which tables it touched. That restores the state before the first one to a temporary
        place, reads it once, and reads the epochs whole: close the iterator (`aclosing`) when not read to its end.
        Raises what `status` raises; NotRetained when `since` is still to come; OSError.
        """
        entries = inspect.history(
            self._store, limit=limit, since=since, follow=follow, expected_id=self._id, clock=self._clock
        )
        return with_tables(self._store, entries, expected_id=self._id, clock=self._clock) if tables else entries

    def head(self) -> AbstractAsyncContextManager[State]:
        """`async with cluster.head() as head` restores the newest state to a temporary place, to be read there
        without joining. Raises what `status` raises."""
        return inspect.head(self._store, expected_id=self._id, clock=self._clock)

    def at(self, point: Point) -> AbstractAsyncContextManager[State]:
        """`async with cluster.at(point) as state` restores the state of then to a temporary place, to be read there.

        A point is an epoch, a datetime with a time zone, or a timedelta: so long ago. Raises NotRetained, and what
        `status` raises.
        """
        return past.at(self._store, point, expected_id=self._id, clock=self._clock)

    async def restore(
        self,
        path: Path | str,
        point: Point | None = None,
        *,
        overwrite: bool = False,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> Metadata:
        """Write the database as it was at `point` (see `at`; None: as it is now) to a file, whole or not at all.

        Every hash on the way and the state checksum of the result are checked. It is the database with all that is in
        it, the library's own tables too, and in WAL mode. `on_bytes` is told how many bytes of the log have been
        read, and of how many. Returns the metadata of that epoch. Raises NotRetained, FileExistsError, OSError, and
        what `status` raises.
        """
        return await past.restore_file(
            self._store,
            Path(path),
            point,
            overwrite=overwrite,
            expected_id=self._id,
            clock=self._clock,
            on_bytes=on_bytes,
        )

    async def verify(
        self, *, deep: bool = False, on_bytes: Callable[[int, int], None] = lambda done, total: None
    ) -> Verified:
        """Read everything that is retained and check it: hashes, chain, the state of each snapshot; `deep` replays
        every epoch, too. Changes nothing; a living cluster may go on. Raises what `status` raises, and OSError.
        """
        return await verify(self._store, deep=deep, expected_id=self._id, clock=self._clock, on_bytes=on_bytes)

    async def repair(
        self,
        *,
        act: bool = False,
        settings: NodeSettings | None = None,
        foreign_keys: bool | None = None,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> Repaired:
        """Look what is damaged, and whether nodes can still join; with `act`, see to it that they can.

        A leader that is alive makes a snapshot, and nothing is lost but the way to some former states. If nobody leads,
        which takes twice the `leader_timeout` of `settings` to see, the log goes on with the newest state that can be
        restored, as a new epoch. Damaged epochs stay where they are, damaged snapshots are moved to `.lbc/aside/`, and
        a record in `.lbc/repairs/` tells of it. May be repeated.

        A `cluster.json` that is missing, damaged or of another cluster is written as the log tells it. Only whether
        foreign keys are enforced may have to be said, by `foreign_keys`; it does not count while the object is sound.

        Raises NotRetained when nothing can be restored, Fenced when another one was faster, PeerUnavailable for a
        leader that lives and cannot be asked, OutcomeUnknown, LbcError when the leader refuses or `foreign_keys` must
        be said, OSError, and what `status` raises.
        """
        return await repair(
            self._store,
            act=act,
            settings=settings or NodeSettings(),
            expected_id=self._id,
            foreign_keys=foreign_keys,
            clock=self._clock,
            on_bytes=on_bytes,
        )

    async def rollback(self, point: Point, *, settings: NodeSettings | None = None) -> Done[int]:
        """Make the database what it was at `point`, as one new epoch; see `Node.rollback`.

        Joins for that; whoever leads does it, and when nobody does, this process. Raises what `join` and
        `Node.rollback` raise.
        """
        async with self.join(can_lead=True, settings=settings) as node:
            return await node.rollback(point)

    def diff(
        self, from_: Point, to: Point | None = None, *, table: str | None = None
    ) -> AbstractAsyncContextManager[changes.Changes]:
        """`async with cluster.diff(from_, to) as changes` restores two points (see `at`; None: now) to temporary places
        and tells what changed between them: in the schema, in which tables how many rows, and which rows.

        With `table` in nothing but that one. Raises ValueError when neither has it, and what `at` raises.
        """
        return changes.between(self._store, from_, to, table=table, expected_id=self._id, clock=self._clock)

    async def export(
        self,
        path: Path | str,
        point: Point | None = None,
        *,
        overwrite: bool = False,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> Metadata:
        """Like `restore`, but the file is the application's alone: without the library's tables, and not in WAL mode,
        a single file that every tool opens. Its integrity is checked; ValueError if that fails."""
        return await moving.export_file(
            self._store,
            Path(path),
            point,
            overwrite=overwrite,
            expected_id=self._id,
            clock=self._clock,
            on_bytes=on_bytes,
        )

    async def import_file(
        self,
        path: Path | str,
        id: str | None = None,
        *,
        settings: ClusterSettings | None = None,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> str:
        """Make a new cluster here, like `init`, that begins with a copy of the SQLite file at `path`, as of one moment.

        The file is only read; another process may be writing to it. The copy is checked, and gets the page size of the
        settings. Returns the cluster's id. `on_bytes` is told how many bytes have been moved, and of how many: the
        upload, and reading it back.

        Raises AlreadyInitialized (also for an import that was broken off; the message says what to delete),
        UnsafeStore, StoreUnavailable; FileNotFoundError, OSError; ValueError for a file that can be no cluster's
        database: not SQLite, encrypted, damaged, with a schema that this SQLite cannot use, or with violated foreign
        keys if they are to be enforced; NotAllowed for names that begin with _lbc; sqlite3.OperationalError when the
        file is locked.
        """
        cluster_id = self._id if id is None else check_id(id)
        chosen = _checked(settings)
        made = await moving.import_file(
            self._store, Path(path), cluster_id, chosen, clock=self._clock, on_bytes=on_bytes
        )
        return made.cluster_id

    async def clone(
        self,
        to: Cluster | Location | Store,
        point: Point | None = None,
        *,
        id: str | None = None,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[str, Metadata]:
        """Make a new cluster elsewhere, with an id and a certificate authority of its own, that begins with this one's
        database as it was at `point` (see `at`; None: as it is now), and has the same settings. The application's
        objects in the store are not copied. This cluster is only read. `on_bytes` is told of the reading, as by
        `restore`, and then of the upload, as by `import_file`. Returns the id of the new one, and the metadata of the
        epoch that it begins with.

        Raises what `restore` raises here and `import_file` there, and ValueError for an `id` that is this cluster's.
        """
        target = to if isinstance(to, Cluster) else Cluster(to, clock=self._clock)
        cluster_id = target._id if id is None else check_id(id)
        identity, metadata = await moving.clone(
            self._store,
            target._store,
            point,
            cluster_id,
            expected_id=self._id,
            clock=self._clock,
            on_bytes=on_bytes,
        )
        return identity.cluster_id, metadata

    async def ask_leader(
        self,
        method: str,
        path: str,
        value: Any = None,
        *,
        settings: NodeSettings | None = None,
        timeout: Duration = TIMEOUT_SECONDS,
    ) -> Any:
        """The JSON that the present leader answers to a request, without joining: "GET", "/.lbc/status" for example.

        `settings` are needed where nodes run with `tls="off"` or certificates of their own, and say the same.

        Raises NotLeader when nobody leads, PeerUnavailable, RequestTimeout, LbcError when it refuses, ValueError for an
        own certificate that cannot be used; and what `status` raises.
        """
        return await ask_leader(
            self._store, method, path, value,
            expected_id=self._id,
            settings=settings or NodeSettings(),
            timeout=seconds(timeout),
            clock=self._clock,
        )  # fmt: skip

    async def rotate_authority(self, *, at_once: bool = False) -> Rotation:
        """Change the cluster's certificate authority while nodes run; returns when what happens. While one change is
        under way, that one is told of. `at_once` is for a key that has leaked (see docs/OPERATING.md).

        Raises NotInitialized, WrongCluster, CorruptLog, StoreUnavailable.
        """
        identity, _ = await read_identity(self._store, expected_id=self._id)
        return await rotate_authority(self._store, identity.cluster_id, at_once=at_once, clock=self._clock)


def _checked(settings: ClusterSettings | None) -> ClusterSettings:
    if settings is not None and not isinstance(settings, ClusterSettings):
        raise TypeError(f"the settings of a cluster are ClusterSettings, not {settings!r}")
    return settings or ClusterSettings()
