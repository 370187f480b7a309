"""status, sql and log: on the store alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import littlebigcluster as lbc
from littlebigcluster.cli.reading import _unique, show_status
from littlebigcluster.net import Answer, Request
from tests.cli.programs import LBC, environment, error_line, output, run
from tests.docs.documents import DOCS, code, table

OPERATING = DOCS / "OPERATING.md"
HANGING_SECONDS = 60.0


async def led_cluster(path: Path) -> None:
    cluster = lbc.Cluster(path)
    await cluster.init("lol")
    async with cluster.join(can_lead=True, az="AZ7", settings=lbc.NodeSettings(epoch_interval=0)) as node:
        await node.wait_until_leader(timeout=60)
        await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY, name TEXT)")
        await node.executemany("INSERT INTO job(name) VALUES (?)", [("one",), ("zwei",)])


async def init(path: Path) -> None:
    await lbc.Cluster(path).init()


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A cluster that somebody has led, and that holds a table."""
    asyncio.run(led_cluster(tmp_path / "store"))
    return str(tmp_path / "store")


def test_status_tells_what_the_objects_say(store: str) -> None:
    status = json.loads(output("-p", store, "status", "--json"))
    assert (status["source"], status["leader_error"]) == ("store", "nobody leads at the moment")
    assert status["cluster_id"] == "lol"
    assert status["store"] == f"file://{store}"
    assert (status["epoch"], status["term"], status["leader"]) == (4, 1, None)
    assert (status["snapshot_epoch"], status["log_epochs"]) == (0, 4)
    wals = sorted(Path(store, ".lbc").glob("*.wal"))
    assert status["log_size_bytes"] == sum(wal.stat().st_size for wal in wals)
    assert status["page_size"] == 4096
    assert status["database_size_bytes"] % 4096 == 0
    assert status["created_at"] < status["last_update"]
    lines = output("-p", store, "status").splitlines()
    assert "Leader       released" in lines
    assert "Epoch        4" in lines
    assert len(lines) == 13


async def status_of(store: Path, *options: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(await asyncio.to_thread(output, "-p", str(store), "status", "--json", *options))
    return status


async def test_status_is_by_the_leader_when_it_answers_and_else_by_the_store_in_one_shape(tmp_path: Path) -> None:
    cluster = lbc.Cluster(tmp_path)
    await cluster.init("lol")
    here = {"address": "127.0.0.1:0", "settings": lbc.NodeSettings(epoch_interval=0)}
    async with cluster.join(can_lead=True, az="AZ7", roles=["web"], **here) as node:
        await node.wait_until_leader(timeout=60)
        await node.execute("CREATE TABLE job(id INTEGER PRIMARY KEY)")
        live, alone = await status_of(tmp_path), await status_of(tmp_path, "--store-only")
        assert (live["source"], live["leader_error"]) == ("leader", None)
        assert (alone["source"], alone["leader_error"], alone["members"]) == ("store", None, None)
        assert list(live) == list(alone)
        assert list(live) == [code(row["field"]) for row in table(OPERATING, "Status") if row["`lbc status --json`"]]
        same = set(live) - {"source", "members", "beacon"}  # that may come at any time
        assert {name: live[name] for name in same} == {name: alone[name] for name in same}
        assert [(each["id"], each["roles"]) for each in live["members"]["members"]] == [(str(node.id), ["web"])]
        shown = await asyncio.to_thread(output, "-p", str(tmp_path), "status")
        assert "Source       the leader\n" in shown
        assert f"│ L │ {node.id} │" in shown
        wrong = await status_of(tmp_path, "--tls", "off")
        assert wrong["source"] == "store"
        assert "without TLS" in wrong["leader_error"]
        assert "the nodes run with TLS: leave out --tls off" in wrong["leader_error"]
    after = await status_of(tmp_path)
    assert (after["source"], after["leader"]) == ("store", None)
    assert list(after) == list(live)


async def takes_connections_and_says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def hangs(request: Request) -> Answer:
    await asyncio.sleep(HANGING_SECONDS)
    return Answer()


@pytest.mark.parametrize("silent", ["the network", "the leader"])
async def test_status_does_not_wait_long_for_a_leader_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], silent: str
) -> None:
    cluster = lbc.Cluster(tmp_path)
    await cluster.init("lol")
    async with await asyncio.start_server(takes_connections_and_says_nothing, "127.0.0.1", 0) as server:
        elsewhere = f"127.0.0.1:{server.sockets[0].getsockname()[1]}" if silent == "the network" else None
        async with cluster.join(can_lead=True, address="127.0.0.1:0", advertise=elsewhere) as node:
            await node.wait_until_leader(timeout=60)
            service: Any = node._listener._app
            service._router.add("GET", "/.lbc/status", hangs)
            async with asyncio.timeout(HANGING_SECONDS / 2):
                await show_status(cluster, lbc.NodeSettings(), as_json=True)
            status = json.loads(capsys.readouterr().out)
            assert status["source"] == "store"
            assert status["leader_error"]
            assert UUID(status["leader"]["uuid"]) == node.id
            assert (await status_of(tmp_path, "--store-only"))["leader_error"] is None, "nobody was asked"


async def test_members_and_step_down_reach_a_leader_without_tls_only_when_told_so(tmp_path: Path) -> None:
    cluster = lbc.Cluster(tmp_path)
    await cluster.init("lol")
    settings = lbc.NodeSettings(tls="off")
    async with cluster.join(can_lead=True, address="127.0.0.1:0", settings=settings) as node:
        await node.wait_until_leader(timeout=60)
        for command in ("members", "step-down"):
            refused = await asyncio.to_thread(error_line, "-p", str(tmp_path), command)
            assert "over TLS with the cluster's certificates" in refused
        assert node.is_leader
        told = await asyncio.to_thread(output, "-p", str(tmp_path), "members", "--tls", "off", "--json")
        assert [each["id"] for each in json.loads(told)["members"]] == [str(node.id)]
        term = node.term
        await asyncio.to_thread(output, "-p", str(tmp_path), "step-down", "--tls", "off")
        await node.wait_until_leader(timeout=60)
        assert node.term > term


def test_half_of_an_own_certificate_is_refused_in_one_line(store: str, tmp_path: Path) -> None:
    file = tmp_path / "tls.crt"
    for command in (["members"], ["status"], ["step-down"], ["follower"]):
        assert "go together; given: tls_certificate" in error_line(
            "-p", store, *command, "--tls-certificate", str(file)
        )


def test_rotate_authority_says_what_happens_when_and_may_be_repeated(store: str) -> None:
    authorities = Path(store, ".lbc", "ca")
    first = output("-p", store, "rotate-authority").splitlines()
    assert first[0] == "Authority 2 is made; nodes go on meanwhile."
    moments = [datetime.fromisoformat(line[8:28]) for line in first[1:4]]
    made_at = datetime.now(UTC)
    for moment, minutes in zip(moments, (30, 30, 60), strict=True):
        assert abs(moment - made_at - timedelta(minutes=minutes)) < timedelta(seconds=30)
    second = output("-p", store, "rotate-authority").splitlines()
    assert second[0] == "Authority 2 is being introduced; nothing was changed."
    assert second[1:] == first[1:]
    assert sorted(each.name for each in authorities.iterdir()) == [f"{number:020}.json" for number in (1, 2)]
    assert "Authority 3 is made, and the former ones are deleted." in output(
        "-p", store, "rotate-authority", "--at-once"
    )
    assert [each.name for each in authorities.iterdir()] == [f"{3:020}.json"]
    for shown in (first, second):
        assert not [line for line in shown if "KEY" in line]


async def test_status_names_a_living_leader_and_its_beacon(tmp_path: Path) -> None:
    cluster = lbc.Cluster(tmp_path)
    await cluster.init("lol")
    before = json.loads(output("-p", str(tmp_path), "status", "--json"))
    assert (before["leader"], before["beacon"], before["term"]) == (None, None, 0)
    assert "none yet" in output("-p", str(tmp_path), "status")
    settings = lbc.NodeSettings(leader_timeout=0.3)
    async with cluster.join(can_lead=True, az="AZ7", settings=settings) as node:
        await node.wait_until_leader(timeout=60)
        async with asyncio.timeout(60):
            while (await cluster.status()).beacon is None:  # noqa: ASYNC110 - a store has no events
                await asyncio.sleep(0.02)
        status = json.loads(await asyncio.to_thread(output, "-p", str(tmp_path), "status", "--json"))
        assert UUID(status["leader"]["uuid"]) == node.id
        assert status["leader"]["az"] == "AZ7"
        assert (status["beacon"]["term"], status["beacon"]["epoch"]) == (1, 1)


def test_sql_prints_a_table(store: str) -> None:
    assert output("-p", store, "sql", "SELECT * FROM job") == (
        "┌────┬──────┐\n│ id │ name │\n├────┼──────┤\n│  1 │ one  │\n│  2 │ zwei │\n└────┴──────┘\n2 rows, at epoch 4\n"
    )


def test_sql_prints_json(store: str) -> None:
    query = "SELECT *, NULL AS n, x'00ff' AS b, 1e999 AS big, 1 AS id FROM job"
    rows = [json.loads(line) for line in output("-p", store, "sql", query, "--json").splitlines()]
    assert rows == [
        {"id": number, "name": name, "n": None, "b": {"hex": "00ff"}, "big": "inf", "id:2": 1}
        for number, name in [(1, "one"), (2, "zwei")]
    ]


def test_sql_cannot_steer_the_terminal(store: str) -> None:
    shown = output("-p", store, "sql", "SELECT 'a' || char(27) || '[2J' || char(13) AS \"x\x1b[2J\"")
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert r"a\x1b[2J\r" in shown


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELEC", "syntax error"),
        ("SELECT * FROM absent", "no such table: absent"),
        ("DELETE FROM job", "only for reading"),
        ("ATTACH 'x' AS y", "not allowed"),
        ("SELECT 1; SELECT 2", "one statement"),
    ],
)
def test_sql_that_fails_is_one_line(store: str, statement: str, reason: str) -> None:
    assert reason in error_line("-p", store, "sql", statement)


def test_log_lists_epochs_newest_last(store: str) -> None:
    entries = [json.loads(line) for line in output("-p", store, "log", "--json").splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    assert [entry["transactions"] for entry in entries] == [0, 1, 1, 0]
    assert [entry["leader"] is None for entry in entries] == [False, False, False, True]
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)
    sizes = [wal.stat().st_size for wal in sorted(Path(store, ".lbc").glob("*.wal"))]
    assert [entry["size_bytes"] for entry in entries] == sizes
    assert all(entry["term"] == 1 and entry["pages"] > 0 for entry in entries)
    lines = output("-p", store, "log").splitlines()
    assert len(lines) == 4 + len(entries)
    assert "released" in lines[-2]


def test_log_is_limited_to_the_newest(store: str) -> None:
    def epochs(*limit: str) -> list[int]:
        lines = output("-p", store, "log", "--json", *limit).splitlines()
        return [json.loads(line)["epoch"] for line in lines]

    assert epochs("--limit", "2") == [3, 4]
    assert epochs("--limit", "1") == [4]
    assert epochs("--limit", "100") == [1, 2, 3, 4]
    assert epochs("--limit", "0") == [1, 2, 3, 4]


def test_log_tells_the_tables_that_each_epoch_touched(store: str) -> None:
    def tables(*options: str) -> list[tuple[int, list[str]]]:
        entries = [json.loads(line) for line in output("-p", store, "log", "--json", "--tables", *options).splitlines()]
        return [(entry["epoch"], entry["tables"]) for entry in entries]

    everything = [(1, []), (2, ["(schema)", "job"]), (3, ["job"]), (4, [])]
    assert tables() == everything
    assert tables("--limit", "2") == everything[2:]
    assert tables("--since", "3", "--limit", "1") == everything[3:]
    assert tables("--term", "2") == []
    lines = output("-p", store, "log", "--tables").splitlines()
    assert lines[1].split()[-2] == "Tables"
    assert lines[4].split()[-3:] == ["(schema),", "job", "│"]
    (entry, *_) = output("-p", store, "log", "--json").splitlines()
    assert "tables" not in json.loads(entry), "only when asked for"


def test_log_of_a_new_cluster_says_so(tmp_path: Path) -> None:
    asyncio.run(init(tmp_path))
    assert output("-p", str(tmp_path), "log") == "no epochs yet: nobody has led this cluster\n"
    assert output("-p", str(tmp_path), "log", "--json") == ""


def test_reading_leaves_the_store_as_it_is(store: str) -> None:
    def everything() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in Path(store).rglob("*")}

    before = everything()
    for command in (["status"], ["status", "--store-only"], ["log"], ["sql", "SELECT 1"]):
        output("-p", store, *command)
    assert everything() == before


def test_a_damaged_object_is_named(store: str) -> None:
    wal = Path(store, ".lbc", f"{3:020}.wal")
    body = bytearray(wal.read_bytes())
    body[len(body) // 2] ^= 1
    wal.write_bytes(body)
    assert wal.name in error_line("-p", store, "sql", "SELECT 1")
    assert wal.name in error_line("-p", store, "log")


@pytest.mark.parametrize("command", [["status"], ["log"], ["sql", "SELECT 1"]])
def test_no_cluster_is_one_line(tmp_path: Path, command: list[str]) -> None:
    assert f"no cluster at file://{tmp_path}" in error_line("-p", str(tmp_path), *command)


def test_another_cluster_than_the_one_named_is_refused(store: str) -> None:
    assert 'not "other"' in error_line("--cluster", "other", "-p", store, "status")
    output("--cluster", "lol", "-p", store, "status")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["status"], "Give its store with -p, or in LBC_STORE (see lbc status --help)"),
        (["-p", "ftp://x", "status"], "ftp:// is not known"),
        (["nonsense"], "No such command 'nonsense'"),
        (["-p", "/x", "log", "--limit", "-1"], "--limit"),
        (["-p", "/x", "sql"], "Missing argument 'STATEMENT'"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], reason: str) -> None:
    assert reason in error_line(*arguments)


def test_the_store_may_come_from_the_environment(store: str) -> None:
    done = run("sql", "SELECT count(*) AS jobs FROM job", "--json", LBC_STORE=store)
    assert json.loads(done.stdout) == {"jobs": 2}


def test_a_traceback_is_shown_only_when_asked_for(tmp_path: Path) -> None:
    done = run("-v", "-p", str(tmp_path), "status")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: no cluster at")


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_error(store: str, rows: int) -> None:
    query = f"WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n LIMIT {rows}) SELECT i FROM n"
    process = subprocess.Popen(
        [*LBC, "-p", store, "sql", query, "--json"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1


def test_version_and_help() -> None:
    assert output("--version") == f"lbc {lbc.__version__}\n"
    assert output() == output("--help")
    script = Path(sys.executable).with_name("lbc")
    assert output("--version", program=[str(script)]) == f"lbc {lbc.__version__}\n"


def test_equal_column_names_get_numbers() -> None:
    assert _unique(["a", "b", "a", "a", "a:2"]) == ["a", "b", "a:2", "a:3", "a:2:2"]
