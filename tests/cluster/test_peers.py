"""Clients of the leader and of roles: whom they ask, what they repeat, how many connections that takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from littlebigcluster import LbcError, Leader, Node, NoMember, PeerUnavailable, RequestTimeout, Watch
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import certificates
from littlebigcluster.cluster.certificates import rotate_authority
from littlebigcluster.cluster.clients import Clients, LeaderClient
from littlebigcluster.cluster.membership import Members
from littlebigcluster.cluster.peers import Peer
from littlebigcluster.net import Client, Receive, Response, Scope, Send, Server
from littlebigcluster.store import CreateOutcome, Store
from littlebigcluster.store.wrappers import Wrapper
from tests.cluster.group import Group, eventually, group, within
from tests.net.relay import Relay
from tests.ports import free_port
from tests.scenarios.stage import WAIT


class App:
    """One application for all nodes. Counts what arrives where."""

    def __init__(self) -> None:
        self.arrived: Counter[tuple[str, str]] = Counter()
        self.released = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        node, path = scope["state"]["lbc"], scope["path"]
        self.arrived[str(node.id), path] += 1
        if path == "/hang":
            await self.released.wait()
        if path == "/broken":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ConnectionAbortedError("the application broke")
        if path == "/ticks":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": str(node.id).encode(), "more_body": True})
                await asyncio.sleep(0.02)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        told = {
            "id": str(node.id),
            "from": headers.get("x-lbc-from"),
            "to": headers.get("x-lbc-to"),
            "certificate": scope["extensions"]["tls"]["client_cert_chain"][0],
            "body": (body + message.get("body", b"")).decode(),
        }
        await send({"type": "http.response.start", "status": 503 if path == "/busy" else 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    def count(self, node: Node, path: str) -> int:
        return self.arrived[str(node.id), path]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def nodes(app: App) -> AsyncIterator[Group]:
    async with group() as made:
        yield made
        app.released.set()


@contextlib.asynccontextmanager
async def behind_relay(nodes: Group, **join: Any) -> AsyncIterator[tuple[Node, Relay]]:
    """A node that others reach through a relay only."""
    port = free_port()
    async with Relay(("127.0.0.1", port)) as relay:
        node = await nodes.node(address=f"127.0.0.1:{port}", advertise=f"127.0.0.1:{relay.port}", **join)
        yield node, relay


async def stop_serving(node: Node) -> None:
    """No goodbye is said, so that the node stays a member until it was silent for long."""
    assert node._listener._server is not None
    await node._listener._server.stop(0)


async def knows(node: Node, role: str, *others: Node) -> None:
    """Until the node sees exactly these in the role."""
    ids = {other.id for other in others}
    await node.members.until(lambda members: {each.id for each in members.with_role(role)} == ids, timeout=WAIT)


async def asked(client: Any, times: int, path: str = "/who", **options: Any) -> Counter[str]:
    return Counter([(await client.get_json(path, **options))["id"] for _ in range(times)])


async def follows(node: Node, leader: Node) -> None:
    await node.leader.until(lambda now: now is not None and now.uuid == leader.id, timeout=WAIT)


# -- the leader ----------------------------------------------------------------------------------------------------


async def test_many_requests_to_the_leader_share_one_connection(nodes: Group, app: App) -> None:
    async with behind_relay(nodes, can_lead=True, app=app) as (leader, relay):
        await leader.wait_until_leader(timeout=WAIT)
        follower = await nodes.node()
        await eventually(lambda: follower._reporter.connected.value)
        before = relay.connections
        calls = [asyncio.create_task(follower.leader_client.get_json("/hang")) for _ in range(300)]
        await eventually(lambda: app.count(leader, "/hang") == 300)
        app.released.set()
        answers = await asyncio.gather(*calls)
        assert {answer["id"] for answer in answers} == {str(leader.id)}
        assert {(answer["from"], answer["to"]) for answer in answers} == {(str(follower.id), str(leader.id))}
        assert relay.connections == before + 1
        assert follower.leader_client is follower.leader_client


async def test_the_connection_is_there_before_the_first_request(nodes: Group, app: App) -> None:
    async with behind_relay(nodes, can_lead=True, app=app) as (leader, relay):
        await leader.wait_until_leader(timeout=WAIT)
        follower = await nodes.node()
        await eventually(lambda: follower._reporter.connected.value)
        before, client = relay.connections, follower.leader_client
        await eventually(lambda: relay.connections == before + 1)
        assert (await client.get("/who")).status == 200
        assert relay.connections == before + 1


async def test_the_leader_reaches_itself_like_any_other(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    answer = await leader.leader_client.post_json("/who", {"a": 1})
    assert (answer["id"], answer["from"], answer["body"]) == (str(leader.id), str(leader.id), '{"a":1}')


async def test_a_request_waits_for_a_leader(nodes: Group, app: App) -> None:
    alone = await nodes.node()
    call = asyncio.create_task(alone.leader_client.post_json("/who", 1))
    await asyncio.sleep(0.3)
    assert not call.done()
    leader = await nodes.leader(app=app)
    assert (await within(call))["id"] == str(leader.id)
    assert app.count(leader, "/who") == 1


async def test_without_a_leader_a_request_ends_in_time(nodes: Group) -> None:
    alone = await nodes.node()
    with pytest.raises(NoMember, match=r"nobody led.* within 0\.2 s"):
        await within(alone.leader_client.get("/who", timeout=0.2))
    with pytest.raises(NoMember):
        async with alone.leader_client.stream("GET", "/who", timeout=0.2):
            raise AssertionError("there is nobody")


async def test_requests_go_on_through_a_switchover(nodes: Group, app: App) -> None:
    first, second = await nodes.leader(app=app), await nodes.node(can_lead=True, app=app)
    follower = await nodes.node()
    await follows(follower, first)
    hanging = asyncio.create_task(follower.leader_client.get_json("/hang"))
    await eventually(lambda: app.count(first, "/hang"))
    seen: list[str] = []

    async def ask() -> None:
        while not seen or seen[-1] != str(second.id):
            seen.append((await follower.leader_client.get_json("/who"))["id"])

    asking = [asyncio.create_task(ask()) for _ in range(20)]
    leaving = asyncio.create_task(nodes.leave(first))
    await second.wait_until_leader(timeout=WAIT)
    await within(asyncio.gather(*asking))
    app.released.set()
    await leaving
    assert set(seen) == {str(first.id), str(second.id)}
    assert (await within(hanging))["id"] in seen


class AnsweredLate(Wrapper):
    """An epoch that is created is there at once; the answer comes when the test says so."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.answer = asyncio.Event()

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        outcome = await super().create(key, body)
        if key.endswith(".wal"):
            await self.answer.wait()
        return outcome


async def test_a_leader_that_does_not_know_it_yet_sends_nobody_back_to_the_former_one(
    nodes: Group, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may see its claim in the log before it has the answer; then it still names its predecessor."""
    first, store = await nodes.leader(app=app), AnsweredLate(nodes.store)
    second, follower = await nodes.node(store=store, can_lead=True, app=app), await nodes.node()
    client, refused = follower.leader_client, asyncio.Event()
    assert (await client.get_json("/who"))["id"] == str(first.id)
    accept = client._connections._accept

    def noticed(peer: Peer, answer: Response) -> bool:
        accepted = accept(peer, answer)
        if peer.place.id == second.id and not accepted:
            refused.set()
        return accepted

    monkeypatch.setattr(client._connections, "_accept", noticed)
    await nodes.crash(first)
    try:
        await within(refused.wait())
    finally:
        store.answer.set()
    assert (await client.get_json("/who", timeout=WAIT))["id"] == str(second.id)


async def test_what_others_have_said_of_the_leader_is_forgotten_when_the_log_has_caught_up(
    nodes: Group, app: App
) -> None:
    """Between who was right then and who leads now, the log says nothing new: it names the same node as before."""
    first, second = await nodes.leader(leader_app=app), await nodes.node(can_lead=True, leader_app=app)
    await follows(second, first)
    log, epoch = Watch[Leader | None](Leader(first.id, first.address, "")), Watch(-1)
    async with leader_client_of(second, log, epoch) as client:
        assert (await client.get_json("/who"))["id"] == str(first.id)
        for leaving, next_one in ((first, second), (second, first)):
            await leaving.members.until(lambda members, to=next_one: members.get(to.id), timeout=WAIT)
            await leaving.step_down(to=next_one.id)
            await next_one.wait_until_leader(timeout=WAIT)
            if next_one is second:
                assert (await client.get_json("/who", timeout=WAIT))["id"] == str(second.id)
        epoch._set(first.epoch.value)
        assert (await client.get_json("/who", timeout=WAIT))["id"] == str(first.id)


async def test_what_is_safe_is_repeated_when_the_leader_dies(nodes: Group, app: App) -> None:
    async with behind_relay(nodes, can_lead=True, app=app) as (first, relay):
        await first.wait_until_leader(timeout=WAIT)
        second, follower = await nodes.node(can_lead=True, app=app), await nodes.node()
        await follows(follower, first)
        get = asyncio.create_task(follower.leader_client.get_json("/hang"))
        post = asyncio.create_task(follower.leader_client.post("/hang", b"once"))
        await eventually(lambda: app.count(first, "/hang") == 2)
        await relay.break_off()
        with pytest.raises(PeerUnavailable) as caught:
            await within(post)
        assert caught.value.sent
        never_sent = asyncio.create_task(follower.leader_client.post_json("/who", "x"))
        await nodes.crash(first)
        await second.wait_until_leader(timeout=WAIT)
        app.released.set()
        assert (await within(get))["id"] == str(second.id)
        assert (await within(never_sent))["id"] == str(second.id)
        assert app.count(second, "/hang") == 1, "the POST is not repeated"
        assert app.count(first, "/who") + app.count(second, "/who") == 1


async def test_what_is_safe_is_repeated_when_a_stopping_leader_cuts_it_off(nodes: Group, app: App) -> None:
    first = await nodes.leader(app=app)
    second, follower = await nodes.node(can_lead=True, app=app), await nodes.node()
    client = follower.leader_client
    get, streamed = asyncio.create_task(body_of(client.get("/hang"))), asyncio.create_task(read_stream(client, "/hang"))
    post = asyncio.create_task(client.post("/hang", b"once"))
    await eventually(lambda: app.count(first, "/hang") == 3)
    await stop_serving(first)
    with pytest.raises(PeerUnavailable, match="stopped") as caught:
        await within(post)
    assert caught.value.sent, "the application had begun with it"
    await nodes.leave(first)
    await second.wait_until_leader(timeout=WAIT)
    app.released.set()
    for answer in (get, streamed):
        assert json.loads(await within(answer))["id"] == str(second.id)
    assert app.count(second, "/hang") == 2, "the POST is not repeated"


async def body_of(asking: Awaitable[Response]) -> bytes:
    return (await asking).body


async def read_stream(client: Any, path: str) -> bytes:
    async with client.stream("GET", path) as stream:
        return await stream.read()


async def test_a_leader_behind_a_silent_network_is_left_within_seconds(nodes: Group, app: App) -> None:
    async with behind_relay(nodes, can_lead=True, app=app) as (first, relay):
        await first.wait_until_leader(timeout=WAIT)
        follower = await nodes.node()
        await follows(follower, first)
        assert (await follower.leader_client.get("/who")).status == 200
        relay.swallow()
        get = asyncio.create_task(follower.leader_client.get_json("/who"))
        second = await nodes.node(can_lead=True, app=app)
        await nodes.leave(first)
        await second.wait_until_leader(timeout=WAIT)
        assert (await within(get))["id"] == str(second.id)


@contextlib.asynccontextmanager
async def leader_client_of(
    node: Node, named: Leader | Watch[Leader | None], epoch: Watch[int] | None = None
) -> AsyncIterator[LeaderClient]:
    """A client that believes what it is told of the leader, and knows nothing of the log unless that is given."""
    log = named if isinstance(named, Watch) else Watch[Leader | None](named)
    client = LeaderClient(log, epoch or Watch(-1), connect=node._listener.connect, clock=Clock())
    running = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_client_that_is_behind_follows_who_is_named(nodes: Group, app: App) -> None:
    leader, follower = await nodes.leader(leader_app=app), await nodes.node(leader_app=app)
    await follows(follower, leader)
    async with leader_client_of(follower, Leader(follower.id, follower.address, "")) as client:
        assert (await client.get_json("/who"))["id"] == str(leader.id)
        assert app.count(follower, "/who") == 0


async def test_a_stream_that_was_refused_leaves_nothing_open(nodes: Group, app: App) -> None:
    first, second = await nodes.leader(leader_app=app), await nodes.node(can_lead=True, leader_app=app)
    await follows(second, first)
    async with leader_client_of(second, Leader(first.id, first.address, "")) as client:
        assert (await client.get_json("/who"))["id"] == str(first.id)
        (refusing,) = client._connections.up.value
        await first.members.until(lambda members: members.get(second.id), timeout=WAIT)
        await first.step_down(to=second.id)
        async with client.stream("POST", "/ticks") as ticks:
            assert await anext(ticks) == str(second.id).encode()
            await eventually(lambda: refusing.closed)


async def test_a_refusal_is_followed_even_by_a_post(nodes: Group, app: App) -> None:
    first, second = await nodes.leader(leader_app=app), await nodes.node(can_lead=True, leader_app=app)
    await follows(second, first)
    async with leader_client_of(second, Leader(first.id, first.address, "")) as client:
        assert (await client.post_json("/who", 1))["id"] == str(first.id)
        await first.members.until(lambda members: members.get(second.id), timeout=WAIT)
        await first.step_down(to=second.id)  # it lives on, and names the next one when asked
        await second.wait_until_leader(timeout=WAIT)
        assert (await within(client.post_json("/who", 2)))["body"] == "2"
        assert (await client.post_json("/who", 3))["id"] == str(second.id)
        assert app.count(first, "/who") + app.count(second, "/who") == 3


async def test_another_node_at_the_address_is_not_taken_for_the_leader(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    async with leader_client_of(leader, Leader(Clock().uuid7(), leader.address, "")) as client:
        with pytest.raises(NoMember):
            await client.get("/who", timeout=0.5)
    assert app.count(leader, "/who") == 0
    async with leader._listener.connect(leader.address) as stranger:
        assert (await stranger.request("GET", "/who", headers={"x-lbc-to": "somebody else"})).status == 421
    assert app.count(leader, "/who") == 0


async def test_a_503_of_the_application_is_an_answer(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    assert (await leader.leader_client.get("/busy")).status == 503
    assert app.count(leader, "/busy") == 1
    with pytest.raises(ValueError, match="503"):
        await leader.leader_client.get_json("/busy")


async def test_a_request_that_breaks_each_connection_is_given_up(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    with pytest.raises(PeerUnavailable):
        await within(leader.leader_client.get("/broken"))
    assert app.count(leader, "/broken") == 3


async def test_a_late_answer_is_a_time_out_and_costs_the_others_nothing(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    client = leader.leader_client
    assert (await client.get("/who")).status == 200
    late = asyncio.create_task(client.get("/hang", timeout=3))
    await eventually(lambda: app.count(leader, "/hang") == 1)
    with pytest.raises(RequestTimeout):
        await late
    assert (await client.get("/who", timeout=WAIT)).status == 200
    assert app.count(leader, "/hang") == 1


async def test_a_stream_is_read_as_it_comes_and_not_begun_again(nodes: Group, app: App) -> None:
    leader, follower = await nodes.leader(app=app), await nodes.node(app=app)
    await follows(follower, leader)
    async with follower.leader_client.stream("GET", "/ticks", heartbeat=5) as ticks:
        assert await anext(ticks) == str(leader.id).encode()
        await stop_serving(leader)
        with pytest.raises(PeerUnavailable):
            await ticks.read()
    assert app.count(leader, "/ticks") == 1


async def test_a_streamed_body_is_sent_once(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    answer = await leader.leader_client.request("PUT", "/who", body=pieces())
    assert answer.json()["body"] == "one two"
    with pytest.raises(PeerUnavailable):
        await leader.leader_client.request("PUT", "/broken", body=pieces())
    assert app.count(leader, "/broken") == 1


# -- roles ---------------------------------------------------------------------------------------------------------


async def test_the_members_of_a_role_are_asked_in_turn(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    workers = [await nodes.node(roles=["worker"], app=app) for _ in range(3)]
    await knows(leader, "worker", *workers)
    client = leader.client("worker")
    assert await asked(client, 12) == {str(worker.id): 4 for worker in workers}
    assert (await client.post_json("/who", 1))["from"] == str(leader.id)
    assert leader.client("worker") is client


async def test_a_node_that_has_the_role_is_asked_by_itself_too(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app, roles=["worker"])
    worker = await nodes.node(roles=["worker"], app=app)
    await knows(leader, "worker", leader, worker)
    assert await asked(leader.client("worker"), 4) == {str(leader.id): 2, str(worker.id): 2}


async def test_one_connection_to_each_member_kept_open_until_it_leaves(nodes: Group, app: App) -> None:
    leader = await nodes.leader()
    async with behind_relay(nodes, roles=["worker"], app=app) as (worker, relay):
        await knows(leader, "worker", worker)
        client = leader.client("worker")
        await eventually(lambda: relay.connections == 1)
        calls = [client.get("/who") for _ in range(100)]
        calls += [leader.client("worker", same_az=True).get("/who") for _ in range(100)]
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        assert relay.connections == 1
        (peer,) = client._connections.all.value
        await nodes.leave(worker)
        await knows(leader, "worker")
        await eventually(lambda: peer.closed)


async def test_what_is_under_way_outlives_the_membership(nodes: Group, app: App) -> None:
    leader, worker = await nodes.leader(), await nodes.node(roles=["worker"], app=app)
    await knows(leader, "worker", worker)
    client = leader.client("worker")
    hanging = asyncio.create_task(client.get_json("/hang"))
    await eventually(lambda: app.count(worker, "/hang"))
    (peer,) = client._connections.all.value
    await worker._reporter.leave()
    await eventually(lambda: peer not in client._connections.all.value)
    app.released.set()
    assert (await within(hanging))["id"] == str(worker.id)
    await eventually(lambda: peer.closed)


async def test_nobody_in_the_role(nodes: Group, app: App) -> None:
    leader = await nodes.leader()
    with pytest.raises(NoMember, match=r"no member with the role 'worker' within 0\.2 s"):
        await leader.client("worker").get("/who", timeout=0.2)
    call = asyncio.create_task(leader.client("worker").get_json("/who"))
    worker = await nodes.node(roles=["worker"], app=app)
    assert (await within(call))["id"] == str(worker.id)


async def test_a_dead_member_is_skipped_and_comes_back(nodes: Group, app: App) -> None:
    leader = await nodes.leader(settings={"member_timeout": 600})
    dying = await nodes.node(roles=["worker"], app=app, address=f"127.0.0.1:{free_port()}")
    other = await nodes.node(roles=["worker"], app=app)
    await knows(leader, "worker", dying, other)
    client = leader.client("worker")
    assert len(await asked(client, 4)) == 2
    host, port = dying._listener._server.address  # type: ignore[union-attr]
    await stop_serving(dying)
    assert await asked(client, 10) == {str(other.id): 10}
    (peer,) = (peer for peer in client._connections.all.value if peer.place.id == dying.id)
    assert peer.state == "down"
    again = Server(dying._listener._app, host=host, port=port, tls=dying._listener._identity)
    await again.start()
    try:
        await eventually(lambda: peer.state == "up")
        assert len(await asked(client, 4)) == 2
    finally:
        await again.stop(0)


@pytest.mark.parametrize(("method", "failures"), [("GET", 0), ("POST", 1)])
async def test_only_what_is_idempotent_is_repeated_elsewhere_when_it_may_have_arrived(
    nodes: Group, app: App, method: str, failures: int
) -> None:
    leader, steady = await nodes.leader(), await nodes.node(roles=["worker"], app=app)
    async with behind_relay(nodes, roles=["worker"], app=app) as (dying, relay):
        await knows(leader, "worker", steady, dying)
        calls = [asyncio.create_task(leader.client("worker").request(method, "/hang")) for _ in range(2)]
        await eventually(lambda: app.count(steady, "/hang") and app.count(dying, "/hang"))
        relay.cut()
        app.released.set()
        answers = await within(asyncio.gather(*calls, return_exceptions=True))
        failed = [answer for answer in answers if isinstance(answer, PeerUnavailable)]
        assert [error.sent for error in failed] == [True] * failures
        assert app.count(steady, "/hang") == 2 - failures


async def test_when_all_members_are_dead_the_last_failure_is_told(nodes: Group, app: App) -> None:
    leader = await nodes.leader(settings={"member_timeout": 600})
    workers = [await nodes.node(roles=["worker"], app=app) for _ in range(2)]
    await knows(leader, "worker", *workers)
    for worker in workers:
        await stop_serving(worker)
    for _ in range(2):
        with pytest.raises(PeerUnavailable) as caught:
            await within(leader.client("worker").post("/who"))
        assert not caught.value.sent


async def test_a_member_behind_a_silent_network_is_skipped_within_seconds(nodes: Group, app: App) -> None:
    leader = await nodes.leader(settings={"member_timeout": 600})
    other = await nodes.node(roles=["worker"], app=app)
    async with behind_relay(nodes, roles=["worker"], app=app) as (silent, relay):
        await knows(leader, "worker", silent, other)
        client = leader.client("worker")
        assert len(await asked(client, 4)) == 2
        relay.swallow()
        assert await within(asked(client, 10)) == {str(other.id): 10}
        await nodes.crash(silent)


async def test_only_one_request_waits_for_a_member_that_does_not_answer_any_more(nodes: Group, app: App) -> None:
    leader = await nodes.leader(settings={"member_timeout": 600})
    other = await nodes.node(roles=["worker"], app=app)
    async with behind_relay(nodes, roles=["worker"], app=app) as (silent, relay):
        await knows(leader, "worker", silent, other)
        client = leader.client("worker")
        assert len(await asked(client, 4)) == 2
        relay.swallow()
        relay.cut()  # new connections are accepted, and nothing comes
        await asyncio.sleep(0.1)  # for the client to see that the old one is gone
        slow, now = 0, asyncio.get_running_loop().time
        for _ in range(10):
            begun = now()
            assert await within(asked(client, 1)) == {str(other.id): 1}
            slow += now() - begun > 1
        assert slow <= 2, "the machine may stand still once; without this, every second request would wait"
        await nodes.crash(silent)


async def test_a_member_that_only_impatient_callers_ask_is_skipped_too(nodes: Group, app: App) -> None:
    leader = await nodes.leader(settings={"member_timeout": 600})
    other = await nodes.node(roles=["worker"], app=app)
    async with behind_relay(nodes, roles=["worker"], app=app) as (silent, relay):
        await knows(leader, "worker", silent, other)
        client = leader.client("worker")
        assert len(await asked(client, 4)) == 2
        relay.swallow()
        relay.cut()
        await asyncio.sleep(0.1)
        for _ in range(2):
            with contextlib.suppress(RequestTimeout):
                await client.get("/who", timeout=0.2)
        (peer,) = (peer for peer in client._connections.all.value if peer.place.id == silent.id)
        await eventually(lambda: peer.state == "down")
        assert await within(asked(client, 10, timeout=1)) == {str(other.id): 10}
        await nodes.crash(silent)


async def test_zones(nodes: Group, app: App) -> None:
    leader = await nodes.leader(az="A", settings={"member_timeout": 600})
    near = [await nodes.node(roles=["worker"], app=app, az="A") for _ in range(2)]
    far = await nodes.node(roles=["worker"], app=app, az="B")
    await knows(leader, "worker", *near, far)
    anywhere, prefer, only = (leader.client("worker", same_az=choice) for choice in (False, True, "only"))
    assert set(await asked(anywhere, 6)) == {str(node.id) for node in (*near, far)}
    for client in (prefer, only):
        assert await asked(client, 6) == {str(node.id): 3 for node in near}
    await stop_serving(near[0])
    for client in (prefer, only):
        assert await asked(client, 6) == {str(near[1].id): 6}
    await stop_serving(near[1])
    assert await asked(prefer, 6) == {str(far.id): 6}
    with pytest.raises(PeerUnavailable):
        await only.get("/who", timeout=WAIT)
    assert app.count(far, "/who") == 2 + 6


async def test_a_zone_without_members(nodes: Group, app: App) -> None:
    leader = await nodes.leader(az="A")
    far = await nodes.node(roles=["worker"], app=app, az="B")
    await knows(leader, "worker", far)
    assert await asked(leader.client("worker", same_az=True), 2) == {str(far.id): 2}
    with pytest.raises(NoMember, match="role 'worker' in zone 'A'"):
        await leader.client("worker", same_az="only").get("/who", timeout=0.3)
    assert app.count(far, "/who") == 2


async def test_a_stream_comes_from_the_next_member_when_the_first_is_dead(nodes: Group, app: App) -> None:
    leader = await nodes.leader(settings={"member_timeout": 600})
    dead, alive = [await nodes.node(roles=["worker"], app=app) for _ in range(2)]
    await knows(leader, "worker", dead, alive)
    client = leader.client("worker")
    assert len(await asked(client, 2)) == 2
    await stop_serving(dead)
    for _ in range(2):
        async with client.stream("POST", "/ticks") as ticks:
            assert await anext(ticks) == str(alive.id).encode()


async def test_what_is_no_role_or_choice_is_refused_at_the_call(nodes: Group) -> None:
    node = await nodes.node()
    with pytest.raises(TypeError, match="non-empty strings"):
        node.client("")
    with pytest.raises(ValueError, match="same_az"):
        node.client("worker", same_az="never")  # type: ignore[arg-type]


# -- their life ----------------------------------------------------------------------------------------------------


async def test_clients_end_with_the_node(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app, roles=["worker"])
    follower = await nodes.node()
    await knows(follower, "worker", leader)
    to_leader, to_worker = follower.leader_client, follower.client("worker")
    calls = [asyncio.create_task(client.get("/hang")) for client in (to_leader, to_worker)]
    waiting = asyncio.create_task(follower.client("nobody").get("/who", timeout=None))
    await eventually(lambda: app.count(leader, "/hang") == 2)
    peers: list[Peer] = [*to_leader._connections.all.value, *to_worker._connections.all.value]
    await nodes.leave(follower)
    for call in (*calls, waiting):
        with pytest.raises(LbcError):
            await within(call)
    assert all(peer.closed for peer in peers)
    for client in (to_leader, to_worker):
        with pytest.raises(LbcError, match="the node has stopped"):
            await within(client.get("/who"))
    with pytest.raises(LbcError, match="the node has stopped"):
        follower.client("late")


async def test_cancelling_a_request_leaves_the_client_usable(nodes: Group, app: App) -> None:
    leader = await nodes.leader(app=app)
    call = asyncio.create_task(leader.leader_client.get("/hang"))
    await eventually(lambda: app.count(leader, "/hang"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await leader.leader_client.get("/who")).status == 200
    (peer,) = leader.leader_client._connections.all.value
    assert peer._users == 0


async def test_open_clients_show_a_renewed_certificate(nodes: Group, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.1)
    leader, follower = await nodes.leader(app=app), await nodes.node()
    client = follower.leader_client
    former = (await client.get_json("/who"))["certificate"]
    await rotate_authority(nodes.store, leader.cluster_id, clock=Clock())
    async with asyncio.timeout(WAIT):
        while (await client.get_json("/who"))["certificate"] == former:
            pass


async def test_a_client_that_is_made_at_the_moment_of_the_end_does_not_wait_for_ever() -> None:
    def connect(address: str) -> Client:
        raise AssertionError(address)

    clients = Clients(Watch(None), Watch(-1), Watch(Members()), az="", connect=connect, clock=Clock())
    running = asyncio.create_task(clients.run())
    await asyncio.sleep(0)
    asking = [
        asyncio.create_task(client.get("/", timeout=None)) for client in (clients.leader(), clients.role("web", False))
    ]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for task in asking:
        with pytest.raises(LbcError, match="stopped"):
            await within(task)
