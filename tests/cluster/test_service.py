"""What a node serves: its own routes, the application's, and what it does with requests that are wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from littlebigcluster import Node
from littlebigcluster.clock import Clock
from littlebigcluster.cluster.certificates import load_authorities
from littlebigcluster.errors import LbcError, PeerUnavailable
from littlebigcluster.net import Client, Receive, Scope, Send, bundle, routes
from tests.cluster.group import Group, all_fed, eventually, group, member_client, report
from tests.docs.documents import DOCS, code, table
from tests.ports import free_port
from tests.scenarios.stage import WAIT

QUIET = {"leader_timeout": 20.0}


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


class App:
    """Answers with what it sees; remembers its life."""

    def __init__(self, name: str = "app", *, refuses: str = "") -> None:
        self.name, self.refuses = name, refuses
        self.life: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        node: Node = scope["state"]["lbc"]
        seen = {
            "app": self.name,
            "path": scope["path"],
            "root_path": scope.get("root_path", ""),
            "node": str(node.id),
            "leads": node.is_leader,
            "state": scope["state"].get(self.name),
            "from": next((value.decode() for key, value in scope["headers"] if key == b"x-lbc-from"), None),
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        if self.refuses:
            await send({"type": "lifespan.startup.failed", "message": self.refuses})
            return
        scope["state"][self.name] = "of the lifespan"
        self.life.append("started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.life.append("ended")
        await send({"type": "lifespan.shutdown.complete"})


@contextlib.asynccontextmanager
async def client_of(node: Node, by: Node) -> AsyncIterator[Client]:
    """How one node reaches another."""
    client = by._listener.connect(node.address)
    yield client
    await client.close()


async def get(node: Node, by: Node, path: str, **headers: str) -> tuple[int, Any, Any]:
    async with client_of(node, by) as client:
        answer = await client.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        return answer.status, answer.json(), answer.headers


# -- the cluster as each node shows it ---------------------------------------------------------------------------------


async def test_every_node_sees_all_members_with_all_they_say_of_themselves(g: Group) -> None:
    a = await g.leader(az="1", roles=["front"], settings=QUIET)
    b = await g.node(az="2", roles=["worker", "front"], metadata={"gpus": 2, "names": ["ä"]}, settings=QUIET)
    c = await g.node(can_lead=True, settings=QUIET)
    epoch = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    for node in (a, b, c):
        await eventually(lambda node=node: [each.epoch for each in node.members.value] == [epoch] * 3)
        members = node.members.value
        assert [each.id for each in members] == [a.id, b.id, c.id]
        assert [each.id for each in members.with_role("front")] == [a.id, b.id]
        seen = members.get(b.id)
        assert seen is not None
        assert (seen.az, seen.roles, seen.metadata) == ("2", ("worker", "front"), {"gpus": 2, "names": ["ä"]})
        assert (seen.can_lead, seen.address) == (False, b.address)
        assert seen.version
        third = members.get(c.id)
        assert third is not None
        assert third.can_lead
    assert a.members.value.number == b.members.value.number == c.members.value.number


async def test_new_metadata_of_any_node_is_seen_by_all(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    c = await g.node(settings=QUIET)
    await all_fed(b, c)
    for number, node in enumerate((a, b, c)):
        given = {"number": number}
        node.set_metadata(given)
        given["number"] = 99  # what was given is the caller's
        for other in (a, b, c):
            await eventually(lambda other=other, node=node: other.members.value.get(node.id) is not None)
            await eventually(
                lambda other=other, node=node, number=number: (
                    other.members.value.get(node.id).metadata == {"number": number}
                ),
            )
    for wrong in ({"x": "y" * 5000}, {"x": float("nan")}, json.loads("[" * 100 + "]" * 100), {"x": object()}, "text"):
        with pytest.raises((ValueError, TypeError)):
            a.set_metadata(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("member_timeout", [600, 1])
async def test_who_leaves_is_gone_at_once_and_who_vanishes_is_gone_after_its_time(
    g: Group, member_timeout: float
) -> None:
    settings = {**QUIET, "member_timeout": member_timeout}
    a = await g.leader(settings=settings)
    b, c, d = [await g.node(settings=settings) for _ in range(3)]
    await eventually(lambda: len(d.members.value) == 4)
    await g.crash(c)
    await g.leave(b)
    if member_timeout == 600:
        await eventually(lambda: [each.id for each in d.members.value] == [a.id, c.id, d.id])
    else:
        await eventually(lambda: [each.id for each in d.members.value] == [a.id, d.id])


async def test_a_leader_that_leaves_is_not_on_the_list_of_the_next_one(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    b = await g.node(can_lead=True, settings=QUIET)
    await eventually(lambda: len(b.members.value) == 2)
    await g.leave(a)
    await b.wait_until_leader(timeout=WAIT)
    assert [each.id for each in b.members.value] == [b.id]


async def test_a_node_that_comes_back_at_its_address_is_a_new_member(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET, address=f"127.0.0.1:{free_port()}")
    await eventually(lambda: len(a.members.value) == 2)
    address = b.address
    await g.crash(b)
    again = await g.node(settings=QUIET, address=address)
    await eventually(lambda: a.members.value.get(again.id))
    assert again.id != b.id
    assert a.members.value.get(b.id), "until it expires"


async def test_status_tells_what_the_node_knows(g: Group) -> None:
    a = await g.leader(az="1", settings=QUIET)
    b = await g.node(roles=["x"], settings=QUIET)
    await eventually(lambda: len(a.members.value) == len(b.members.value) == 2)
    for node in (a, b):
        status, told, headers = await get(node, a, "/.lbc/status")
        assert (status, headers["content-type"]) == (200, "application/json")
        original = {"cluster_id", "this", "roles", "leader", "epoch", "last_update", "snapshot_epoch", "members"}
        assert set(told) == original | {"database_size_bytes", "term", "is_leader"}
        documented = table(DOCS / "OPERATING.md", "Status")
        assert set(told) == {code(row["field"]) for row in documented if row["`GET /.lbc/status`"]}
        assert told["cluster_id"] == "lol"
        assert told["this"]["id"] == str(node.id)
        assert told["roles"] == told["this"]["roles"] == list(node.roles)
        assert told["is_leader"] == (node is a)
        assert told["leader"]["uuid"] == str(a.id)
        assert told["leader"]["address"] == a.address
        assert (told["epoch"], told["term"], told["snapshot_epoch"]) == (a.epoch.value, 1, 0)
        assert told["database_size_bytes"] == (await node.read("PRAGMA page_count"))[0][0] * 4096
        stamped = await node.read("SELECT value FROM _lbc WHERE key = 'last_update'")
        late = datetime.fromisoformat(told["last_update"]) - datetime.fromisoformat(stamped[0][0])
        assert timedelta() <= late < timedelta(seconds=5), "stamped inside, then closed"
        assert [each["id"] for each in told["members"]["members"]] == [str(a.id), str(b.id)]


# -- the application ---------------------------------------------------------------------------------------------------


async def test_the_application_is_served_by_all_and_reaches_the_node(g: Group) -> None:
    apps = [App(), App()]
    a = await g.leader(app=apps[0], settings=QUIET)
    b = await g.node(app=apps[1], settings=QUIET)
    for node in (a, b):
        status, seen, _ = await get(node, a, "/any/where")
        assert status == 200
        assert seen == {
            "app": "app", "path": "/any/where", "root_path": "", "node": str(node.id), "leads": node is a,
            "state": "of the lifespan", "from": str(a.id),
        }  # fmt: skip
    assert [app.life for app in apps] == [["started"], ["started"]]
    await g.close()
    assert [app.life for app in apps] == [["started", "ended"], ["started", "ended"]]


async def test_the_leaders_application_answers_on_the_leader_and_elsewhere_says_who_leads(g: Group) -> None:
    a = await g.leader(leader_app=App("boss"), settings=QUIET)
    b = await g.node(leader_app=App("boss"), can_lead=True, settings=QUIET)
    await all_fed(b)
    status, seen, _ = await get(a, b, "/x")
    assert (status, seen["app"], seen["path"], seen["leads"], seen["state"]) == (
        200, "boss", "/x", True, "of the lifespan",
    )  # fmt: skip
    status, told, headers = await get(b, a, "/x")
    assert status == 503
    assert told["leader"] == {"uuid": str(a.id), "address": a.address, "az": ""}
    assert int(headers["retry-after"]) >= 1
    await g.leave(a)
    await b.wait_until_leader(timeout=WAIT)
    status, seen, _ = await get(b, b, "/x")
    assert (status, seen["node"]) == (200, str(b.id))


async def test_both_applications_live_side_by_side(g: Group) -> None:
    app, boss = App(), App("boss")
    a = await g.leader(app=app, leader_app=boss, settings=QUIET)
    b = await g.node(app=App(), leader_app=App("boss"), settings=QUIET)
    for path, name, root in (("/x", "app", ""), ("/leader", "boss", "/leader"), ("/leader/x", "boss", "/leader")):
        status, seen, _ = await get(a, b, path)
        assert (status, seen["app"], seen["root_path"]) == (200, name, root)
        assert seen["state"] == "of the lifespan"
    assert (await get(b, a, "/leader/x"))[0] == 503
    assert (await get(b, a, "/leaders"))[1]["app"] == "app"
    await g.close()
    assert app.life == boss.life == ["started", "ended"]


@pytest.mark.parametrize("which", ["app", "leader_app", "both"])
async def test_an_application_that_refuses_to_start_fails_the_join_with_its_words(g: Group, which: str) -> None:
    fine = App("fine")
    apps = {"app": fine, "leader_app": App("boss", refuses="no licence")} if which == "both" else {}
    with pytest.raises(RuntimeError, match="no licence"):
        await g.node(**apps or {which: App(refuses="no licence")})
    assert fine.life in ([], ["started", "ended"])


async def test_without_an_application_there_is_nothing(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    assert (await get(a, a, "/"))[0] == 404


@pytest.mark.parametrize("path", ["/", "/.lbc/status", "/.lbc/ping", "/leader"])
async def test_a_request_for_another_node_is_misdirected(g: Group, path: str) -> None:
    a = await g.leader(app=App(), leader_app=App("boss"), settings=QUIET)
    b = await g.node(settings=QUIET)
    assert (await get(a, b, path, x_lbc_to=str(b.id)))[0] == 421
    assert (await get(a, b, path, x_lbc_to=str(a.id)))[0] == 200
    assert (await get(a, b, path))[0] == 200


async def test_anyone_may_reach_the_application_when_told_so_but_not_the_librarys_routes(g: Group) -> None:
    settings = {**QUIET, "clients": "anyone"}
    a = await g.leader(app=App(), leader_app=App("boss"), settings=settings)
    b = await g.node(settings=settings)
    await all_fed(b)
    authorities = (await load_authorities(g.store)).all
    nobody = await browser(bundle(authorities), a, "/x", "/leader", "/.lbc/status", "/.lbc/feed", "/%2elbc/status")
    assert nobody == [200, 200, 401, 401, 401]
    for path in ("/.lbc/status", "/x"):
        assert (await get(a, b, path))[0] == 200


async def browser(ca: str, node: Node, *paths: str) -> list[int]:
    """The answers to a client without a certificate. curl speaks HTTP/2."""
    statuses = []
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(ca)
        file.flush()
        for path in paths:
            curl = await asyncio.create_subprocess_exec(
                "curl", "-s", "--http2", "--path-as-is", "--cacert", file.name, "-o", "/dev/null", "-w",
                "%{http_code}", "-m", "60", f"https://{node.address}{path}", stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await curl.communicate()
            statuses.append(int(out))
    return statuses


# -- requests that are wrong -----------------------------------------------------------------------------------------


LONG = "x" * 20_000
JSONS: list[Any] = [
    None, True, 5, -1, 1.5, "", "x", LONG, [], [[]], {}, {"member": None}, {"session": "s"}, {"to": 5}, {"to": "x"},
    {"to": []}, {"key": 5}, {"key": "k" * 20}, {"key": "k" * 20, "kind": "nothing"}, {"key": "k" * 20, "kind": LONG},
    {"key": "k" * 20, "kind": "execute"}, {"key": "k" * 20, "kind": "execute", "arguments": 5},
    {"key": "k" * 20, "kind": "execute", "arguments": [5, 5]}, {"key": "k" * 20, "kind": "execute", "arguments": ["x"]},
    {"key": "k" * 20, "kind": "execute", "arguments": ["SELECT ?", [{"a": 1}]]},
    {"key": "k" * 20, "kind": "execute", "arguments": ["SELECT ?", [1 << 70]]},
    {"key": "k" * 20, "kind": "execute", "arguments": ["SELECT '\ud800'", []]},
    {"key": "k" * 20, "kind": "many", "arguments": [1, 2, 3]}, {"key": "k" * 20, "kind": "script", "arguments": [1]},
    {"key": "k" * 20, "kind": "script", "arguments": "no sql"}, {"key": "k" * 20, "kind": "batch", "arguments": [[1]]},
    {"key": "k" * 20, "kind": "call", "arguments": ["none", {}]}, {"key": "k" * 20, "kind": "call", "arguments": [[]]},
    {"key": "k" * 20, "kind": "call", "arguments": ["fails", {}]},
    {"key": "k" * 20, "kind": "call", "arguments": ["fails", {"a": 1}]},
    {"key": "k" * 20, "kind": "execute", "arguments": {"$bytes": 5}},
    {"key": "k" * 20, "kind": "execute", "arguments": {"$bytes": "x"}},
    {"key": "k" * 20, "kind": "execute", "arguments": {"$result": 5}},
    {"key": "\ud800" * 20, "kind": "execute", "arguments": ["SELECT 1", []]},
]  # fmt: skip
BODIES = [json.dumps(value).encode() for value in JSONS] + [
    b"", b"\0", b"\xff" * 100, b"{", b"[" * 100_000, b'{"a":' * 50_000, b'{"member":' + b"9" * 5000 + b"}",
    b'{"x":1e999,"y":NaN}', bytes(100_000),
]  # fmt: skip
MEMBERS: list[dict[str, Any]] = [
    {"epoch": -5}, {"epoch": 10**30}, {"epoch": None}, {"roles": {}}, {"roles": [LONG]}, {"metadata": {"x": LONG}},
    {"metadata": []}, {"metadata": json.loads('{"x":' + "[" * 40 + "]" * 40 + "}")}, {"address": LONG},
    {"address": None}, {"az": 5}, {"version": LONG}, {"can_lead": 1}, {"metadata": {"x": float("nan")}},
]  # fmt: skip
ROUTES = ["/.lbc/feed", "/.lbc/report", "/.lbc/leave", "/.lbc/write", "/.lbc/step-down", "/.lbc/status", "/.lbc/ping",
          "/.lbc/leads", "/.lbc/head", "/.lbc/rollback",
          "/.lbc/none", "/.lbc/", "/.lbc/feed/", "/.lbc/../.lbc/feed"]  # fmt: skip


async def test_malformed_requests_are_refused_clearly_and_harm_nothing(
    g: Group, caplog: pytest.LogCaptureFixture
) -> None:
    @g.cluster.procedure
    def fails(db: Any) -> None:
        raise AttributeError("of the procedure")

    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    await eventually(lambda: len(a.members.value) == 2)
    number, epoch = a.members.value.number, a.epoch.value
    caplog.clear()
    stranger = Clock().uuid7()
    sessions = [report(stranger, session) for session in ("", LONG)]
    members = [report(stranger, **each) for each in MEMBERS] + sessions + [report("no id"), report(stranger)[:-5]]
    for node in (a, b):
        async with member_client(g, node, str(stranger)) as client:
            asked = [(method, path, body) for path in ROUTES for method in ("GET", "POST") for body in [b"", *BODIES]]
            asked += [("POST", path, body) for path in ROUTES[:3] for body in members]
            asked += [(method, path, b"{}") for path in ROUTES for method in ("PUT", "DELETE", "PATCH", "OPTIONS")]
            for method, path, body in asked:
                if path == "/.lbc/step-down" and body.startswith(b"{") and b'"to"' not in body:
                    continue  # that it understands
                answer = await client.request(method, path, body=body, timeout=10)
                what = f"{method} {path} {body[:60]!r}: {answer.status} {answer.body[:200]!r}"
                harmless = path in ("/.lbc/status", "/.lbc/ping", "/.lbc/leads", "/.lbc/head") and method == "GET"
                elsewhere = node is b and answer.status == 503
                assert 400 <= answer.status < 500 or (harmless and answer.status == 200) or elsewhere, what
                assert len(answer.body) < 4000, what
                if answer.status >= 400:
                    assert isinstance(answer.json(), dict), what
                    assert answer.json()["error"], what
    assert a.is_leader
    assert [each.id for each in a.members.value] == [a.id, b.id]
    assert (a.members.value.number, a.epoch.value) == (number, epoch)
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (await b.execute("INSERT INTO job VALUES (1)")).epoch == epoch + 1
    await all_fed(b)


@pytest.mark.parametrize("path", ["/.lbc/report", "/.lbc/feed", "/.lbc/leave", "/.lbc/write", "/.lbc/step-down"])
async def test_oversized_and_slow_bodies_are_refused(g: Group, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await g.leader(settings=QUIET)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"member":'
        await asyncio.sleep(60)

    async with member_client(g, a, str(Clock().uuid7())) as client:
        with contextlib.suppress(PeerUnavailable):  # it may be cut off while it still sends
            assert (await client.request("POST", path, body=endless(), timeout=10)).status == 413
        large = await client.request("POST", path, body=bytes(100_000))
        assert large.status == (413 if path in ("/.lbc/report", "/.lbc/feed", "/.lbc/leave") else 400)
        monkeypatch.setattr(routes, "BODY_SECONDS", 0.3)
        async with client.stream("POST", path, body=slow(), timeout=10) as stream:
            assert stream.status == 408
            assert b"not complete" in await stream.read()
        assert (await client.request("GET", "/.lbc/ping")).status == 200


async def test_a_client_that_leaves_while_it_sends_is_not_worth_a_line(
    g: Group, caplog: pytest.LogCaptureFixture
) -> None:
    a = await g.leader(settings=QUIET)
    caplog.clear()
    assert a._listener._server is not None
    served = a._listener._server._requests

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"member":'
        await asyncio.sleep(60)

    async with member_client(g, a, str(Clock().uuid7())) as client:
        for path in ROUTES[:5]:
            ask = asyncio.create_task(client.request("POST", path, body=slow()))
            await eventually(lambda: served, "it has arrived")
            ask.cancel()
            await asyncio.wait([ask])
            await eventually(lambda: not served, "it is given up here, too")
    records = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert not [text for text in (each.getMessage() for each in records) if "stood still" not in text]


async def test_an_address_that_is_taken_is_named(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    with pytest.raises(OSError, match=a.address.split(":")[1]):
        await g.node(address=a.address)


async def test_a_procedure_that_fails_with_any_exception_tells_so_through_another_node(g: Group) -> None:
    class Own(Exception):
        pass

    @g.cluster.procedure
    def fails(db: Any, how: str) -> None:
        db.execute("INSERT INTO job VALUES ('never')")
        raise {"attribute": AttributeError, "os": FileNotFoundError, "own": Own, "assert": AssertionError}[how]("why")

    await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    for how, kind in (
        ("attribute", AttributeError), ("os", FileNotFoundError), ("own", LbcError), ("assert", AssertionError),
    ):  # fmt: skip
        with pytest.raises(kind, match="why"):
            await b.call("fails", how=how)
    assert await b.read("SELECT * FROM job") == []
