"""The log: order, chain, head, append; and the fence that survives deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.clocks import HandClock
from tests.epochs.logs import START, epoch_object, fill, log_at, position_of, retire

from littlebigcluster import CorruptLog, StoreUnavailable
from littlebigcluster.clock import Clock
from littlebigcluster.epochs import Appended, AtHead, Entry, Forgotten, Gone, Lost, names, survey
from littlebigcluster.store import (
    Counting,
    Created,
    CreateOutcome,
    Exists,
    Fault,
    Faulty,
    ObjectInfo,
    Store,
    Unknown,
    Wrapper,
    open_store,
)  # fmt: skip


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(clock: HandClock) -> Store:
    return open_store("memory://", clock=clock)


async def test_epochs_come_in_order_until_the_head(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 3)
    log = log_at(store, START, clock)
    for expected in positions[1:]:
        entry = await log.next()
        assert isinstance(entry, Entry)
        assert (entry.metadata.epoch, entry.sha256) == (expected.epoch, expected.sha256)
        log.advance(expected)
    assert await log.next() == AtHead()
    assert await log.is_head()


@pytest.mark.parametrize("fenced", [False, True])
async def test_merged_epochs_are_no_proof_that_an_epoch_exists(store: Store, clock: HandClock, fenced: bool) -> None:
    """Not even those that claim to go on from the head."""
    positions = await fill(store, 3)
    log = log_at(store, positions[3], clock)
    for first, last in ((1, 64), (4, 67), (5, 68)):
        await store.put(names.merged(first, last), epoch_object(positions[3]))
    if fenced:
        clock.sleep_machine(100)
    assert await log.next() == AtHead()
    assert await log.is_head()
    assert await log.head() == 3
    assert (await survey(store)).head == 3
    outcome = await log.append(epoch_object(positions[3]), term=1)
    assert isinstance(outcome, Appended)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epoch": 9}, "epoch 1, found 9"),
        ({"cluster_id": "other"}, 'cluster "lol"'),
        ({"previous_sha256": "ff" * 32}, "follows the object"),
        ({"term": -1}, "a term of at least 0"),
        ({"kind": "db"}, 'kind "wal"'),
    ],
)
async def test_an_object_that_does_not_belong_here_is_refused(
    store: Store, clock: HandClock, changes: dict[str, Any], expected: str
) -> None:
    await store.put(names.wal(1), epoch_object(START, **changes))
    with pytest.raises(CorruptLog, match=expected) as caught:
        await log_at(store, START, clock).next()
    assert caught.value.object == names.wal(1)


async def test_reordered_and_duplicated_objects_are_refused(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 3)
    second = await store.get(names.wal(2))
    assert second is not None
    await store.put(names.wal(3), second)
    with pytest.raises(CorruptLog):
        await log_at(store, positions[2], clock).next()
    await store.put(names.wal(1), second)
    with pytest.raises(CorruptLog):
        await log_at(store, START, clock).next()


async def test_an_append_is_found_by_the_next_reader(store: Store, clock: HandClock) -> None:
    log = log_at(store, START, clock)
    body = epoch_object(START)
    outcome = await log.append(body, term=1)
    assert outcome == Appended(position_of(body, 1))
    assert await store.get(names.wal(1)) == body


async def test_whoever_comes_second_has_lost(store: Store, clock: HandClock) -> None:
    await fill(store, 1)
    assert await log_at(store, START, clock).append(epoch_object(START), term=1) == Lost()


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER, Fault.DUPLICATE])
async def test_an_ambiguous_create_is_resolved(store: Store, clock: HandClock, fault: Fault) -> None:
    faulty = Faulty(store, seed=1)
    faulty.next("create", fault)
    body = epoch_object(START)
    assert await log_at(faulty, START, clock).append(body, term=1) == Appended(position_of(body, 1))
    assert await store.get(names.wal(1)) == body


async def test_an_append_waits_through_an_outage(store: Store, clock: HandClock) -> None:
    faulty = Faulty(store, seed=1)
    faulty.outage(True)
    body = epoch_object(START)
    task = asyncio.create_task(log_at(faulty, START, clock).append(body, term=1))
    await asyncio.sleep(0.5)
    assert not task.done()
    faulty.outage(False)
    assert await asyncio.wait_for(task, 60) == Appended(position_of(body, 1))


class Scripted(Wrapper):
    """A store whose creates, or whose answers to them, are replaced."""

    def __init__(self, inner: Store, on_create: Callable[[str, bytes], Any]) -> None:
        super().__init__(inner)
        self.on_create = on_create

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        outcome: CreateOutcome = await self.on_create(key, body)
        return outcome


async def test_a_refusal_for_good_is_an_error_only_when_nothing_was_sent(store: Store, clock: HandClock) -> None:
    async def refuse(key: str, body: bytes) -> CreateOutcome:
        raise StoreUnavailable("no permission", transient=False)

    with pytest.raises(StoreUnavailable):
        await log_at(Scripted(store, refuse), START, clock).append(epoch_object(START), term=1)

    answers = [Unknown(TimeoutError()), StoreUnavailable("no permission", transient=False)]

    async def time_out_then_refuse(key: str, body: bytes) -> CreateOutcome:
        if not answers:
            return await store.create(key, body)
        answer = answers.pop(0)
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    body = epoch_object(START)
    log = log_at(Scripted(store, time_out_then_refuse), START, clock)
    assert await log.append(body, term=1) == Appended(position_of(body, 1))


# -- the fence that survives deletion ---------------------------------------------------------------------------------


async def test_a_reader_that_slept_past_retention_does_not_take_absence_for_the_head(
    store: Store, clock: HandClock
) -> None:
    positions = await fill(store, 10)
    log = log_at(store, positions[3], clock)
    await retire(store, positions, keep_from=9)
    clock.sleep_machine(7200)
    assert await log.next() == Gone()
    assert not await log.is_head()


async def test_a_writer_that_slept_past_retention_creates_nothing(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 10)
    counting = Counting(store)
    log = log_at(counting, positions[3], clock)
    await retire(store, positions, keep_from=9)
    clock.sleep_machine(7200)
    assert await log.append(epoch_object(positions[3]), term=1) == Lost()
    assert counting.requests["create"] == 0
    assert await store.get(names.wal(4)) is None


async def test_without_the_marker_the_listing_alone_tells(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 10)
    log = log_at(store, positions[3], clock)
    await store.delete([names.wal(epoch) for epoch in range(1, 9)])
    clock.sleep_machine(7200)
    assert await log.next() == Gone()
    assert await log.append(epoch_object(positions[3]), term=1) == Lost()


async def test_an_idle_head_is_confirmed_by_looking_however_long(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 2)
    counting = Counting(store)
    log = log_at(counting, positions[2], clock)
    for _ in range(100):
        clock.sleep_machine(50)
        assert await log.next() == AtHead()
    assert counting.requests["list"] == 0
    clock.sleep_machine(61)
    assert await log.next() == AtHead()
    assert counting.requests["list"] == 1


async def test_a_machine_that_sleeps_during_the_question_asks_again(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 10)

    class Sleepy(Wrapper):
        """The first look at the next epoch takes two hours, in which retention does its work."""

        slept = False

        async def nap(self, key: str) -> None:
            if key == names.wal(4) and not self.slept:
                self.slept = True
                await retire(store, positions, keep_from=9)
                clock.sleep_machine(7200)

        async def get(self, key: str) -> bytes | None:
            await self.nap(key)
            return await super().get(key)

        async def get_range(self, key: str, start: int, length: int) -> bytes | None:
            await self.nap(key)
            return await super().get_range(key, start, length)

    assert await log_at(Sleepy(store), positions[3], clock).next() == Gone()
    await fill(store, 8)
    positions = await fill(store, 10)
    assert not await log_at(Sleepy(store), positions[3], clock).is_head()


async def test_of_a_create_that_took_effect_hours_later_nobody_can_tell(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 10)

    async def late(key: str, body: bytes) -> CreateOutcome:
        await retire(store, positions, keep_from=9)
        clock.sleep_machine(7200)
        return await store.create(key, body)  # the store says "created": nothing is there any more

    log = log_at(Scripted(store, late), positions[3], clock)
    assert await log.append(epoch_object(positions[3]), term=1) == Forgotten()


async def test_a_slow_create_that_did_count_is_ours(store: Store, clock: HandClock) -> None:
    async def slow(key: str, body: bytes) -> CreateOutcome:
        outcome = await store.create(key, body)
        clock.sleep_machine(7200)
        return outcome

    body = epoch_object(START)
    assert await log_at(Scripted(store, slow), START, clock).append(body, term=1) == Appended(position_of(body, 1))


async def test_a_slow_create_that_another_leader_built_on_is_ours_too(store: Store, clock: HandClock) -> None:
    body = epoch_object(START)

    async def slow(key: str, sent: bytes) -> CreateOutcome:
        await store.create(key, sent)
        await fill(store, 2, after=position_of(sent, 1))
        clock.sleep_machine(600)
        return Unknown(TimeoutError())

    assert await log_at(Scripted(store, slow), START, clock).append(body, term=1) == Appended(position_of(body, 1))


async def test_nobody_knows_whether_a_create_counted_whose_epoch_retention_has_deleted_since(
    store: Store, clock: HandClock
) -> None:
    body = epoch_object(START)

    async def suspended(key: str, sent: bytes) -> CreateOutcome:
        await store.create(key, sent)
        positions = await fill(store, 10, after=position_of(sent, 1))
        await retire(store, positions, keep_from=9)
        await store.delete([key])
        clock.sleep_machine(7200)
        return Created()

    assert await log_at(Scripted(store, suspended), START, clock).append(body, term=1) == Forgotten()


async def test_an_orphan_in_front_of_the_retained_log_is_not_ours(store: Store, clock: HandClock) -> None:
    """As above, but the marker is lost: only the chain of the next epoch tells."""
    positions = await fill(store, 10)

    async def late(key: str, body: bytes) -> CreateOutcome:
        await store.delete([names.wal(epoch) for epoch in range(1, 5)])
        clock.sleep_machine(7200)
        return await store.create(key, body)

    log = log_at(Scripted(store, late), positions[3], clock)
    assert await log.append(epoch_object(positions[3]), term=1) == Lost()


async def test_an_orphan_in_the_deleted_range_is_not_ours_although_the_marker_was_lowered(
    store: Store, clock: HandClock
) -> None:
    """A late PUT of a deposed leader has lowered the marker: only the gap behind the orphan tells."""
    positions = await fill(store, 10)

    async def late(key: str, body: bytes) -> CreateOutcome:
        await retire(store, positions, keep_from=9)
        await store.put(names.LAST_RETAINED, names.marker(2))
        clock.sleep_machine(7200)
        return await store.create(key, body)

    log = log_at(Scripted(store, late), positions[3], clock)
    assert await log.append(epoch_object(positions[3]), term=1) == Forgotten()
    # Nor is it the next epoch for anybody else.
    clock.sleep_machine(7200)
    assert await log.next() == Gone()
    assert await log.head() is None


async def test_a_create_after_the_fence_has_expired_is_not_believed(store: Store, clock: HandClock) -> None:
    """It was sent in time, and took less than `fence_validity`; but the last look was before the marker was raised."""
    positions = await fill(store, 10)

    async def late(key: str, body: bytes) -> CreateOutcome:
        await retire(store, positions, keep_from=9)
        clock.sleep_machine(50)
        return await store.create(key, body)

    log = log_at(Scripted(store, late), positions[3], clock)
    clock.sleep_machine(50)
    assert await log.append(epoch_object(positions[3]), term=1) == Forgotten()


async def test_a_conflict_with_an_orphan_is_no_proof_of_having_lost(store: Store, clock: HandClock) -> None:
    """The first sending counted, others went on from it; the second one, much later, meets what took its place."""
    body, sendings = epoch_object(START), 0

    async def resent(key: str, sent: bytes) -> CreateOutcome:
        nonlocal sendings
        sendings += 1
        if sendings == 1:
            await store.create(key, sent)
            return Unknown(TimeoutError())
        positions = await fill(store, 10, after=position_of(sent, 1))
        await retire(store, positions, keep_from=9)
        await store.create(key, epoch_object(START))
        clock.sleep_machine(7200)
        return await store.create(key, sent)

    assert await log_at(Scripted(store, resent), START, clock).append(body, term=1) == Forgotten()


async def test_an_epoch_of_ours_found_again_confirms_only_what_its_first_sending_did(
    store: Store, clock: HandClock
) -> None:
    """Others may have gone on from it, and retention raised the marker, before it was sent again."""
    body = epoch_object(START)

    class Silent(Wrapper):
        """The first sending counts and takes long, without an answer; nor is there any to the questions after it."""

        asked = 0

        async def create(self, key: str, body: bytes) -> CreateOutcome:
            outcome = await super().create(key, body)
            if self.asked:
                return outcome
            clock.sleep_machine(40)
            clock.pass_time(20)
            return Unknown(TimeoutError())

        async def get(self, key: str) -> bytes | None:
            self.asked += 1
            if self.asked == 1:
                raise StoreUnavailable("silent")
            return await super().get(key)

    log = log_at(Silent(store), START, clock)
    assert await log.append(body, term=1) == Appended(position_of(body, 1))
    log.advance(position_of(body, 1))
    assert log.fence_holds
    clock.sleep_machine(20)
    assert not log.fence_holds


async def test_what_a_listing_has_shown_is_not_absent_because_it_is_at_the_head(store: Store, clock: HandClock) -> None:
    """A late PUT has lowered the marker just before the deletion, so that a reader far behind believed its place."""
    positions = await fill(store, 10)
    log = log_at(store, positions[3], clock)
    clock.sleep_machine(7200)
    assert isinstance(await log.next(), Entry)  # after a listing, up to 10
    await store.delete([names.wal(epoch) for epoch in range(1, 9)])
    assert not log.fence_holds
    assert await log.append(epoch_object(positions[3]), term=1) == Lost()
    assert await log.next() == Gone()
    assert await store.get(names.wal(4)) is None


async def test_an_orphan_that_a_slow_read_brings_is_not_the_next_epoch(store: Store, clock: HandClock) -> None:
    positions = await fill(store, 10)

    class Slow(Wrapper):
        async def get(self, key: str) -> bytes | None:
            if key == names.wal(4):
                await retire(store, positions, keep_from=9)
                await store.create(key, epoch_object(positions[3]))
                clock.sleep_machine(7200)
            return await super().get(key)

    assert await log_at(Slow(store), positions[3], clock).next() == Gone()


class Unsteady(Wrapper):
    """A listing is no picture of one moment: the first one lacks `key`, although there are later ones."""

    key: str | None = None

    async def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        found = await super().list(prefix, start_after)
        key, self.key = self.key, None
        return [info for info in found if info.key != key]


@pytest.mark.parametrize("missed", [1, 2])
async def test_an_epoch_that_one_listing_has_missed_is_no_gap(store: Store, clock: HandClock, missed: int) -> None:
    body = epoch_object(START)
    unsteady = Unsteady(store)
    unsteady.key = names.wal(missed)

    async def slow(key: str, sent: bytes) -> CreateOutcome:
        await store.create(key, sent)
        await fill(store, 3, after=position_of(sent, 1))
        clock.sleep_machine(600)
        return Unknown(TimeoutError())

    log = log_at(Scripted(unsteady, slow), START, clock)
    assert await log.append(body, term=1) == Appended(position_of(body, 1))


async def test_a_reader_far_behind_does_not_take_a_deleted_epoch_for_the_end_of_the_log(
    store: Store, clock: HandClock
) -> None:
    """It reads one old epoch after the other, each there when it is read: that says nothing of the next one."""
    positions = await fill(store, 10)
    log = log_at(store, START, clock)
    await store.put(names.LAST_RETAINED, names.marker(9))
    for expected in positions[1:4]:
        clock.sleep_machine(45)
        found = await log.next()
        if found == Gone():
            return
        log.advance(expected)
    await retire(store, positions, keep_from=9)
    clock.sleep_machine(1)
    assert await log.next() == Gone()


async def test_a_bare_conflict_without_an_object_is_sent_again(store: Store, clock: HandClock) -> None:
    answers: list[CreateOutcome] = [Exists(), Exists()]

    async def conflict(key: str, body: bytes) -> CreateOutcome:
        return answers.pop() if answers else await store.create(key, body)

    body = epoch_object(START)
    assert await log_at(Scripted(store, conflict), START, clock).append(body, term=1) == Appended(position_of(body, 1))


async def test_two_writers_under_faults_never_both_append(store: Store) -> None:
    clock = Clock()
    rates = {"create": {Fault.BEFORE: 0.2, Fault.AFTER: 0.2, Fault.DUPLICATE: 0.1}, "get": {Fault.BEFORE: 0.2}}
    at = START
    for round_number in range(40):
        bodies = [epoch_object(at), epoch_object(at)]
        outcomes = await asyncio.gather(
            *(
                log_at(Faulty(store, seed=round_number * 2 + i, rates=rates), at, clock).append(body, term=1)
                for i, body in enumerate(bodies)
            )
        )
        found = await store.get(names.wal(at.epoch + 1))
        for body, outcome in zip(bodies, outcomes, strict=True):
            assert isinstance(outcome, Appended) == (body == found), outcome
        assert found is not None
        at = position_of(found, at.epoch + 1)


async def test_the_survey_finds_the_newest_snapshot_also_with_a_stale_hint(store: Store) -> None:
    positions = await fill(store, 6)
    for epoch in (0, 2, 4):
        await store.put(names.snapshot(epoch), b"snapshot")
    for hint in (None, b"damaged", names.marker(2), names.marker(4), names.marker(5)):
        if hint is None:
            await store.delete([names.LAST_SNAPSHOT])
        else:
            await store.put(names.LAST_SNAPSHOT, hint)
        found = await survey(store)
        assert found.snapshots[0].key == names.snapshot(4), hint
        assert found.head == 6
        assert [names.wal(5), names.wal(6)] == [info.key for info in found.epochs][-2:]
    assert positions[-1].epoch == 6


async def test_finding_the_head_costs_one_get_and_one_list(store: Store) -> None:
    await fill(store, 6)
    await store.put(names.snapshot(4), b"snapshot")
    await store.put(names.LAST_SNAPSHOT, names.marker(4))
    counting = Counting(store)
    await survey(counting)
    assert (counting.requests["get"], counting.requests["list"]) == (1, 1)


def test_created_is_not_exists() -> None:
    assert Created() != Exists()
