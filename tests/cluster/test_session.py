"""A web session reads what it has written, on whichever node its next request arrives."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

import littlebigcluster as lbc
from littlebigcluster.net import ASGIApp, Message, Receive, Scope, Send
from tests.cluster.group import HUGE, Group, all_fed, eventually, group
from tests.scenarios.stage import WAIT, Gate, memory

QUIET = {"leader_timeout": 20.0}
Endpoint = Callable[[lbc.Node], Awaitable[Any]]


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


@dataclass(frozen=True)
class Answered:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, self.headers
        return found[0] if found else None

    @property
    def epoch(self) -> int:
        return int(self.header("x-lbc-epoch") or -1)

    def json(self) -> Any:
        return json.loads(self.body)


def answering(endpoint: Endpoint, headers: list[tuple[bytes, bytes]] | None = None) -> ASGIApp:
    """An application that answers with what `endpoint` returns, as JSON."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        value = await endpoint(scope["state"]["lbc"])
        await send({"type": "http.response.start", "status": 200, "headers": headers or []})
        await send({"type": "http.response.body", "body": json.dumps(value).encode()})

    return app


async def ask(app: ASGIApp, node: lbc.Node, *headers: tuple[str, str]) -> Answered:
    """What the application answers on this node."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": raw, "state": {"lbc": node}}
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answered(sent[0]["status"], [(k.decode(), v.decode()) for k, v in sent[0]["headers"]], body)


async def jobs(node: lbc.Node) -> list[Any]:
    return [name for (name,) in await node.read("SELECT name FROM job ORDER BY rowid")]


async def jobs_by_connection(node: lbc.Node) -> list[Any]:
    with node.connection() as db:
        return [name for (name,) in db.execute("SELECT name FROM job ORDER BY rowid")]


async def insert(node: lbc.Node) -> int:
    return (await node.execute("INSERT INTO job VALUES ('new')")).epoch


async def leader_and_straggler(g: Group, **settings: Any) -> tuple[lbc.Node, lbc.Node, Gate]:
    """A leader, and a follower that gets no epochs while the gate is shut, as it is."""
    gate = Gate(g.store)
    a = await g.leader(settings=QUIET)
    b = await g.node(store=gate, settings={**QUIET, "poll_interval": HUGE, **settings})
    await all_fed(b)
    await eventually(lambda: b.epoch.value == a.epoch.value)
    await g.unfeed(b, a)
    gate.shut()
    return a, b, gate


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [jobs, jobs_by_connection])
@pytest.mark.parametrize("by", ["header", "cookie"])
async def test_a_session_reads_its_write_on_a_node_that_is_behind(g: Group, read: Endpoint, by: str) -> None:
    a, b, gate = await leader_and_straggler(g)
    app = lbc.ReadYourWrites(answering(read), cookie=True, timeout=30)
    written = await ask(lbc.ReadYourWrites(answering(insert), cookie=True), a)
    assert written.epoch == written.json() > b.epoch.value
    assert (await ask(app, b)).json() == [], "nobody else has to wait"
    cookie = (written.header("set-cookie") or "").partition(";")[0]
    shown = ("x-lbc-epoch", str(written.epoch)) if by == "header" else ("cookie", cookie)
    reading = asyncio.create_task(ask(app, b, shown))
    done, _ = await asyncio.wait([reading], timeout=1.5)
    assert not done
    gate.open()
    answer = await asyncio.wait_for(reading, 10)
    assert (answer.json(), answer.epoch) == (["new"], written.epoch)


async def test_a_node_that_stays_behind_says_so_in_time(g: Group) -> None:
    a, b, _ = await leader_and_straggler(g)
    epoch = await insert(a)
    app = lbc.ReadYourWrites(answering(jobs), timeout=0.8)
    async with asyncio.timeout(WAIT):
        answer = await ask(app, b, ("x-lbc-epoch", str(epoch)))
    assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert answer.header("content-type") == "application/json"
    told = answer.json()
    assert told == {"error": told["error"], "epoch": b.epoch.value}
    assert "behind" in told["error"]


async def test_what_was_only_read_is_not_unread_on_the_next_node(g: Group) -> None:
    a, b, _ = await leader_and_straggler(g)
    await insert(a)
    app = lbc.ReadYourWrites(answering(jobs), timeout=0.2)
    seen = await ask(app, a)
    assert (seen.json(), seen.epoch) == (["new"], a.epoch.value)
    assert (await ask(app, b, ("x-lbc-epoch", str(seen.epoch)))).status == 503


async def test_a_write_that_is_durable_but_not_visible_here_yet_is_in_the_header(g: Group) -> None:
    a, b, _ = await leader_and_straggler(g, write_timeout=2.0)
    answer = await ask(lbc.ReadYourWrites(answering(insert)), b)
    assert answer.json() == a.epoch.value > b.epoch.value
    assert answer.epoch == answer.json()


async def test_sessions_that_hop_between_nodes_always_see_their_own_writes(g: Group) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        node, name = scope["state"]["lbc"], scope["path"]
        if scope["method"] == "POST":
            await node.execute("INSERT INTO job VALUES (?)", (name,))
        ((count,),) = await node.read("SELECT count(*) FROM job WHERE name = ?", (name,))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % count})

    a = await g.leader(app=lbc.ReadYourWrites(app), settings=QUIET)
    nodes = [a, *[await g.node(app=lbc.ReadYourWrites(app), settings=QUIET) for _ in range(2)]]
    await all_fed(*nodes[1:])
    clients = [a._listener.connect(node.address) for node in nodes]

    async def session(name: str, seed: int) -> None:
        dice, headers = random.Random(seed), {}
        for count in range(1, 9):
            for method in ("POST", "GET", "GET"):
                answer = await dice.choice(clients).request(method, name, headers=headers)
                assert (answer.status, answer.body) == (200, b"%d" % count)
                assert int(answer.headers["x-lbc-epoch"]) >= int(headers.get("x-lbc-epoch", 0))
                headers = {"x-lbc-epoch": answer.headers["x-lbc-epoch"]}

    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as sessions:
            for number in range(12):
                sessions.create_task(session(f"/{number}", number))
    finally:
        for client in clients:
            await client.close()


# -- what comes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "x", "-1", "+1", "1.5", "0x10", "1 2", "1,x", ",", "1_0", "٣", "9" * 21, "1e3"])
async def test_what_is_no_epoch_is_refused(g: Group, value: str) -> None:
    a = await g.leader(settings=QUIET)
    answer = await ask(lbc.ReadYourWrites(answering(insert)), a, ("x-lbc-epoch", value))
    assert answer.status == 400
    assert "x-lbc-epoch" in answer.json()["error"]
    assert await jobs(a) == []


@pytest.mark.parametrize("ahead", [1, 10**6, 10**20 - 1])
@pytest.mark.parametrize("by", ["header", "cookie"])
async def test_an_epoch_ahead_of_the_whole_log_is_forgotten(g: Group, ahead: int, by: str) -> None:
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    await insert(a)
    app = lbc.ReadYourWrites(answering(jobs), cookie=True, timeout=600)
    token = str(min(a.epoch.value + ahead, 10**20 - 1))
    shown = ("x-lbc-epoch", token) if by == "header" else ("cookie", f"lbc-epoch={token}")
    for node in (a, b):
        async with asyncio.timeout(WAIT):
            answer = await ask(app, node, shown)
        assert (answer.status, answer.json(), answer.epoch) == (200, ["new"], a.epoch.value)
        assert f"lbc-epoch={a.epoch.value};" in (answer.header("set-cookie") or ""), "the browser has to forget it, too"


async def test_without_the_store_nobody_can_tell_what_is_ahead_of_the_log(g: Group) -> None:
    gate = Gate(g.store)
    a = await g.leader(store=gate, settings=QUIET)
    gate.shut()
    app = lbc.ReadYourWrites(answering(jobs), timeout=1)
    async with asyncio.timeout(WAIT):
        assert (await ask(app, a, ("x-lbc-epoch", "99"))).status == 503
        assert (await ask(app, a)).status == 200
    gate.open()


async def test_the_largest_of_several_counts(g: Group) -> None:
    a, b, _ = await leader_and_straggler(g)
    here, there = str(b.epoch.value), str(await insert(a))
    app = lbc.ReadYourWrites(answering(jobs), cookie=True, timeout=0.1)
    header, cookie = "x-lbc-epoch", "cookie"
    assert (await ask(app, b, (header, here), (cookie, f"lbc-epoch={here}"))).status == 200
    for behind in (
        [(header, here), (header, there)],
        [(header, f"{there}, {here}")],
        [(header, here), (cookie, f"lbc-epoch={there}")],
        [(header, there), (cookie, f"lbc-epoch={here}")],
        [(cookie, f"a=1; lbc-epoch={there}; b=2"), (cookie, "c=3")],
        [(cookie, "c=3"), (cookie, f"lbc-epoch={there}")],
    ):
        assert (await ask(app, b, *behind)).status == 503, behind


@pytest.mark.parametrize("value", ["lbc-epoch=x", "lbc-epoch", "lbc-epoch=", "=;;=", "lbc-epoch=-1", "xlbc-epoch=99"])
async def test_a_damaged_cookie_is_replaced(g: Group, value: str) -> None:
    a = await g.leader(settings=QUIET)
    answer = await ask(lbc.ReadYourWrites(answering(jobs), cookie=True), a, ("cookie", value))
    assert answer.status == 200
    assert answer.header("set-cookie") == f"lbc-epoch={a.epoch.value}; Path=/; HttpOnly; SameSite=Lax"


# -- what goes out -----------------------------------------------------------------------------------------------------


async def test_a_cookie_is_set_only_when_asked_for_and_when_it_is_new(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    cookie = ("cookie", f"lbc-epoch={a.epoch.value}")
    assert (await ask(lbc.ReadYourWrites(answering(jobs)), a)).header("set-cookie") is None
    assert (await ask(lbc.ReadYourWrites(answering(jobs), cookie=True), a, cookie)).header("set-cookie") is None
    ignored = await ask(lbc.ReadYourWrites(answering(jobs), timeout=0.1), a, ("cookie", "lbc-epoch=99"))
    assert ignored.status == 200


async def test_headers_of_the_application_stay_and_a_larger_epoch_of_its_own_counts(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    for given, sent in ((0, a.epoch.value), (77, 77)):
        own = [(b"content-type", b"application/json"), (b"X-LBC-Epoch", b"%d" % given), (b"set-cookie", b"x=1")]
        answer = await ask(lbc.ReadYourWrites(answering(jobs, own)), a)
        assert answer.headers == [
            ("content-type", "application/json"),
            ("set-cookie", "x=1"),
            ("x-lbc-epoch", str(sent)),
        ]


async def test_a_stream_names_the_epoch_of_its_beginning_and_later_writes_do_no_harm(g: Group) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        node = scope["state"]["lbc"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in (True, False):
            await send({"type": "http.response.body", "body": b"%d " % await insert(node), "more_body": more})
        await insert(node)  # a background task, after the answer

    a = await g.leader(settings=QUIET)
    before = a.epoch.value
    answer = await ask(lbc.ReadYourWrites(app), a)
    assert answer.epoch == before
    assert answer.body.split() == [b"%d" % (before + 1), b"%d" % (before + 2)]
    assert await jobs(a) == ["new"] * 3


async def test_parallel_requests_do_not_share_their_writes(g: Group) -> None:
    """On a node that is behind: each names what it has written or seen itself."""
    a, b, _ = await leader_and_straggler(g, write_timeout=2.0)
    behind = b.epoch.value
    writing, reading = await asyncio.gather(
        ask(lbc.ReadYourWrites(answering(insert)), b), ask(lbc.ReadYourWrites(answering(jobs)), b)
    )
    assert (writing.epoch, reading.epoch) == (a.epoch.value, behind)
    assert (await ask(lbc.ReadYourWrites(answering(jobs)), b)).epoch == behind


async def test_writes_of_tasks_and_threads_of_a_request_are_its_own(g: Group) -> None:
    async def app(node: lbc.Node) -> int:
        loop = asyncio.get_running_loop()

        def in_thread() -> int:
            return asyncio.run_coroutine_threadsafe(insert(node), loop).result()

        first = await asyncio.create_task(insert(node))
        return max(first, await asyncio.to_thread(in_thread))

    a, b, _ = await leader_and_straggler(g, write_timeout=2.0)
    answer = await ask(lbc.ReadYourWrites(answering(app)), b)
    assert answer.epoch == answer.json() == a.epoch.value > b.epoch.value


# -- what it leaves alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope, receive, send])

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": kind, "headers": [(b"x-lbc-epoch", b"x")]}
    await lbc.ReadYourWrites(app)(scope, receive, send)
    assert seen == [scope, receive, send]
    assert seen[0] is scope
    assert scope == {"type": kind, "headers": [(b"x-lbc-epoch", b"x")]}


async def test_without_a_node_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=re.escape("cluster.join(app=")):
        await ask(lbc.ReadYourWrites(answering(jobs)), None)  # type: ignore[arg-type]


async def test_a_node_that_has_stopped_answers_503_to_who_has_seen_more() -> None:
    async with group(memory()) as g:
        a = await g.leader(settings=QUIET)
        await g.leave(a)
        assert (await ask(lbc.ReadYourWrites(answering(jobs)), a, ("x-lbc-epoch", "99"))).status == 503
