"""The small router, driven without a network, and once with one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from littlebigcluster.net import Answer, Message, NodeIdentity, Refused, Request, Router
from tests.net.serving import pair

Mint = Callable[[str], NodeIdentity]


def router() -> Router:
    routes = Router(max_body_bytes=100)

    async def echo(request: Request) -> Answer:
        return Answer.json({"got": await request.json(), "query": request.query(), "from": request.header("x-from")})

    async def below(request: Request) -> Answer:
        return Answer(request.path.encode())

    async def refuse(request: Request) -> Answer:
        raise Refused(409, "not now", headers={"retry-after": "1"})

    async def count(request: Request) -> Answer:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d" % number

        return Answer(pieces())

    routes.add("POST", "/echo", echo)
    routes.add("GET", "/echo", below)
    routes.add("GET", "/tree/", below)
    routes.add("GET", "/tree/deeper/", refuse)
    routes.add("GET", "/count", count)
    return routes


async def ask(
    method: str, path: str, *body: bytes, query: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> tuple[int, dict[bytes, bytes], bytes]:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    messages.append({"type": "http.request"})
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": path, "query_string": query, "headers": list(headers),
    }  # fmt: skip
    await router()(scope, receive, send)
    start, *rest = sent
    assert not rest[-1].get("more_body")
    return start["status"], dict(start["headers"]), b"".join(part["body"] for part in rest)


async def test_a_handler_reads_json_query_and_headers() -> None:
    status, headers, body = await ask(
        "POST", "/echo", b'{"a"', b":1}", query=b"x=1&x=2&y=", headers=((b"x-from", b"me"),)
    )
    assert (status, headers) == (200, {b"content-type": b"application/json"})
    assert json.loads(body) == {"got": {"a": 1}, "query": {"x": "2", "y": ""}, "from": "me"}


async def test_the_longest_path_is_taken() -> None:
    assert (await ask("GET", "/tree/a/b"))[2] == b"/tree/a/b"
    status, headers, body = await ask("GET", "/tree/deeper/x")
    assert (status, headers[b"retry-after"], json.loads(body)) == (409, b"1", {"error": "not now"})


async def test_pieces_are_sent_as_they_come() -> None:
    assert await ask("GET", "/count") == (200, {}, b"012")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", b"", 404),
        ("GET", "/tree", b"", 404),
        ("DELETE", "/echo", b"", 405),
        ("POST", "/echo", b"", 400),
        ("POST", "/echo", b"{", 400),
        ("POST", "/echo", b"\xff\xfe", 400),
        ("POST", "/echo", b"[1]", 400),
        ("POST", "/echo", b"[" * 90, 400),
        ("POST", "/echo", b" " * 101, 413),
    ],
)
async def test_refusals_are_clear(method: str, path: str, body: bytes, status: int) -> None:
    got, headers, answer = await ask(method, path, body)
    assert got == status
    assert json.loads(answer)["error"]
    if status == 405:
        assert headers[b"allow"] == b"GET, POST"


async def test_a_query_that_cannot_be_read_is_refused() -> None:
    assert (await ask("POST", "/echo", b"{}", query=b"\xff"))[0] == 400
    assert (await ask("POST", "/echo", b"{}", query=b"a=1&" * 60))[0] == 400


async def test_routes_over_a_real_connection(mint: Mint) -> None:
    async with pair(router(), mint("node")) as (_, client):
        assert (await client.post_json("/echo", {"a": 1}))["got"] == {"a": 1}
        assert (await client.request("GET", "/count")).body == b"012"
        assert (await client.request("POST", "/echo", body=b" " * 200)).status == 413


async def test_a_client_that_leaves_is_a_connection_error() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ConnectionError):
        await Request({"method": "POST", "path": "/"}, receive, 100).body()
