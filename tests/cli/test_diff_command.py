"""diff: what changed between two points, for people and for programs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import littlebigcluster as lbc
from littlebigcluster.cli.diff import shown
from tests.cli.programs import error_line, output


async def lived(path: Path) -> None:
    """Epoch 2 makes the tables, 3 fills them, 4 changes them, 5 changes the schema, 6 is the release."""
    cluster = lbc.Cluster(path)
    await cluster.init("lol")
    async with cluster.join(can_lead=True, settings=lbc.NodeSettings(epoch_interval=0)) as node:
        await node.wait_until_leader(timeout=30)
        await node.executescript("CREATE TABLE job(id INTEGER PRIMARY KEY, name, data); CREATE TABLE log(line)")
        await node.executescript("""
            INSERT INTO job VALUES (1, 'one', x'00'), (2, 'two', NULL), (3, 'three', 3.0);
            INSERT INTO log VALUES ('a'), ('b'), ('c'), ('d');
        """)
        await node.executescript("""
            UPDATE job SET name = 'zwei' || char(27) || char(10), data = zeroblob(1000) WHERE id = 2;
            UPDATE job SET data = 3 WHERE id = 3;
            DELETE FROM job WHERE id = 1; INSERT INTO job VALUES (4, 'four', CAST(x'ff' AS TEXT)); DELETE FROM log;
        """)
        await node.executescript(
            "ALTER TABLE job ADD COLUMN more; DROP TABLE log; CREATE INDEX job_name ON job(name);"
            "PRAGMA user_version = 7"
        )


@pytest.fixture
def store(tmp_path: Path) -> str:
    asyncio.run(lived(tmp_path / "store"))
    return str(tmp_path / "store")


def lines(*arguments: str) -> list[Any]:
    return [json.loads(line) for line in output(*arguments, "--json").splitlines()]


def test_diff_shows_the_schema_a_summary_and_the_rows(store: str) -> None:
    shown = output("-p", store, "diff", "--from", "3", "--to", "4", "--limit", "3").splitlines()
    assert shown[0].startswith("From epoch 3 (20")
    assert "Z) to epoch 4 (20" in shown[0]
    assert "│ job   │     1 │       1 │       2 │" in shown
    assert "│ log   │     0 │       4 │       0 │" in shown
    zeros = "00" * 16
    assert shown[shown.index("job") :] == [
        "job",
        "- id 1, name 'one', data x'00'",
        rf"~ id 2: name 'two' -> 'zwei\x1b\n', data NULL -> x'{zeros}… (1000 B)'",
        "~ id 3: data 3.0 -> 3",
        "  and 1 row more",
        "",
        "log",
        "- rowid 1, line 'a'",
        "- rowid 2, line 'b'",
        "- rowid 3, line 'c'",
        "  and 1 row more",
    ]
    everything = output("-p", store, "diff", "--from", "3", "--to", "4", "--limit", "0").splitlines()
    assert r"+ id 4, name 'four', data '\udcff'" in everything
    assert not any("more" in line for line in everything)


def test_diff_tells_what_changed_in_the_schema(store: str) -> None:
    shown = output("-p", store, "diff", "--from", "3").splitlines()  # to now
    assert " to epoch 6 (" in shown[0]
    schema = ["created index job_name", "altered table job", "dropped table log", "user_version 0 -> 7"]
    assert shown[1:5] == schema
    assert "│ job   │     1 │       1 │       2 │ with new more │" in shown
    assert "│ log   │     0 │       4 │       0 │ dropped       │" in shown
    back = output("-p", store, "diff", "--from", "0s", "--to", "3", "--table", "LOG").splitlines()
    assert back[1] == "created table log"
    assert "+ line 'a'" in "\n".join(back).replace("rowid 1, ", "")
    assert "job" not in back[-1]


def test_diff_prints_json(store: str) -> None:
    ends, *found = lines("-p", store, "diff", "--from", "3", "--to", "6", "--table", "job")
    assert (ends["from"]["epoch"], ends["to"]["epoch"]) == (3, 6)
    assert (ends["from"]["user_version"], ends["to"]["user_version"]) == (0, 7)
    index, altered, table, *rows = found
    assert index == {
        "schema": "created", "type": "index", "name": "job_name",
        "old": None, "new": "CREATE INDEX job_name ON job(name)",
    }  # fmt: skip
    assert (altered["schema"], altered["name"]) == ("altered", "job")
    assert table == {
        "table": "job", "added": 1, "removed": 1, "changed": 2, "key": ["id"], "unreadable": None,
        "columns_before": ["id", "name", "data"], "columns_after": ["id", "name", "data", "more"],
    }  # fmt: skip
    assert rows == [
        {"row": "removed", "table": "job", "old": {"id": 1, "name": "one", "data": {"hex": "00"}}, "new": None},
        {
            "row": "changed", "table": "job", "key": {"id": 2},
            "old": {"name": "two", "data": None}, "new": {"name": "zwei\x1b\n", "data": {"hex": "00" * 1000}},
        },
        {"row": "changed", "table": "job", "key": {"id": 3}, "old": {"data": 3.0}, "new": {"data": 3}},
        {
            "row": "added", "table": "job",
            "old": None, "new": {"id": 4, "name": "four", "data": {"hex": "ff"}, "more": None},
        },
    ]  # fmt: skip
    assert [type(row["new"]["data"]) for row in rows if row.get("key") == {"id": 3}] == [int]


def test_states_that_do_not_differ(store: str) -> None:
    assert output("-p", store, "diff", "--from", "5", "--to", "6").splitlines()[1:] == ["Nothing differs."]


def test_what_cannot_be_compared_is_one_line(store: str) -> None:
    diff = ("-p", store, "diff")
    assert 'there is no table "x" in either state' in error_line(*diff, "--from", "3", "--table", "x")
    assert "epoch 99 is not in the log, which goes from" in error_line(*diff, "--from", "99")
    assert "'soon' is not an epoch (1234) or a date" in error_line(*diff, "--from", "soon")
    assert "Missing option '--from'" in error_line(*diff)


def test_values_are_shown_as_sql_writes_them_and_short() -> None:
    assert [shown(value) for value in (None, 1, 1.0, "it's", b"\x01", float("inf"))] == [
        "NULL", "1", "1.0", "'it''s'", "x'01'", "9e999",
    ]  # fmt: skip
    assert shown("x" * 1000) == f"'{'x' * 60}… (1,000 characters)'"
