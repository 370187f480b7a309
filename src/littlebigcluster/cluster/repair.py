"""Where the log is so damaged that nobody can join any more: what is wrong, what can be done, and doing it.

Nothing of the log is deleted or altered: whoever slept must find every epoch that there ever was. A leader that is
alive has the newest state and makes a snapshot, from which joins go on. When there is none, the log itself goes on,
with the newest state that can be restored (`cluster/repairing.py`). A record tells of it for good.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import repairing
from littlebigcluster.cluster.identifying import Identified, has_foreign_keys, identify, write_identity
from littlebigcluster.cluster.outside import ask
from littlebigcluster.cluster.service import LEADS_PATH
from littlebigcluster.cluster.snapshotting import SNAPSHOT_PATH
from littlebigcluster.cluster.verify import Check, Finding, read_beacon
from littlebigcluster.epochs import Beacon, Identity, Leader, epoch_of, names, retained
from littlebigcluster.epochs.pins import REPAIR, pinned
from littlebigcluster.errors import CorruptLog, LbcError, NotLeader, NotRetained, PeerUnavailable, RequestTimeout
from littlebigcluster.roles import OnBytes, restore
from littlebigcluster.settings import NodeSettings, seconds
from littlebigcluster.store import Store
from littlebigcluster.temporary import temporary_directory
from littlebigcluster.threads import in_thread

Action = Literal["nothing", "record", "snapshot", "go back", "authority", "identity"]
"""What helps. "record": the log leads on past all damage, which is written down. "snapshot": the leader makes one. "go
back": the log goes on with the newest state that can be restored. "authority": a damaged certificate authority makes
way for a new one; what else there is comes after it. "identity": `cluster.json` is written anew, before all else."""

_QUESTION = (
    f"whether foreign keys are enforced stood in {names.CLUSTER} alone, and tables may have some: say it, with"
    " `foreign_keys` or `lbc repair --foreign-keys`"
)
_LOOK_SECONDS = 0.5
_ROUNDS = 6
_SNAPSHOT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What `repair` has found, and done if it was told to."""

    findings: list[Finding]
    """What is wrong, and was not repaired before."""
    obstacle: str
    """Why nobody can join; empty if everybody can."""
    head: int
    """The newest epoch there is, damaged or not."""
    newest: int | None
    """The newest epoch whose state can be restored from the store."""
    leader: Leader | None
    """Who leads and answers, if that was asked."""
    action: Action
    lost: list[tuple[int, int]]
    """From which to which epoch none can be restored, as far as no earlier repair has told of it."""
    epoch: int | None = None
    """Where the log goes on, when something was done."""
    identity: Identity | None = None
    """What `cluster.json` must be, where it is not."""
    question: str = ""
    """What must be said first, since nothing else tells it."""


async def repair(
    store: Store,
    *,
    act: bool,
    settings: NodeSettings,
    expected_id: str | None,
    foreign_keys: bool | None,
    clock: Clock,
    on_bytes: OnBytes = lambda done, total: None,
) -> Repaired:
    """See `Cluster.repair`."""
    done: Repaired | None = None
    for _ in range(_ROUNDS):
        who = await identify(store, expected_id)
        async with AsyncExitStack() as stack:
            if act:  # retention leaves alone what is looked at, and built upon
                marker = names.parse_marker(await store.get(names.LAST_RETAINED)) or 0
                await stack.enter_async_context(pinned(store, marker, purpose=REPAIR, clock=clock))
            state = await _look(store, who, foreign_keys, settings, clock=clock, on_bytes=on_bytes)
            found = state.found
            if not act or (found.action == "nothing" and done is None):
                return found
            if found.action == "nothing":
                assert done is not None
                return done
            acted = await _act(state, settings, clock=clock)
            done = done or acted
    raise LbcError(
        f"the repair of {store.url} comes to no end: somebody writes there, or damages it; look who that is, and repeat"
        f" ({state.found.obstacle or state.found.findings[0].object})"
    )


@dataclass(frozen=True, slots=True)
class _State:
    store: Store
    identity: Identity
    check: Check
    beacon: Beacon | None
    found: Repaired

    @property
    def suspect(self) -> Leader | None:
        """Who leads, as far as the log can be read."""
        return self.check.newest.leader if self.check.newest else None


async def _look(
    store: Store,
    who: Identified,
    foreign_keys: bool | None,
    settings: NodeSettings,
    *,
    clock: Clock,
    on_bytes: OnBytes,
) -> _State:
    identity = who.as_said(foreign_keys) if who.finding else who.identity
    authorities = await repairing.damaged_authorities(store)
    beacon = await read_beacon(store, identity)
    log = await retained(store)
    total = sum(info.size_bytes for info in log.snapshots + log.epochs + log.merged)
    check = Check(store, identity, log, beacon, clock=clock, count=_counter(on_bytes, total))
    await check.strangers()
    await check.epochs()
    await check.merged.hashes()
    async with temporary_directory() as directory:
        await check.snapshots(directory, integrity_of_all=False)
        too_new = check.too_new or check.merged.too_new
        if too_new is not None:
            raise too_new
        obstacle, related = await _obstacle(store, identity, directory, clock=clock)
    findings = [each for each in check.findings() if names.parse(each.object) or names.parse_merged(each.object)]
    if obstacle is not None and all(names.parse_merged(each.object) for each in findings):  # what no hash shows
        check.bad_epochs[(names.parse(obstacle.object) or ("", log.head))[1]] = f"expected {obstacle.expected}"
        findings = check.findings()
    reached = check.restorable()
    newest = reached[-1][1] if reached else None
    leader = None
    if obstacle is not None and not authorities:
        leader = await _leader(store, check, settings, clock=clock)
    if obstacle is not None and leader is None and newest is None:
        raise NotRetained(
            f"no snapshot of {store.url} is sound, so there is nothing to go on from; nothing was done. Put objects"
            f" back from a versioned bucket, or from another copy of it ({obstacle})"
        )
    lost_identity = [who.finding] if who.finding else []
    undecided = who.finding is not None and related and foreign_keys is None and who.foreign_keys is None
    found = Repaired(
        findings=[*lost_identity, *authorities, *findings],
        obstacle=str(obstacle or "") or "".join(f"{each.object}: {each.problem}" for each in lost_identity),
        head=log.head,
        newest=newest,
        leader=leader,
        action="identity"
        if who.finding
        else _action(obstacle is not None, bool(findings), bool(authorities), leader, newest, log.head),
        lost=repairing.gaps(check.first, log.head, reached, check.given_up()),
        identity=identity if who.finding else None,
        question=_QUESTION if undecided else "",
    )
    return _State(store, identity, check, beacon, found)


def _action(
    obstacle: bool, damaged: bool, authorities: bool, leader: Leader | None, newest: int | None, head: int
) -> Action:
    if authorities:
        return "authority"
    if not obstacle:
        return "record" if damaged else "nothing"
    if leader is not None:
        return "snapshot"
    # When all of the log can be restored, it is a damaged snapshot that is in the way.
    return "record" if newest == head else "go back"


def _counter(on_bytes: OnBytes, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_bytes(done, total)

    return count


async def _obstacle(
    store: Store, identity: Identity, directory: Path, *, clock: Clock
) -> tuple[CorruptLog | None, bool]:
    """Why nobody can join: tried, as a node does it; and whether tables may have foreign keys."""
    try:
        restored = await restore(store, identity, directory, clock=clock, afresh=True)
    except CorruptLog as error:
        return error, True
    try:
        return None, await in_thread(has_foreign_keys, restored.replica)
    finally:
        await in_thread(restored.replica.close)


async def _leader(store: Store, check: Check, settings: NodeSettings, *, clock: Clock) -> Leader | None:
    """Who leads, if that node says so itself."""
    leader = check.newest.leader if check.newest else None
    if leader is None or not leader.address:
        return None
    try:
        await ask(store, leader, "GET", LEADS_PATH, settings=settings, clock=clock)
    except (PeerUnavailable, RequestTimeout, NotLeader):
        return None
    return leader


async def _act(state: _State, settings: NodeSettings, *, clock: Clock) -> Repaired | None:
    """One step; None when there was none to make, because something has changed meanwhile."""
    store, found, damaged = state.store, state.found, state.check.damaged_beside_epochs()
    if found.action == "identity":
        assert found.identity is not None
        if found.question:
            raise LbcError(f"nothing was done: {found.question}")
        await write_identity(store, found.identity, clock=clock)
        return _with_epoch(found, found.head)
    if found.action == "authority":
        await repairing.replace_authorities(store, state.identity, clock=clock)
        return _with_epoch(found, found.head)
    if found.action == "go back":
        if await _somebody_lives(state, settings, clock=clock):
            return None
        # First what stands in the way of those who come, then the epoch that they go on from.
        await repairing.set_aside(store, damaged)
        epoch = await repairing.go_back(
            store, state.identity, state.check, head=found.head, beacon=state.beacon, clock=clock
        )
        return _with_epoch(found, epoch)
    if found.action == "snapshot":
        assert found.leader is not None
        await repairing.set_aside(store, damaged)
        answer = await ask(
            store, found.leader, "POST", SNAPSHOT_PATH, {"here": True},
            settings=settings,
            timeout=_SNAPSHOT_SECONDS,
            clock=clock,
        )  # fmt: skip
        return _with_epoch(found, int(answer["epoch"]))
    epoch = await _record(state, clock=clock)
    await repairing.set_aside(store, damaged)
    return _with_epoch(found, epoch)


def _with_epoch(found: Repaired, epoch: int) -> Repaired:
    return Repaired(**{name: getattr(found, name) for name in Repaired.__slots__ if name != "epoch"}, epoch=epoch)


async def _record(state: _State, *, clock: Clock) -> int:
    """Write down what is damaged, by the snapshot behind it from which everything goes on; the last of these."""
    groups: dict[int, dict[str, str]] = defaultdict(dict)
    before = -1
    sound = state.check.sound_snapshots()
    for finding in state.found.findings:
        parsed = names.parse(finding.object)
        if parsed is None:
            continue  # merged epochs: without them nothing is lost
        behind = next((epoch for epoch in sound if epoch >= parsed[1]), state.found.head)
        groups[behind][finding.object] = finding.problem
    for behind, damaged in sorted(groups.items()):
        # Merged epochs may lead on from the middle of what lies before it.
        lost, before = [span for span in state.found.lost if before < span[0] < behind], behind
        await repairing.tell(state.store, state.identity, behind, None, damaged, lost, clock=clock)
    return max(groups, default=state.found.head)


async def _somebody_lives(state: _State, settings: NodeSettings, *, clock: Clock) -> bool:
    """Whether the log has grown; after a time in which any standby would have taken over, and any leader shown itself.

    Raises PeerUnavailable when a leader lives that does not answer here.
    """
    store, head = state.store, state.found.head
    timeout = seconds(settings.leader_timeout)
    pause, waited, looked_at = min(_LOOK_SECONDS, timeout / 4), 0.0, clock.monotonic()
    while True:
        listed = await store.list(names.LOG_PREFIX, start_after=names.wal(head))
        if any(epoch_of(info) > head for info in listed):
            return True
        beacon = await read_beacon(store, state.identity)
        if beacon is not None and beacon != state.beacon:
            raise PeerUnavailable(
                f"a leader lives, of term {beacon.term}, and cannot be asked from here"
                f" ({state.suspect.address if state.suspect else 'its address is not known'}); nothing was done. It has"
                " the newest state: run this where it can be reached, or stop it first and lose what is damaged",
                sent=False,
            )
        if waited >= 2 * timeout:
            return False
        await asyncio.sleep(pause)
        # Silence counts only while somebody listens: if this process stood still, so did the leader, perhaps.
        now = clock.monotonic()
        waited, looked_at = waited + min(now - looked_at, 2 * pause), now
