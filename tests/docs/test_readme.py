"""README.md: its programs run, its commands exist, its tables are complete."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import fastapi
import pytest
import uvicorn

import littlebigcluster as lbc
from littlebigcluster import errors
from littlebigcluster.cli import app
from littlebigcluster.clock import Clock
from littlebigcluster.store import open_store
from tests import buckets
from tests.docs.documents import DOCS, README, ROOT, blocks, code, table, words_in_backticks
from tests.servers import Server

PROGRAM, *SNIPPETS = blocks(README, "python")
OPERATING = DOCS / "OPERATING.md"
assert isinstance(app.cli, click.Group)
cli = app.cli
WRITTEN = ("ARCHITECTURE.md", "FORMAT.md", "OPERATING.md", "TESTING.md")
LASTING = ("leader", "follower", "demo")
BUILTINS = ("export", "curl")
QUICK = lbc.NodeSettings(epoch_interval=0)
PATIENCE_SECONDS = 90

# Programs


def test_the_first_program_runs_alone_and_again(tmp_path: Path) -> None:
    _, source = PROGRAM
    assert source.count("\n") <= 20
    for ids in ([1], [1, 2]):
        environment = {**os.environ, "LBC_ADDRESS": "127.0.0.1"}
        command = [sys.executable, "-W", "error", "-c", source]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert ast.literal_eval(done.stdout) == [(number, "hello") for number in ids]


@asynccontextmanager
async def scene() -> AsyncIterator[dict[str, Any]]:
    """What the snippets take for granted: a leader, some jobs, a write that is done."""
    cluster = lbc.Cluster("memory://")
    await cluster.init("readme")
    async with cluster.join(can_lead=True, address="127.0.0.1", settings=QUICK) as node:
        await node.wait_until_leader(timeout=PATIENCE_SECONDS)
        await node.executescript("CREATE TABLE job(id INTEGER PRIMARY KEY, name, worker); CREATE TABLE note(text);")
        done = await node.execute("INSERT INTO job(name) VALUES ('first')")
        yield {"lbc": lbc, "cluster": cluster, "node": node, "done": done}


async def run(line: int, source: str, names: dict[str, Any]) -> None:
    """A snippet; what it defines is in `names` then."""
    compiled = compile("\n" * (line - 1) + source, str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await (types.FunctionType(compiled, names)() or asyncio.sleep(0))


@pytest.mark.parametrize(("line", "source"), SNIPPETS, ids=[f"line{line}" for line, _ in SNIPPETS])
async def test_snippets_run(line: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    async with scene() as names, asyncio.timeout(PATIENCE_SECONDS):
        await run(line, source, names)


def snippet(word: str) -> tuple[int, str]:
    """The only one that holds this word."""
    ((line, source),) = [(line, source) for line, source in SNIPPETS if word in source]
    return line, source


async def curl(*arguments: str) -> tuple[dict[str, str], str]:
    """The headers and the body of an answer."""
    command = ["curl", "--silent", "--include", "--fail-with-body", "--max-time", "60", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    head, _, body = output.decode().replace("\r\n", "\n").partition("\n\n")
    return dict(line.split(": ", 1) for line in head.splitlines()[1:]), body


async def test_the_web_application_serves_strangers_on_the_port_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBC_ADDRESS", "127.0.0.1")
    async with scene() as names, asyncio.timeout(PATIENCE_SECONDS):
        await run(*snippet("def this_node"), names)
        async with names["joining"] as node:
            headers, _ = await curl("--insecure", "-X", "POST", f"https://{node.address}/jobs/second")
            assert int(headers["x-lbc-epoch"]) > names["done"].epoch
            _, body = await curl("--insecure", f"https://{node.address}/jobs")
            assert json.loads(body) == ["first", "second"]


async def test_a_web_server_of_ones_own_has_the_node_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBC_ADDRESS", "127.0.0.1")
    async with scene() as names, asyncio.timeout(PATIENCE_SECONDS):
        await run(*snippet("def lifespan"), names)

        @names["app"]._app.get("/jobs")
        async def jobs(request: fastapi.Request) -> list[Any]:
            return await request.state.lbc.read("SELECT name FROM job")

        server = uvicorn.Server(uvicorn.Config(names["app"], port=0, log_config=None))
        serving = asyncio.create_task(server.serve())
        try:
            while not server.started:
                assert not serving.done()
                await asyncio.sleep(0.01)
            host, port = server.servers[0].sockets[0].getsockname()
            headers, body = await curl(f"http://{host}:{port}/jobs")
        finally:
            server.should_exit = True
            await serving
        assert json.loads(body) == [["first"]]
        assert int(headers["x-lbc-epoch"]) >= names["done"].epoch


async def test_the_work_of_the_leader_goes_on_after_a_failover_and_is_done_once() -> None:
    async with scene() as names, asyncio.timeout(30):
        now = 0.0
        names |= {"asyncio": asyncio, "contextlib": contextlib, "time": types.SimpleNamespace(time=lambda: now)}
        await run(*snippet("def once_a_minute"), names)
        former = names["node"]
        await former.execute("CREATE TABLE done(minute INTEGER PRIMARY KEY)")
        async with names["cluster"].join(can_lead=True, address="127.0.0.1", settings=QUICK) as standby:
            doing = [asyncio.create_task(names["keep_doing"](node)) for node in (former, standby)]
            await done_in(standby, [0])
            await former.members.until(lambda members: members.get(standby.id))
            await former.step_down(to=standby.id)
            now = 60.0
            await done_in(standby, [0, 1])
            assert (standby.is_leader, former.is_leader) == (True, False)
            for task in doing:
                assert not task.done()
                task.cancel()
            await asyncio.wait(doing)


async def done_in(node: lbc.Node, minutes: list[int]) -> None:
    async for _ in node.epoch:
        if [minute for (minute,) in await node.read("SELECT minute FROM done ORDER BY minute")] == minutes:
            return


# Commands


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """(the line, its words without comments, without assignments in front) of all shell blocks."""
    found = []
    for _, block in blocks(document, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                del words[0]
            if words:
                found.append((line, words))
    return found


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def check_lbc(words: list[str]) -> None:
    context = click.Context(cli)
    rest = list(words)
    main = cli.make_context("lbc", rest, resilient_parsing=True)
    name, *arguments = [*main._protected_args, *main.args] if hasattr(main, "_protected_args") else main.args
    command = cli.get_command(context, name)
    assert command is not None, name
    command.make_context(name, arguments, parent=context)  # refuses what it does not know


def check(words: list[str]) -> None:
    match words[0]:
        case "make":
            check_make(words[1:])
        case "lbc":
            check_lbc(words[1:])
        case "python" if words[1] == "-m":
            assert find_spec(words[2])
        case "python" | "bash" | ".venv/bin/python":
            assert (ROOT / words[1]).exists()
        case name:
            assert name in BUILTINS, f"no check for {name}"


@pytest.mark.parametrize(("line", "words"), commands(README), ids=[line.split("  ")[0] for line, _ in commands(README)])
def test_shell_commands_exist(line: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize("document", [README, *(DOCS / name for name in WRITTEN)], ids=lambda path: path.name)
def test_commands_in_the_text_exist(document: Path) -> None:
    spans = [span.split() for span in words_in_backticks(document)]
    for words in [words for words in spans if words[0] in ("make", "lbc", "python", "bash") and words[1:]]:
        if words[0] == "lbc":
            assert words[1].startswith("-") or words[1] in cli.commands, words
        else:
            check(words)


def test_the_command_line_as_shown_works(tmp_path: Path) -> None:
    ((_, shown),) = [block for block in blocks(README, "sh") if "LBC_STORE" in block[1]]
    environment = {**os.environ, "LBC_STORE": str(tmp_path / "store")}
    running: list[subprocess.Popen[str]] = []
    try:
        for line in shown.splitlines():
            words = shlex.split(line, comments=True)
            if words[0] != "lbc":
                continue
            command = [sys.executable, "-m", "littlebigcluster", *words[1:]]
            if words[1] in LASTING:
                running.append(_start(command, environment, "Waiting for" if words[1] == "leader" else "Joined"))
                continue
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
            )
            assert (done.returncode, done.stderr) == (0, ""), line
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.communicate(timeout=PATIENCE_SECONDS)


def _start(command: list[str], environment: dict[str, str], until: str) -> subprocess.Popen[str]:
    """A process that goes on, after it has said so."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and until not in line:
        pass
    while until.startswith("Waiting") and (line := process.stdout.readline()) and "We are the new leader" not in line:
        pass
    assert line
    return process


# Tables


def test_every_error_is_explained() -> None:
    explained = [code(row["error"]) for row in table(README, "Errors")]
    classes = [
        value.__name__
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.LbcError) and value is not errors.LbcError
    ]
    assert explained == classes


@pytest.mark.parametrize("document", [README, OPERATING], ids=lambda path: path.name)
def test_locations_can_be_opened(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for row in table(document, "Stores"):
        for location in re.findall(r"`([a-z0-9]+://[^`]*)`", row["location"]):
            assert open_store(location, clock=Clock()).url.startswith(location.split("://")[0])


@pytest.mark.server("ministack")
def test_another_server_is_reached_as_shown(ministack: Server) -> None:
    """Both ways of the README: the endpoint in the location, and in the environment."""
    access_key, secret_key = buckets.S3_KEYS["ministack"]
    keys = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "AWS_REGION": "us-east-1"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    shown = [line for line, words in commands(README) if "s3://bucket/prefix" in line and words[0] == "lbc"]
    assert len(shown) == 2
    for line in shown:
        bucket = buckets.new_bucket(ministack)
        words = shlex.split(line.replace("http://127.0.0.1:9000", ministack.endpoint).replace("bucket", bucket, 1))
        given = dict(word.split("=", 1) for word in words if word.startswith("AWS_"))
        options = [word for word in words if not word.startswith("AWS_")][1:-1]
        for last in ("init", "status"):
            command = [sys.executable, "-m", "littlebigcluster", *options, last]
            done = subprocess.run(
                command,
                env={**clean, **keys, **given},
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_SECONDS,
            )
            assert (done.returncode, done.stderr) == (0, ""), line
