"""`verify`: quiet about what is sound, and exact about what is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from littlebigcluster import Cluster, CorruptLog, NotInitialized
from littlebigcluster.cluster import verify as verifying
from littlebigcluster.cluster.verify import runs
from littlebigcluster.database import StateMismatch
from littlebigcluster.epochs import names
from tests.cluster.group import Group, group
from tests.scenarios.stage import memory
from tests.scenarios.test_past import lived


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group(memory()) as made:
        yield made


async def snapshots(g: Group) -> list[int]:
    return [int(Path(info.key).stem) for info in await g.store.list(names.DIRECTORY) if info.key.endswith(".db")]


@pytest.mark.parametrize("deep", [False, True])
async def test_a_sound_log_is_sound_also_under_a_leader(g: Group, deep: bool) -> None:
    history = await lived(g, 30)
    verified = await history.cluster.verify(deep=deep)
    head = max(history.rows) + 1
    assert verified.findings == []
    assert verified.restorable == [(0, head)]
    assert (verified.epochs, verified.snapshots) == (head, len(await snapshots(g)))
    node = await g.node(can_lead=True)
    await node.wait_until_leader()
    seen: list[tuple[int, int]] = []
    assert (await g.cluster.verify(deep=deep, on_bytes=lambda *at: seen.append(at))).findings == []
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "another", "grown"])
async def test_any_damaged_object_is_named_with_what_is_left(g: Group, damage: str, deep: bool) -> None:
    history = await lived(g, 24)
    made = await snapshots(g)
    head = max(history.rows) + 1
    bad = made[2] + 2  # between two snapshots
    for name, restorable in [
        (names.wal(bad), [(0, bad - 1), (made[3], head)]),
        (names.snapshot(made[2]), [(0, head)]),
        (names.snapshot(made[-1]), [(0, head)]),
    ]:
        body = await g.store.get(name)
        assert body is not None
        match damage:
            case "cut":
                await g.store.put(name, body[:-7])
            case "flipped":
                await g.store.put(name, body[:-30] + bytes([body[-30] ^ 1]) + body[-29:])
            case "gone":
                await g.store.delete([name])
            case "another":
                await g.store.put(name, await g.store.get(names.wal(3)) or b"")
            case "grown":
                await g.store.put(name, body + b"more")
        verified = await history.cluster.verify(deep=deep)
        if damage == "gone" and name.endswith(".db"):
            assert verified.findings == []  # one more or less: the log tells it all
        else:
            assert [finding.object for finding in verified.findings] == [name], verified.findings
            assert verified.findings[0].problem
        assert verified.restorable == restorable
        await g.store.put(name, body)
    assert (await history.cluster.verify(deep=deep)).findings == []


async def test_epochs_of_another_history_break_the_chain(g: Group) -> None:
    history = await lived(g, 12)
    async with group(memory()) as other:
        await lived(other, 12, seed=5)
        for epoch in (5, 6, 7):
            await g.store.put(names.wal(epoch), await other.store.get(names.wal(epoch)) or b"")
    found = (await history.cluster.verify()).findings
    assert {names.wal(5), names.wal(8)} <= {finding.object for finding in found}
    assert "follows the object with SHA-256" in found[0].problem


async def test_the_first_epoch_must_follow_the_oldest_snapshot(g: Group) -> None:
    history = await lived(g, 5)
    async with group(memory()) as other:
        await lived(other, 5)
        await g.store.put(names.wal(1), await other.store.get(names.wal(1)) or b"")
    assert (await history.cluster.verify()).findings[0].object == names.wal(1)


async def test_a_snapshot_of_another_history_is_told(g: Group) -> None:
    history = await lived(g, 16)
    async with group(memory()) as other:
        await lived(other, 16)
        both = sorted(set(await snapshots(g)) & set(await snapshots(other)))
        name = names.snapshot(both[-1])
        await g.store.put(name, await other.store.get(name) or b"")
    (finding,) = (await history.cluster.verify()).findings
    assert finding.object == name
    assert "made of another epoch" in finding.problem


async def test_what_only_replaying_shows(g: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    history = await lived(g, 5)

    def differs(replica: object, entry: object) -> None:
        raise StateMismatch("after this epoch it would have another state checksum")

    monkeypatch.setattr(verifying, "apply_entry", differs)
    assert (await history.cluster.verify()).findings == []
    found = (await history.cluster.verify(deep=True)).findings
    assert found[0].object == names.wal(1)
    assert "cannot be applied" in found[0].problem


async def test_strange_objects_are_told_and_the_applications_own_are_not(g: Group) -> None:
    history = await lived(g, 2)
    for key in ("mine/data", ".lbc/00000000000000000001.wal.bak", ".lbc/notes.txt"):
        await g.store.put(key, b"x")
    assert [finding.object for finding in (await history.cluster.verify()).findings] == [
        ".lbc/00000000000000000001.wal.bak",
        ".lbc/notes.txt",
    ]


async def test_without_an_identity_there_is_nothing_to_verify(g: Group) -> None:
    await g.store.put(names.CLUSTER, b"{")
    with pytest.raises(CorruptLog):
        await g.cluster.verify()
    await g.store.delete([names.CLUSTER])
    with pytest.raises(CorruptLog, match=r"run `lbc -p .* repair`"):
        await g.cluster.verify()
    with pytest.raises(NotInitialized):
        await Cluster("memory://").verify()


def test_runs_are_reached_from_sound_snapshots_over_sound_epochs() -> None:
    assert runs(0, 9, [0], []) == [(0, 9)]
    assert runs(0, 9, [0, 5], [3]) == [(0, 2), (5, 9)]
    assert runs(0, 9, [5], []) == [(5, 9)]
    assert runs(3, 9, [3, 6], [6]) == [(3, 9)]  # a snapshot stands for its epoch
    assert runs(0, 9, [0], [1]) == [(0, 0)]
    assert runs(0, 9, [], []) == []
