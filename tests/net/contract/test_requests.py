"""Requests and answers: one connection for all, both directions streaming, cancellation, bounded memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client, NodeIdentity, Server
from tests.net.app import ContractApp
from tests.net.relay import Relay
from tests.net.serving import PATIENT, pair

Mint = Callable[[str], NodeIdentity]


@pytest.fixture
async def relay(server: Server) -> AsyncIterator[Relay]:
    async with Relay(server.address) as relay:
        yield relay


@pytest.fixture
async def relayed(relay: Relay, mint: Mint, clock: Clock) -> AsyncIterator[Client]:
    """A client whose connections go through the relay."""
    async with Client(f"https://127.0.0.1:{relay.port}", tls=mint("client"), clock=clock, **PATIENT) as client:
        yield client


async def test_many_requests_in_flight_share_one_connection(relayed: Client, relay: Relay, app: ContractApp) -> None:
    calls = [relayed.request("GET", "/hang") for _ in range(500)]
    answers = asyncio.gather(*calls)
    await app.happened("hang begun", times=500)
    app.released.set()
    assert {answer.body for answer in await answers} == {b"released"}
    assert relay.connections == 1


async def test_streams_and_requests_share_one_connection(relayed: Client, relay: Relay, app: ContractApp) -> None:
    async with relayed.stream("GET", "/ticks") as ticks:
        assert await anext(ticks) == b"tick"
        assert (await relayed.request("GET", "/hello")).status == 200
        assert await anext(ticks) == b"tick"
    assert relay.connections == 1


async def test_more_requests_than_the_server_allows_at_once_wait_their_turn(client: Client, app: ContractApp) -> None:
    answers = await asyncio.gather(*(client.request("GET", "/hello", timeout=100) for _ in range(5000)))
    assert {answer.status for answer in answers} == {200}


async def test_a_new_connection_is_made_after_one_broke(relayed: Client, relay: Relay, app: ContractApp) -> None:
    call = asyncio.create_task(relayed.request("GET", "/hang"))
    await app.happened("hang begun")
    relay.cut()
    with pytest.raises(PeerUnavailable) as caught:
        await call
    assert caught.value.sent
    assert (await relayed.request("GET", "/hello")).status == 200
    assert relay.connections == 2
    await app.happened("hang cancelled")


async def test_a_closed_port_says_that_nothing_was_sent(mint: Mint, clock: Clock) -> None:
    async with Client("https://127.0.0.1:1", tls=mint("client"), clock=clock) as client:
        with pytest.raises(PeerUnavailable) as caught:
            await client.request("POST", "/hello", body=b"x")
    assert not caught.value.sent
    assert caught.value.refused
    assert str(caught.value) == "POST https://127.0.0.1:1/hello: nobody listens there (connection refused)"
    assert "ConnectionRefused" in str(caught.value.__cause__), "all that the library said"


async def test_headers_and_status_go_both_ways(client: Client) -> None:
    answer = await client.request("GET", "/nowhere", headers={"x-lbc-from": "me"})
    assert answer.status == 404
    assert answer.headers["x-test"] == "yes"


@pytest.mark.parametrize("size", [0, 1, 100_000, 50_000_000])
async def test_bodies_of_any_size_arrive_whole(client: Client, size: int) -> None:
    assert (await client.request("POST", "/count_bytes", body=bytes(size))).body == b"%d" % size
    answer = await client.request("GET", f"/big?{size}")
    assert answer.body == b"x" * size


async def test_a_request_body_can_be_streamed(client: Client) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)
            await asyncio.sleep(0)

    assert (await client.request("POST", "/count_bytes", body=pieces())).body == b"1000000"


async def test_the_error_of_a_streamed_body_comes_out(client: Client, app: ContractApp) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"some"
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        await client.request("POST", "/count_bytes", body=pieces())
    assert (await client.request("GET", "/hello")).status == 200


async def test_both_directions_stream_at_once(client: Client) -> None:
    questions: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def asked() -> AsyncIterator[bytes]:
        while (question := await questions.get()) is not None:
            yield question

    async with client.stream("POST", "/echo", body=asked()) as answers:
        for word in (b"one", b"two", b"three"):
            questions.put_nowait(word)
            assert await anext(answers) == word
        questions.put_nowait(None)
        assert await answers.read() == b""


async def test_the_server_notices_that_the_client_left(client: Client, app: ContractApp) -> None:
    call = asyncio.create_task(client.request("GET", "/hang"))
    await app.happened("hang begun")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await app.happened("hang cancelled")


async def test_leaving_a_stream_ends_it_at_the_server(client: Client, app: ContractApp) -> None:
    async with client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
    await app.happened("ticks ended")


async def times_out(ask: Callable[[float], Awaitable[object]], reached: Callable[[], int]) -> None:
    """With a time-out that is long enough for the request to reach the server."""
    for seconds in (0.2, 1, 5, 25):
        with pytest.raises(RequestTimeout, match=rf"no (complete )?answer after {seconds:g} s"):
            await ask(seconds)
        if reached():
            return
    pytest.fail("no request reached the server")


async def test_a_time_out_ends_the_request_at_the_server(client: Client, app: ContractApp) -> None:
    await times_out(lambda s: client.request("GET", "/hang", timeout=s), lambda: app.events["hang begun"])
    await app.happened("hang cancelled")


async def test_a_time_out_covers_a_body_that_never_ends(client: Client, app: ContractApp) -> None:
    await times_out(lambda s: client.request("GET", "/ticks", timeout=s), lambda: app.events["ticks begun"])
    await app.happened("ticks ended")


async def test_a_stream_that_does_not_begin_is_a_time_out(client: Client, app: ContractApp) -> None:
    async def begin(seconds: float) -> None:
        async with client.stream("GET", "/hang", timeout=seconds):
            pass

    await times_out(begin, lambda: app.events["hang begun"])
    await app.happened("hang cancelled")


async def test_silence_beyond_the_heartbeat_is_an_error(client: Client, app: ContractApp) -> None:
    async with client.stream("GET", "/silence", heartbeat=1.0) as stream:
        assert await anext(stream) == b"first"
        with pytest.raises(PeerUnavailable, match=r"no sign of life for 1 s"):
            await anext(stream)
    await app.happened("silence cancelled")


async def test_an_event_loop_that_stands_still_takes_that_for_no_silence(client: Client) -> None:
    async with client.stream("GET", "/ticks", heartbeat=0.6) as stream:
        for _ in range(3):
            await anext(stream)
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.7)
            assert await anext(stream) == b"tick"


async def test_ticks_within_the_heartbeat_go_on(client: Client) -> None:
    async with client.stream("GET", "/ticks", heartbeat=1.5) as stream:
        for _ in range(17):  # for longer than that in all
            assert await anext(stream)


async def test_an_application_that_breaks_answers_500(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    answer = await client.request("GET", "/boom")
    assert (answer.status, answer.body) == (500, b"internal error\n")
    assert "GET /boom failed" in caplog.text


async def test_an_answer_that_breaks_half_way_is_never_taken_for_whole(client: Client) -> None:
    with pytest.raises(PeerUnavailable) as caught:
        await client.request("GET", "/broken")
    assert caught.value.sent
    with pytest.raises(PeerUnavailable):  # the reset may overtake what was sent before
        async with client.stream("GET", "/broken") as stream:
            await stream.read()


async def test_a_slow_reader_holds_the_server_back(client: Client, app: ContractApp) -> None:
    async with client.stream("GET", "/flood") as stream:
        await anext(stream)
        # The server waits in send(): what is under way is bounded by the window and buffers, and stays so.
        before = await settled(lambda: app.flooded_bytes, 32 << 20)
        read = 0
        while read < 16 << 20:
            read += len(await anext(stream))
        await more(lambda: app.flooded_bytes, before)


async def settled(bytes_so_far: Callable[[], int], limit_bytes: int) -> int:
    """When no more came for half a second; fails beyond the limit."""
    before = -1
    while (now := bytes_so_far()) != before:
        assert now < limit_bytes
        before = now
        await asyncio.sleep(0.5)
    return now


async def more(bytes_so_far: Callable[[], int], before: int) -> None:
    async with asyncio.timeout(60):
        while bytes_so_far() <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_stream_that_is_not_read_holds_up_nobody_while_it_fits_the_window(
    client: Client, app: ContractApp
) -> None:
    async with client.stream("GET", "/burst?4000000") as stream:
        for _ in range(3):
            assert (await client.request("GET", "/hello", timeout=60)).status == 200
        app.released.set()
        assert len(await stream.read()) == 4_000_004


async def test_a_stream_that_is_not_read_is_ended_and_the_connection_recovers(app: ContractApp, mint: Mint) -> None:
    async with pair(app, mint("node"), stall_seconds=0.5) as (_, client):
        async with client.stream("GET", "/flood") as stream:
            await anext(stream)
            # With h2corn the stalled stream holds this up; a server that does not is welcome.
            assert (await client.request("GET", "/hello", timeout=60)).status == 200
            await app.happened("flood ended")
            with pytest.raises(PeerUnavailable):
                await stream.read()
        assert len(app.clients) == 1


async def test_a_slow_server_holds_the_sender_back(client: Client, app: ContractApp) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield bytes(64 << 10)
            sent += 64 << 10

    call = asyncio.create_task(client.request("POST", "/slow_reader", body=endless()))
    await app.happened("slow_reader begun")
    await settled(lambda: sent, 64 << 20)
    call.cancel()
    await asyncio.wait((call,))
    assert (await client.request("GET", "/hello")).status == 200


class StandingClock(Clock):
    """A storm that lasts long, on a slow machine, is one storm."""

    def monotonic(self) -> float:
        return 0.0


async def test_a_storm_of_time_outs_does_not_cost_the_connection(relay: Relay, app: ContractApp, mint: Mint) -> None:
    async with (
        Client(f"https://127.0.0.1:{relay.port}", tls=mint("client"), clock=StandingClock(), **PATIENT) as relayed,
        relayed.stream("GET", "/ticks") as ticks,
    ):
        await times_out(lambda s: relayed.request("GET", "/hang", timeout=s), lambda: app.events["hang begun"])
        await app.happened("hang cancelled")
        calls = [relayed.request("GET", "/hang", timeout=0.3) for _ in range(400)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {RequestTimeout}
        # All but a hundred were abandoned: they end when the server answers them. The others were reset as that one
        # before, and those of them that had not reached the server by then may never do so.
        await app.happened("hang begun", times=300)
        assert (await relayed.request("GET", "/hello")).status == 200
        app.released.set()
        await app.happened("hang done", times=300)
        for _ in range(3):
            assert await anext(ticks) == b"tick"
        assert app.events["hang cancelled"] <= 100
    assert relay.connections == 1


async def test_a_closed_client_gives_up_what_is_in_flight(url: str, app: ContractApp, mint: Mint, clock: Clock) -> None:
    client = Client(url, tls=mint("client"), clock=clock, **PATIENT)
    calls = [asyncio.create_task(client.request("GET", "/hang")) for _ in range(150)]
    await app.happened("hang begun", times=150)
    await client.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PeerUnavailable}
    await app.happened("hang cancelled", times=150)
    with pytest.raises(PeerUnavailable) as caught:
        await client.request("GET", "/hello")
    assert not caught.value.sent


async def test_requests_use_a_new_identity_after_a_reload(client: Client, mint: Mint) -> None:
    async with client.stream("GET", "/ticks") as ticks:
        await anext(ticks)
        client.reload(mint("renamed"))
        assert (await client.get_json("/hello"))["peer"] == "renamed"
        assert await anext(ticks) == b"tick"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [("FETCH", "/", {}), ("GET", "hello", {}), ("GET", "/hello", {"x": "a\nb"}), ("GET", "/hello", {"a b": "c"})],
)
async def test_bad_arguments_are_value_errors(client: Client, method: str, path: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        await client.request(method, path, headers=headers)


async def test_json_helpers(client: Client) -> None:
    assert (await client.post_json("/hello", {"a": 1}))["peer"] == "client"
    with pytest.raises(ValueError, match="answered 404"):
        await client.get_json("/nowhere")
