"""The end of a server, and new certificates without one refused connection."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h2corn
import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net import CUT_OFF_HEADER, Authority, Client, NodeIdentity, Receive, Scope, Send, Server
from tests.net.app import ContractApp
from tests.net.conftest import LOOPBACK, WEEK
from tests.net.serving import PATIENT, pair

Mint = Callable[[str], NodeIdentity]


def server_port(client: Client) -> int:
    return int(client.base_url.rpartition(":")[2])


async def refuses(port: int) -> None:
    """Wait until nobody listens."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.transport.abort()
            await asyncio.sleep(0.01)


async def test_an_idle_server_stops_at_once(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node")) as (server, client):
        await client.request("GET", "/hello")
        async with asyncio.timeout(30):  # half of what it may take with something open
            await server.stop(60)


async def test_a_stop_lets_open_requests_finish(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node")) as (server, client):
        call = asyncio.create_task(client.request("GET", "/hang"))
        await app.happened("hang begun")
        stopping = asyncio.create_task(server.stop(60))
        await refuses(server_port(client))
        app.released.set()
        assert (await call).body == b"released"
        async with asyncio.timeout(30):
            await stopping


async def test_a_stop_is_bounded_with_streams_open(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node")) as (server, client), client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        waiting = asyncio.create_task(client.request("GET", "/hang"))
        await app.happened("hang begun")
        began = time.monotonic()
        await server.stop(0.5)
        assert 0.4 < time.monotonic() - began < 30  # the request would hang for ever
        with pytest.raises(PeerUnavailable):
            await ticks.read()
        cut_off = await waiting
        assert (cut_off.status, CUT_OFF_HEADER in cut_off.headers) == (503, True)
        assert app.events["ticks cancelled"] == 1
        await server.wait()


async def test_a_stop_is_bounded_when_a_client_does_not_read(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node"), drain_seconds=1.0) as (server, client), client.stream("GET", "/flood") as flood:
        await anext(flood)
        await asyncio.sleep(0.3)  # so that it may fill what lies between
        async with asyncio.timeout(30):
            await server.stop(0.3)


async def test_a_stopping_server_refuses_new_connections_at_once(app: ContractApp, mint: Mint, clock: Clock) -> None:
    async with pair(app, mint("node")) as (server, client), client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        stopping = asyncio.create_task(server.stop(60))
        await refuses(server_port(client))
        async with Client(client.base_url, tls=mint("late"), clock=clock) as late:
            with pytest.raises(PeerUnavailable) as caught:
                await late.request("GET", "/hello")
            assert caught.value.refused
            assert not caught.value.sent
        assert not stopping.done()
        await ticks.close()
        await stopping


async def test_new_certificates_without_a_refused_connection(
    app: ContractApp, mint: Mint, authority: Authority, clock: Clock
) -> None:
    new = Authority.create("cluster-1", clock)
    both = [authority, new]
    async with pair(app, mint("node")) as (server, client):
        failures: list[BaseException] = []
        seen = 0
        reloading = True

        async def newcomers() -> None:
            nonlocal seen
            identity = new.mint("newcomer", LOOPBACK, WEEK, clock, trust=both)
            old = mint("newcomer")
            while reloading:
                # Trusts either authority; shows a certificate of the old one, which the server trusts throughout.
                shown = NodeIdentity(old.cert_pem, old.key_pem, identity.ca_bundle_pem, old.not_after)
                try:
                    async with Client(client.base_url, tls=shown, clock=clock, **PATIENT) as newcomer:
                        await newcomer.request("GET", "/hello", timeout=60)
                        seen += 1
                except PeerUnavailable as error:
                    failures.append(error)

        async def seen_more(times: int) -> None:
            wanted = seen + times
            while seen < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(newcomers())
            for signer in (new, authority, new):
                await seen_more(20)
                await server.reload(signer.mint("server", LOOPBACK, WEEK, clock, trust=both))
            await seen_more(20)
            reloading = False
        # No connection is refused. One that is drained may be torn under a request that is on its way, seen in one of
        # hundreds of reloads; the sender cannot know whether it arrived, and is told so.
        assert [error for error in failures if not (isinstance(error, PeerUnavailable) and error.sent)] == []
        assert len(failures) <= 1
        # Only the old authority is trusted by this one, so it sees the new certificate by being unable to connect.
        async with Client(client.base_url, tls=mint("behind"), clock=clock) as behind:
            with pytest.raises(PeerUnavailable):
                await behind.request("GET", "/hello")


async def test_a_reload_lets_open_streams_go_on(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node"), drain_seconds=60) as (server, client), client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        await server.reload(mint("server"))
        assert (await client.request("GET", "/hello")).status == 200
        for _ in range(5):
            assert await anext(ticks) == b"tick"


async def test_a_reload_lets_open_streams_go_on_for_a_while_only(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node"), drain_seconds=0.3) as (server, client), client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        await server.reload(mint("server"))
        async with asyncio.timeout(60):
            with pytest.raises(PeerUnavailable):
                await ticks.read()
        assert (await client.request("GET", "/hello")).status == 200


async def test_unusable_certificates_leave_the_old_ones(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node")) as (server, client):
        good = mint("server")
        bad = NodeIdentity("not a certificate", good.key_pem, good.ca_bundle_pem, good.not_after)
        with pytest.raises(ValueError) as caught:
            await server.reload(bad)
        assert "PRIVATE" not in str(caught.value)
        assert (await client.request("GET", "/hello")).status == 200


async def test_a_server_cannot_start_with_unusable_certificates(app: ContractApp, mint: Mint) -> None:
    good, other = mint("server"), mint("server")
    mixed = NodeIdentity(good.cert_pem, other.key_pem, good.ca_bundle_pem, good.not_after)
    with pytest.raises(ValueError):
        await Server(app, host="127.0.0.1", tls=mixed).start()


async def test_the_lifespan_runs_once_whatever_is_reloaded(mint: Mint) -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                heard.append(message["type"])
                scope["state"]["greeting"] = "hello"
                await send({"type": f"{message['type']}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["state"]["greeting"].encode()})

    async with pair(app, mint("node")) as (server, client):
        await server.reload(mint("server"))
        assert (await client.request("GET", "/")).body == b"hello"
        assert heard == ["lifespan.startup"]
    assert heard == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize("what", ["start", "reload"])
async def test_a_server_that_is_given_up_before_it_serves_ends(
    app: ContractApp, mint: Mint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    begun = asyncio.Event()

    async def wait_started(_: h2corn.Server) -> None:
        begun.set()
        await asyncio.Event().wait()

    server = Server(app, host="127.0.0.1", tls=mint("node"))
    if what == "reload":
        await server.start()
    monkeypatch.setattr(h2corn.Server, "wait_started", wait_started)
    beginning = asyncio.create_task(server.start() if what == "start" else server.reload(mint("node")))
    await begun.wait()
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    await server.stop(0)
    assert server._generations == set()
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_application_that_refuses_to_start_stops_the_server(mint: Mint) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    server = Server(app, host="127.0.0.1", tls=mint("server"))
    with pytest.raises(RuntimeError, match="no database"):
        await server.start()


EXIT = """
import asyncio, sys
from littlebigcluster.clock import Clock
from littlebigcluster.net import Client, NodeIdentity, Server
from tests.net.app import ContractApp
from tests.net.conftest import LOOPBACK, WEEK
from littlebigcluster.net import Authority

async def main(tidy):
    # -X dev makes asyncio tell of slow steps; a busy machine is no fault.
    asyncio.get_running_loop().slow_callback_duration = 60
    clock = Clock()
    identity = Authority.create("c", clock).mint("n", LOOPBACK, WEEK, clock)
    server = Server(ContractApp(), host="127.0.0.1", tls=identity)
    await server.start()
    client = Client(f"https://127.0.0.1:{server.address[1]}", tls=identity, clock=clock)
    calls = [asyncio.create_task(client.request("GET", "/hang")) for _ in range(20)]
    async with client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        if not tidy:
            return
    await client.close()
    await asyncio.gather(*calls, return_exceptions=True)
    await server.stop(0)

asyncio.run(main(sys.argv[1] == "tidy"))
"""


def _run_to_the_end(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", EXIT, how],
        cwd=Path(__file__).parents[3],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_closed_pair_leaves_no_word_at_interpreter_exit() -> None:
    for _ in range(3):
        ended = _run_to_the_end("tidy")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_an_interpreter_that_ends_in_the_middle_does_not_crash() -> None:
    for _ in range(3):
        assert _run_to_the_end("in the middle").returncode == 0
