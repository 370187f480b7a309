"""repair: what it says before, while and after it acts, and what log and verify say then."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

import littlebigcluster as lbc
from tests.cli.programs import error_line, output, run
from tests.cli.test_reading_commands import led_cluster

BAD = ".lbc/00000000000000000003.wal"
WRONG = f"{BAD}: expected at least 8 bytes, found 1"
IMPATIENT = (
    "import dataclasses; from littlebigcluster.cli.commands import past as command;"
    "settings = command.NodeSettings;"
    "command.NodeSettings = lambda **given: dataclasses.replace(settings(**given), leader_timeout=0.2);"
    "from littlebigcluster.cli.app import main; main()"
)
"""It waits for signs of life for less than 40 seconds."""


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A cluster with a table of two rows since epoch 3, that was released in epoch 4."""
    asyncio.run(led_cluster(tmp_path / "store"))
    return str(tmp_path / "store")


def damage(store: str) -> None:
    Path(store, BAD).write_bytes(b"x")


def log_of(store: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store, ".lbc").glob("0*")}


def repair(store: str, *options: str) -> str:
    done = run("-p", store, "repair", *options, program=[sys.executable, "-W", "error", "-c", IMPATIENT])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sound_cluster_needs_nothing(store: str) -> None:
    before = log_of(store)
    said = output("-p", store, "repair", "--yes")
    assert said == "Nothing is to be repaired: every node can join, and no damage is without a record.\n"
    found = json.loads(output("-p", store, "repair", "--json"))
    assert (found["action"], found["findings"], found["obstacle"], found["lost"]) == ("nothing", [], "", [])
    assert (found["head"], found["newest"], found["leader"], found["epoch"]) == (4, 4, None, None)
    assert log_of(store) == before


def test_a_dry_run_says_what_is_wrong_what_would_be_lost_and_what_to_try_first(store: str) -> None:
    damage(store)
    before = log_of(store)
    assert output("-p", store, "repair").splitlines() == [
        WRONG,
        f"Nobody can join: {WRONG}",
        "Epochs that cannot be restored: 3 to 4",
        "Nobody leads. The log would go on after epoch 4 with the state of epoch 2, the newest one that can be"
        " restored: what was written since is lost. If a node still runs, or has kept its directory, start it"
        " first: it may have all of it.",
        "Nothing was done. With --yes it is.",
    ]
    found = json.loads(output("-p", store, "repair", "--json"))
    assert found["findings"] == [{"object": BAD, "problem": WRONG.removeprefix(f"{BAD}: ")}]
    assert (found["action"], found["newest"], found["lost"], found["epoch"]) == ("go back", 2, [[3, 4]], None)
    assert log_of(store) == before


def test_with_yes_it_says_where_the_log_goes_on_and_the_log_marks_what_is_lost(store: str) -> None:
    damage(store)
    assert repair(store, "--yes").splitlines() == [
        WRONG,
        f"Nobody can join: {WRONG}",
        "Epochs that cannot be restored: 3 to 4",
        "Epoch 5 is as epoch 2 was. The log goes on from there; nodes can join.",
    ]
    lines = [json.loads(line) for line in output("-p", store, "log", "--json").splitlines()]
    assert {line["epoch"]: line["lost"] for line in lines} == {1: False, 2: False, 4: True, 5: False}
    *table, last = output("-p", store, "log").splitlines()
    assert last == "Lost, as repairs tell: epochs 3 to 4"
    assert [line.split()[1] for line in table if " lost " in line] == ["4"]
    assert "│ State │" in table[1]
    lost = error_line("-p", store, "sql", "SELECT 1", "--epoch", "3")
    assert lost.startswith("Error: epoch 3 is lost: the log was damaged, and repaired at 20")
    assert "ends before epoch 3, and begins again with epoch 5" in lost


def test_it_refuses_what_it_cannot_repair_in_one_line(store: str) -> None:
    assert 'not "other"' in error_line("-p", store, "--cluster", "other", "repair", "--yes")
    Path(store, ".lbc", "00000000000000000000.db").write_bytes(b"x")
    before = log_of(store)
    refused = run("-p", store, "repair", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    error = refused.stderr.splitlines()[-1]
    assert error.startswith("Error: no snapshot of ")
    assert "nothing to go on from; nothing was done" in error
    assert log_of(store) == before


async def test_with_a_leader_it_is_the_leader_that_helps(store: str) -> None:
    async with lbc.Cluster(store).join(can_lead=True, address="127.0.0.1:0") as node:
        await node.wait_until_leader(timeout=30)
        damage(store)
        head = node.epoch.value
        planned = await asyncio.to_thread(output, "-p", store, "repair")
        assert f"The leader, {node.address}, has the newest state. It would make a snapshot" in planned
        done = await asyncio.to_thread(output, "-p", store, "repair", "--yes")
        expected = f"The leader has made a snapshot of epoch {head}, the newest one. Nodes can join."
        assert done.splitlines()[-1] == expected
        async with lbc.Cluster(store).join(address="127.0.0.1:0") as follower:
            assert await follower.read("SELECT count(*) FROM job") == [(2,)]


def test_a_lost_identity_is_written_as_the_log_tells_it(store: str) -> None:
    path = Path(store, ".lbc/cluster.json")
    former = json.loads(path.read_bytes())
    path.unlink()
    assert "run `lbc -p " in error_line("-p", store, "status")
    said = output("-p", store, "repair").splitlines()
    assert said[0] == ".lbc/cluster.json: expected the identity of this cluster, found none"
    assert said[1] == f"Nobody can join: {said[0]}"
    assert said[2].startswith(
        f'cluster.json would be written as the log tells it: cluster "{former["cluster_id"]}" of '
    )
    assert said[2].endswith(", page size 4096, compression zstd, foreign keys off. Nodes that run do not notice.")
    assert not path.exists()
    found = json.loads(output("-p", store, "repair", "--foreign-keys", "on", "--json"))
    assert found["identity"]["settings"] == {"page_size": 4096, "compression": "zstd", "foreign_keys": True}
    assert repair(store, "--yes").splitlines()[-1].endswith("Nodes that run do not notice. Nodes can join.")
    written = json.loads(path.read_bytes())
    assert {name for name in former if former[name] != written[name]} <= {"created_at"}
