"""Retention: what is young or pinned stays restorable whatever happens, and what is old goes in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.clocks import HandClock
from tests.dated import Dated
from tests.dying import Dying
from tests.epochs.logs import START, epoch_object, log_at, position_of

from littlebigcluster.clock import seeded
from littlebigcluster.database import StateChecksum, StateMismatch
from littlebigcluster.epochs import Appended, AtHead, Gone, Position, Repair, names
from littlebigcluster.epochs.pins import Pin, pinned
from littlebigcluster.errors import CorruptLog, LbcError, NotRetained, StoreUnavailable
from littlebigcluster.roles import retention as roles_retention
from littlebigcluster.roles.retention import STANDING_SECONDS, Retention, pass_interval
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Counting, Store
from littlebigcluster.store.wrappers import Operation, Wrapper
from littlebigcluster.watch import Watch

T = TypeVar("T")

HOUR, DAY = 3600.0, 86400.0
PAGE = 4096


def snapshot_object(at: Position) -> bytes:
    checksum = StateChecksum(PAGE)
    checksum.feed(content := at.epoch.to_bytes(8, "big") * (PAGE // 8))
    return epoch_object(
        at,
        content=content,
        kind="db",
        epoch=at.epoch,
        previous_sha256=at.sha256,
        state_checksum=f"{checksum.value:016x}",
    )


class World:
    """A log that grows, in a store whose clock is turned together with that of the machine."""

    def __init__(self, retention: float = DAY) -> None:
        self.store, self.clock, self.retention = Dated(), HandClock(), retention
        self.positions = [START]
        self.created = {0: self.store.now}
        self.epoch: Watch[int] = Watch(0)
        self.made_snapshots = 0

    @classmethod
    async def begin(cls, retention: float = DAY) -> World:
        world = cls(retention)
        await world.snapshot()
        return world

    async def copy(self) -> World:
        """Another one, of the same age, in which the same is written."""
        made = World(self.retention)
        made.store, made.clock.slept_seconds = await self.store.copy(), self.clock.slept_seconds
        made.positions, made.created = list(self.positions), dict(self.created)
        made.epoch._set(self.epoch.value)
        return made

    def pass_time(self, seconds: float) -> None:
        self.store.pass_time(seconds)
        self.clock.sleep_machine(seconds)

    async def write(self, count: int = 1, *, every: float = 0.0) -> None:
        for _ in range(count):
            self.pass_time(every)
            body = epoch_object(self.positions[-1])
            at = position_of(body, self.positions[-1].epoch + 1)
            await self.store.put(names.wal(at.epoch), body)
            self.positions.append(at)
            self.created[at.epoch] = self.store.now
            self.epoch._set(at.epoch)

    async def snapshot(self, epoch: int | None = None) -> None:
        at = self.positions[-1 if epoch is None else epoch]
        await self.store.put(names.snapshot(at.epoch), snapshot_object(at))

    async def _make_snapshot(self) -> None:
        self.made_snapshots += 1
        await self.snapshot()

    def leader(self, store: Store | None = None, retention: float | None = None) -> Retention:
        """What a leader runs that has just begun."""
        local: Any = SimpleNamespace(epoch=self.epoch, metadata=SimpleNamespace(page_size=PAGE), cluster_id="lol")
        return Retention(
            store or self.store, local, retention or self.retention, make_snapshot=self._make_snapshot, clock=self.clock
        )

    async def passes(self, leader: Retention, count: int = 3) -> None:
        for _ in range(count):
            self.pass_time(STANDING_SECONDS + 1)
            await leader.make_pass()

    async def names(self) -> list[str]:
        return [info.key for info in await self.store.list(names.LOG_PREFIX)]

    async def epochs(self, kind: str) -> list[int]:
        parsed = [names.parse(name) for name in await self.names()]
        return [found[1] for found in parsed if found is not None and found[0] == kind]

    async def marker(self) -> int:
        return names.parse_marker(await self.store.get(names.LAST_RETAINED)) or 0

    def needed(self, since: datetime) -> list[int]:
        """The epochs that were the newest one at some time since then."""
        ends = {epoch: self.created.get(epoch + 1) for epoch in self.created}
        return [epoch for epoch, end in ends.items() if end is None or end > since]

    async def check(self, needed: Iterable[int] | None = None, *, store: Store | None = None) -> None:
        """These epochs, or all within the retention, can be restored, by whoever respects the marker."""
        store = store or self.store
        present = {info.key for info in await store.list(names.LOG_PREFIX)}
        marker = names.parse_marker(await store.get(names.LAST_RETAINED)) or 0
        snapshots = [at.epoch for at in self.positions if names.snapshot(at.epoch) in present]
        if needed is None:
            needed = self.needed(self.store.now - timedelta(seconds=self.retention))
        for epoch in needed:
            base = max((number for number in snapshots if number <= epoch), default=None)
            assert base is not None, f"no snapshot to restore epoch {epoch} from"
            assert base >= marker, f"epoch {epoch} needs the snapshot of {base}, and all below {marker} may be gone"
            missing = [number for number in range(base + 1, epoch + 1) if names.wal(number) not in present]
            assert not missing, f"epoch {epoch} cannot be restored from {base}: {missing} are missing"


GROWN: dict[float, World] = {}
"""Each is made once, and copied for each test."""


async def grown(retention: float = DAY) -> World:
    """60 epochs in 60 hours, a snapshot every 6 hours."""
    if retention not in GROWN:
        GROWN[retention] = world = await World.begin(retention)
        for _ in range(10):
            await world.write(6, every=HOUR)
            await world.snapshot()
    return await GROWN[retention].copy()


async def test_what_is_older_goes_and_everything_within_stays() -> None:
    world = await grown()
    leader = world.leader()
    await world.passes(leader)
    # 24 hours before the end epoch 36 was the newest.
    assert await world.marker() == 36
    assert await world.epochs("wal") == list(range(36, 61))
    assert await world.epochs("db") == [36, 42, 48, 54, 60]
    await world.check()


async def test_the_marker_stands_for_long_before_anything_goes() -> None:
    world = await grown()
    before = await world.names()
    leader = world.leader()
    await leader.make_pass()
    assert await world.marker() == 0
    world.pass_time(STANDING_SECONDS)
    await leader.make_pass()
    assert await world.marker() == 36
    for _ in range(3):
        world.pass_time(STANDING_SECONDS / 4)
        await leader.make_pass()
        assert await world.names() == before
    world.pass_time(STANDING_SECONDS / 4)
    await leader.make_pass()
    assert (await world.epochs("wal"))[0] == 36


async def test_a_new_leader_waits_too() -> None:
    world = await grown()
    leader = world.leader()
    world.pass_time(STANDING_SECONDS)
    await leader.make_pass()
    before = await world.names()
    other = world.leader()
    world.pass_time(STANDING_SECONDS + 1)
    await other.make_pass()  # it cannot know for how long the marker has been there
    assert await world.names() == before
    await world.passes(other, 1)
    assert (await world.epochs("wal"))[0] == 36


async def test_without_a_snapshot_that_is_old_enough_nothing_goes() -> None:
    world = await World.begin()
    await world.write(48, every=HOUR)
    before = await world.names()
    leader = world.leader()
    await world.passes(leader)
    assert set(before) <= set(await world.names())
    assert await world.marker() == 0


async def test_a_leader_makes_a_snapshot_when_there_is_none_for_long() -> None:
    world = await World.begin()
    leader = world.leader()
    for hour in range(1, 25):
        await world.write(every=HOUR)
        await leader.make_pass()
        assert world.made_snapshots == hour // 6  # at most four in a day
    world.pass_time(10 * DAY)
    await world.passes(leader)
    assert world.made_snapshots == 4, "nothing was written since"
    assert await world.epochs("wal") == [24]
    await world.check()


@pytest.mark.parametrize("error", [CorruptLog("it", "what was sent"), StateMismatch("the local copy is damaged")])
async def test_a_snapshot_that_cannot_be_made_does_not_end_the_leadership(
    error: LbcError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = await World.begin()
    await world.write(10, every=DAY / 10)
    leader, tried = world.leader(), asyncio.Event()

    async def fail() -> None:
        tried.set()
        raise error

    monkeypatch.setattr(leader, "_make_snapshot", fail)
    monkeypatch.setattr(roles_retention, "FIRST_PASS_SECONDS", 0)
    running = asyncio.create_task(leader.run())
    async with asyncio.timeout(60):
        await tried.wait()
    await asyncio.wait([running], timeout=0.05)
    assert not running.done()
    assert "will try again" in caplog.text
    running.cancel()


async def test_no_clock_of_a_node_decides() -> None:
    """The leader's time of day is a month ahead, and its epochs are dated so; the store's clock says otherwise."""
    world = await World.begin()

    class Ahead(HandClock):
        def now(self) -> datetime:
            return super().now() + timedelta(days=30)

    world.clock = Ahead()
    for _ in range(6):
        await world.write(5)
        await world.snapshot()
    before = await world.names()
    leader = world.leader()
    for _ in range(5):
        world.clock.sleep_machine(STANDING_SECONDS + 1)
        await leader.make_pass()
    assert await world.names() == before
    assert await world.marker() == 0


async def test_a_clock_of_the_store_that_goes_back_deletes_nothing_more() -> None:
    world = await grown()
    leader = world.leader()
    await world.passes(leader)
    before = await world.names()
    world.store.pass_time(-20 * DAY)
    await world.write(3)
    await world.snapshot()
    await world.passes(leader)
    assert set(before) <= set(await world.names())
    assert await world.marker() == 36


async def test_idle_logs_shrink_to_the_newest_snapshot() -> None:
    world = await grown()
    await world.write(2)
    world.pass_time(30 * DAY)
    leader = world.leader()
    await world.passes(leader)
    assert await world.marker() in (60, 62)
    await world.passes(leader)
    await world.check()
    assert (await world.epochs("db"))[0] == await world.marker() == (await world.epochs("wal"))[0]


async def test_a_damaged_snapshot_is_not_relied_upon(caplog: pytest.LogCaptureFixture) -> None:
    world = await grown()
    body = await world.store.inner.get(names.snapshot(36)) or b""
    await world.store.inner.put(names.snapshot(36), body[:-9] + b"\0" + body[-8:])
    await world.passes(world.leader())
    assert await world.marker() == 30
    assert await world.epochs("wal") == list(range(30, 61))
    assert "a snapshot that retention needs is damaged" in caplog.text
    await world.check(range(30, 61))


async def test_a_snapshot_that_became_damaged_since_keeps_its_predecessors() -> None:
    world = await grown()
    before = await world.names()
    leader = world.leader()
    world.pass_time(STANDING_SECONDS)
    await leader.make_pass()
    assert await world.marker() == 36
    await world.store.inner.put(names.snapshot(36), snapshot_object(world.positions[30]))
    await world.passes(world.leader())
    assert await world.names() == before
    await world.write(24, every=HOUR)
    await world.snapshot()
    await world.passes(world.leader())
    assert (await world.epochs("wal"))[0] == await world.marker() == 60


async def test_a_log_with_a_hole_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    world = await grown()
    await world.store.delete([names.wal(50)])
    before = await world.names()
    await world.passes(world.leader())
    assert await world.names() == before
    assert f"nothing is deleted: {names.wal(50)} is missing" in caplog.text


async def test_a_listing_that_lacks_the_head_is_not_acted_upon(caplog: pytest.LogCaptureFixture) -> None:
    world = await grown()
    before = await world.names()
    world.epoch._set(61)
    await world.passes(world.leader())
    assert await world.names() == before
    assert f"{names.wal(61)} is missing" in caplog.text


@pytest.mark.parametrize("bogus", [b"", b"rubbish", names.marker(5), names.marker(39), names.marker(10**18)])
async def test_a_marker_that_is_wrong_lets_nothing_young_go(bogus: bytes) -> None:
    world = await grown()
    await world.store.put(names.LAST_RETAINED, bogus)
    leader = world.leader()
    await world.passes(leader, 4)
    for epoch in world.needed(world.store.now - timedelta(days=1)):
        assert names.wal(epoch) in await world.names()
    assert set(await world.epochs("db")) >= {36, 42, 48, 54, 60}


async def test_the_marker_is_asserted_at_each_pass(caplog: pytest.LogCaptureFixture) -> None:
    world = await grown()
    leader = world.leader()
    await world.passes(leader)
    await world.store.put(names.LAST_RETAINED, names.marker(12))
    await leader.make_pass()
    assert await world.marker() == 36
    assert "was lowered to 12" in caplog.text


async def test_merged_epochs_go_when_no_restore_can_begin_before_them() -> None:
    world = await grown()
    for first, last in ((1, 4), (1, 16), (33, 36), (33, 48), (36, 39), (37, 40), (49, 52), (61, 64)):
        await world.store.put(names.merged(first, last), b"merged")

    async def merged() -> list[tuple[int, int]]:
        return [found for found in map(names.parse_merged, await world.names()) if found is not None]

    leader = world.leader()
    await world.passes(leader)
    assert await world.marker() == 36
    assert await merged() == [(37, 40), (49, 52), (61, 64)]
    await world.store.put(names.merged(5, 8), b"of a deposed leader, too late")
    await world.passes(leader, 1)
    assert await merged() == [(37, 40), (49, 52), (61, 64)]
    assert await world.epochs("wal") == list(range(36, 61))
    await world.check()


async def test_merged_epochs_do_not_stand_for_those_that_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    world = await grown()
    await world.store.put(names.merged(49, 52), b"merged")
    await world.store.delete([names.wal(50)])
    before = await world.names()
    await world.passes(world.leader())
    assert await world.names() == before
    assert f"nothing is deleted: {names.wal(50)} is missing" in caplog.text


@pytest.mark.parametrize("lowered", [None, 3])
@pytest.mark.parametrize("orphan", [4, 12, 35])
async def test_orphans_in_the_deleted_range_are_swept(orphan: int, lowered: int | None) -> None:
    """Young as they are; a new leader sweeps them too, also when a late PUT has lowered the marker."""
    world = await grown()
    await world.passes(world.leader())
    await world.store.put(names.wal(orphan), epoch_object(world.positions[orphan - 1]))
    if lowered is not None:
        await world.store.put(names.LAST_RETAINED, names.marker(lowered))
    await world.passes(world.leader(), 3)
    if (orphan, lowered) == (35, 3):  # it looks like a part of the log, whose snapshot is lost: until it is old
        assert names.wal(orphan) in await world.names()
        world.pass_time(DAY)
        await world.passes(world.leader(), 3)
    assert names.wal(orphan) not in await world.names()
    assert await world.marker() >= 36
    await world.check()


async def test_a_deposed_leader_that_goes_on_does_no_harm() -> None:
    """It has listed, then stood still for two days in which another has led and gone on."""
    world = await grown()

    class Frozen(Wrapper):
        async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
            if operation == "delete" and not thawed:
                thawed.append(True)
                other = world.leader()
                for _ in range(8):
                    await world.write(6, every=HOUR)
                    await world.snapshot()
                    await world.passes(other, 1)
            return await send()

    thawed: list[bool] = []
    deposed = world.leader(Frozen(world.store))
    await world.passes(deposed, 2)
    assert thawed
    await world.check()
    raised = await world.marker()
    await world.passes(deposed, 1)
    assert await world.marker() >= raised
    await world.check()


async def test_a_pass_costs_little() -> None:
    world = await grown()
    counting = Counting(world.store)
    leader = world.leader(counting)
    await world.passes(leader, 3)
    counting.reset()
    await world.passes(leader, 1)
    assert counting.requests == {"get": 1, "put": 1, "list": 1}


@pytest.mark.parametrize(
    ("retention", "interval"), [(HOUR, STANDING_SECONDS + 100), (7 * DAY, 7 * DAY / 20), (365 * DAY, DAY)]
)
def test_passes_are_seldom(retention: float, interval: float) -> None:
    assert pass_interval(retention) == interval


def test_retention_is_at_least_an_hour() -> None:
    with pytest.raises(ValueError, match="retention must be at least 1 hour"):
        NodeSettings(retention=timedelta(minutes=59))
    assert NodeSettings(retention=timedelta(days=1)).retention == DAY


# -- pins -------------------------------------------------------------------------------------------------------------


async def test_a_pin_holds_back_retention_until_it_is_removed() -> None:
    world = await grown()
    leader = world.leader()
    async with pinned(world.store, 20, ttl_seconds=HOUR, clock=world.clock):
        for _ in range(5):
            await world.passes(leader, 1)
            (pin,) = await world.store.list(names.PINS)
            world.store.dates[pin.key] = world.store.now  # renewed
        assert await world.marker() == 18
        await world.check(range(20, 61))
    assert await world.store.list(names.PINS) == []
    await world.passes(leader)
    assert await world.marker() == 36


async def test_a_pin_that_is_not_renewed_expires_and_is_swept() -> None:
    world = await grown()
    leader = world.leader()
    await world.store.put(names.pin("dead"), Pin(20, 2 * HOUR, "a restore that died").encode())
    await world.passes(leader, 2)
    assert await world.marker() == 18
    world.pass_time(2 * HOUR)
    await world.passes(leader, 2)
    assert await world.store.list(names.PINS) == []
    assert await world.marker() == 36


async def test_a_pin_that_cannot_be_read_holds_everything_for_a_day() -> None:
    world = await grown()
    leader = world.leader()
    for number, body in enumerate((b"", b"[]", b"rubbish", b'{"epoch": 1}', b'{"epoch":1,"ttl_seconds":1e99}')):
        await world.store.put(names.pin(str(number)), body)
    before = await world.names()
    await world.passes(leader)
    assert await world.names() == before
    world.pass_time(DAY)
    await world.passes(leader)
    assert await world.store.list(names.PINS) == []
    assert await world.marker() > 0


async def test_who_pins_too_late_is_told() -> None:
    world = await grown()
    await world.passes(world.leader(), 2)
    assert await world.marker() == 36
    with pytest.raises(NotRetained, match="epoch 20 is not kept any more; the log goes back to epoch 36"):
        async with pinned(world.store, 20, clock=world.clock):
            raise AssertionError
    assert await world.store.list(names.PINS) == []
    async with pinned(world.store, 36, clock=world.clock):
        await world.check()


async def test_a_pin_is_renewed() -> None:
    world = await World.begin()
    async with pinned(world.store, 0, ttl_seconds=0.2, clock=world.clock):
        for _ in range(3):
            world.store.pass_time(10)
            async with asyncio.timeout(60):
                while [pin.last_modified for pin in await world.store.list(names.PINS)] != [world.store.now]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


class Interleaved(Wrapper):
    """Does something else before the n-th request, once."""

    def __init__(self, store: Store, before: int, other: Callable[[], Awaitable[None]]) -> None:
        super().__init__(store)
        self._before, self._other = before, other

    async def _request(self, operation: Operation, key: str, send: Callable[[], Awaitable[T]]) -> T:
        self._before -= 1
        if self._before == 0:
            await self._other()
        return await send()


@pytest.mark.parametrize("at", range(1, 60))
@pytest.mark.parametrize("epoch", [20, 37])
async def test_a_pin_made_at_any_moment_of_a_pass_holds_or_is_refused(at: int, epoch: int) -> None:
    world = await grown()
    outcome: list[str] = []
    leave = asyncio.Event()

    async def hold() -> None:
        try:
            async with pinned(world.store, epoch, clock=world.clock, ttl_seconds=1e6):
                outcome.append("held")
                await leave.wait()
        except NotRetained:
            outcome.append("refused")

    async def other() -> None:
        tasks.append(asyncio.create_task(hold()))
        while not outcome:  # noqa: ASYNC110
            await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    leader = world.leader(Interleaved(world.store, at, other))
    await world.passes(leader, 6)
    if outcome == ["held"]:
        present = await world.names()
        base = max(number for number in await world.epochs("db") if number <= epoch)
        assert all(names.wal(number) in present for number in range(base + 1, 61))
    leave.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("at", range(1, 4))
async def test_a_pass_at_any_moment_of_making_a_pin_leaves_it_or_has_it_refused(at: int) -> None:
    world = await grown()
    leader = world.leader()
    interleaved = Interleaved(world.store, at, lambda: world.passes(leader, 4))
    try:
        async with pinned(interleaved, 20, ttl_seconds=1e6, clock=world.clock):
            await world.check(range(20, 61))
            await world.passes(leader, 4)
            await world.check(range(20, 61))
    except NotRetained:
        assert at == 1 or at == 2


# -- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["before", "after", "half"])
async def test_a_crash_at_any_request_leaves_all_restorable_and_the_next_leader_finishes(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("littlebigcluster.roles.retention.DELETE_BATCH", 4)
    start = await grown()
    await start.store.put(names.pin("dead"), Pin(0, 1.0, "swept").encode())
    original, died = start.store, True
    for at in count(1):
        start.store = await original.copy()
        dying = start.leader(Dying(start.store, at, how))
        try:
            await start.passes(dying, 3)
            died = False
        except StoreUnavailable:
            pass
        await start.check()
        await start.passes(start.leader(), 4)
        await start.check()
        assert (await start.epochs("wal"))[0] == await start.marker() == (await start.epochs("db"))[0]
        assert await start.marker() >= 36
        if not died:
            break
    assert at > 20, "every request was tried"


# -- the fence --------------------------------------------------------------------------------------------------------


async def test_a_reader_anywhere_in_the_log_never_takes_a_deleted_epoch_for_the_end() -> None:
    """Readers at every place, who ask just as often as they must, while retention goes on."""
    world = await grown()
    leader = world.leader()
    readers = [log_at(world.store, at, world.clock) for at in world.positions]
    for _ in range(60):
        world.pass_time(STANDING_SECONDS / 12)
        await leader.make_pass()
        for log in readers:
            found = await log.next()
            assert found != AtHead() or log.position == world.positions[-1]
            if found not in (AtHead(), Gone()) and world.clock.random() < 0.3:
                log.advance(world.positions[log.position.epoch + 1])
    assert await world.marker() >= 36


# -- random histories -------------------------------------------------------------------------------------------------


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller seed is no simpler history
)
@given(seed=st.integers(0, 2**32))
def test_random_histories_lose_nothing_that_is_young_or_pinned(seed: int) -> None:
    asyncio.run(random_history(seed))


async def random_history(seed: int) -> None:
    draw = seeded(seed)
    world = await World.begin(retention=draw.choice([HOUR, DAY, 7 * DAY]))
    step = world.retention / draw.choice([3, 20, 100])
    leaders = [world.leader()]
    held: list[tuple[int, str]] = []
    raised = 0
    for _ in range(80):
        action = draw.random()
        raised = max(raised, await world.marker())
        if action < 0.35:
            await world.write(draw.randint(1, 8), every=draw.uniform(0, step))
        elif action < 0.5:
            await world.snapshot()
        elif action < 0.6:
            world.pass_time(draw.uniform(0, 5 * step))
        elif action < 0.65:
            leaders.append(world.leader())
        elif action < 0.7:
            marker = await world.marker()
            if marker > 1:  # late requests of deposed leaders
                orphan = draw.randint(1, marker - 1)
                await world.store.create(names.wal(orphan), epoch_object(world.positions[orphan - 1]))
        elif action < 0.73:
            await world.store.put(names.LAST_RETAINED, names.marker(draw.randint(0, await world.marker())))
        elif action < 0.8:
            epoch, name = draw.randint(await world.marker(), world.epoch.value), names.pin(f"{len(held)}")
            await world.store.put(name, Pin(epoch, 1e9, "").encode())
            if raised <= epoch:  # else it is too late, which a lowered marker does not tell
                held.append((epoch, name))
            else:
                await world.store.delete([name])
        elif action < 0.83 and held:
            await world.store.delete([held.pop()[1]])
        else:
            dying = Dying(world.store, draw.randint(1, 40), draw.choice(["before", "after", "half"]))
            leader = draw.choice(leaders)
            leader._store = draw.choice([world.store, dying])
            world.pass_time(draw.choice([0.0, STANDING_SECONDS + 1]))
            try:
                await leader.make_pass()
            except StoreUnavailable:
                leaders.remove(leader)
                leaders.append(world.leader())
        await present(world, world.needed(world.store.now - timedelta(seconds=world.retention)))
        for epoch, _ in held:
            await present(world, range(epoch, world.epoch.value + 1))
    for _, name in held:
        await world.store.delete([name])
    last = world.leader()
    await world.passes(last, 2)
    world.pass_time(2 * world.retention)
    await world.passes(last, 4)
    assert await world.epochs("db") == [await world.marker()]
    assert (await world.epochs("wal") or [0])[0] == await world.marker()
    assert isinstance(await log_at(world.store, world.positions[-1], world.clock).append(
        epoch_object(world.positions[-1]), term=1), Appended)  # fmt: skip


async def present(world: World, needed: Iterable[int]) -> None:
    """These epochs can be restored, as far as the objects go. (A lowered marker says too little, for a while.)"""
    listed = set(await world.names())
    snapshots = sorted(await world.epochs("db"))
    for epoch in needed:
        base = max((number for number in snapshots if number <= epoch), default=None)
        assert base is not None, epoch
        assert all(names.wal(number) in listed for number in range(base + 1, epoch + 1)), (base, epoch)


def repair_at(epoch: int, *lost: tuple[int, int]) -> bytes:
    return Repair(
        cluster_id="lol", epoch=epoch, back_to=None, at=datetime(2026, 11, 22, tzinfo=UTC), by="a test",
        damaged={}, lost=list(lost),
    ).encode()  # fmt: skip


async def test_a_hole_that_a_repair_has_told_of_holds_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    world = await grown()
    await world.store.delete([names.wal(50)])
    await world.store.put(names.repair(54), repair_at(54, (50, 53)))
    await world.store.put(names.aside(names.snapshot(48)), b"damaged")
    leader = world.leader()
    await world.passes(leader)
    assert "nothing is deleted" not in caplog.text
    assert (await world.epochs("wal"))[0] == await world.marker() == 36
    assert await world.store.get(names.repair(54)) is not None
    await world.store.delete([names.wal(55)])
    before = await world.names()
    await world.passes(leader)
    assert await world.names() == before, "another hole is another matter"
    assert f"nothing is deleted: {names.wal(55)} is missing" in caplog.text


async def test_what_repairs_have_told_goes_with_the_log_before_it() -> None:
    world = await grown()
    await world.store.delete([names.wal(20)])
    await world.store.put(names.repair(24), repair_at(24, (20, 23)))
    await world.store.put(names.aside(names.snapshot(18)), b"damaged")
    await world.passes(world.leader())
    assert (await world.epochs("wal"))[0] == 36
    assert [info.key for info in await world.store.list(names.REPAIRS)] == []
    assert [info.key for info in await world.store.list(names.ASIDE)] == []


@pytest.mark.parametrize("record", [repair_at(32, (25, 31)), b"unreadable"])
async def test_the_snapshot_behind_damage_is_never_thinned_out(record: bytes) -> None:
    async def thin(repaired: bool) -> list[int]:
        world = await World.begin(30 * DAY)
        for epoch in range(1, 201):
            await world.write(every=HOUR / 4)
            if epoch % 2 == 0:
                await world.snapshot()
        if repaired:
            await world.store.put(names.repair(gone), record)
        await world.passes(world.leader())
        return await world.epochs("db")

    gone = 0
    kept = await thin(False)
    gone = next(epoch for epoch in range(32, 200, 2) if epoch not in kept)
    assert set(await thin(True)) == {*kept, gone}
