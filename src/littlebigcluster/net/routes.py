"""A very small ASGI application: handlers by method and path, JSON in and out, clear refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from littlebigcluster.net.asgi import Receive, Scope, Send
from littlebigcluster.net.tls import PeerName, peer_name

RETRY_LATER = {"retry-after": "1"}
JSON = {"content-type": "application/json"}

BODY_SECONDS = 30.0
"""A body that is read as a whole has to be complete after so long."""


class Refused(Exception):
    """Raised by a handler to answer with an error status and a sentence for the caller."""

    def __init__(self, status: int, reason: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


class Crowded(Refused):
    """The bodies of the requests under way leave no room for this one."""

    def __init__(self, reason: str) -> None:
        super().__init__(503, reason, headers=RETRY_LATER)


class _Room:
    """What the bodies of the requests under way hold, until they are answered."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._held_bytes = max_bytes, 0

    def take(self, size_bytes: int, own_bytes: int) -> None:
        """One request, which holds `own_bytes` already, wants more. Raises Crowded, but not when it is alone."""
        if self._held_bytes > own_bytes and self._held_bytes + size_bytes > self._max_bytes:
            raise Crowded(f"the bodies of other requests hold {self._held_bytes} bytes; try again a little later")
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler returns: a body, or pieces of one as they come. Header names are in lower case."""

    body: bytes | AsyncGenerator[bytes] = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        body = json.dumps(value, separators=(",", ":")).encode()
        return cls(body, status, {**JSON, **(headers or {})})


class ClientLeft(ConnectionError):
    """Nobody waits for the answer any more."""


class Request:
    """One request, as a handler sees it."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int, room: _Room | None = None) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self._max_body_bytes, self._room = max_body_bytes, room or _Room(max_body_bytes)
        self.held_bytes = 0
        """Of its body, in memory."""

    @property
    def peer(self) -> PeerName | None:
        """Who asks, by the certificate."""
        return peer_name(self.scope)

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of this (lower-case) name."""
        wanted = name.encode()
        found = (value for key, value in self.scope["headers"] if key == wanted)
        return next((value.decode("latin-1") for value in found), default)

    def query(self) -> dict[str, str]:
        """The parameters after the "?"; the last one counts. Raises Refused for too many."""
        try:
            values = parse_qs(self.scope["query_string"].decode(), keep_blank_values=True, max_num_fields=50)
        except ValueError:
            raise Refused(400, "the query cannot be read") from None
        return {name: each[-1] for name, each in values.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, without a limit. Ends early, with ClientLeft, when the client leaves."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft("the client left")
            if body := message.get("body"):
                yield body
            if not message.get("more_body"):
                return

    async def body(self, *, max_bytes: int | None = None) -> bytes:
        """The whole body. Raises Refused: 413 when it is larger than `max_bytes`, or else the router's limit, 408
        when it takes too long to come, 503 (Crowded) when other requests hold too much."""
        limit = self._max_body_bytes if max_bytes is None else max_bytes
        parts, size_bytes = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.chunks():
                    size_bytes += len(chunk)
                    if size_bytes > limit:
                        raise Refused(413, f"the body is larger than {limit} bytes")
                    self._room.take(len(chunk), self.held_bytes)
                    self.held_bytes += len(chunk)
                    parts.append(chunk)
        except TimeoutError:
            raise Refused(408, f"the body was not complete after {BODY_SECONDS:g} s") from None
        return b"".join(parts)

    async def json(self, *, max_bytes: int | None = None) -> dict[str, Any]:
        """The body, a JSON object. Raises Refused: 400 when it is none, and as `body`."""
        try:
            value = json.loads(await self.body(max_bytes=max_bytes))
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not valid JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body must be a JSON object")
        return value


Handler = Callable[[Request], Awaitable[Answer]]


class Router:
    """Sends each request to the handler of its path and method.

    A path that ends in "/" stands for everything below it, too; the longest that fits is taken. Refusals are
    answered as JSON, `{"error": reason}`.
    """

    def __init__(self, *, max_body_bytes: int = 1 << 20, max_bodies_bytes: int = 256 << 20) -> None:
        """`max_bodies_bytes`: of all requests under way together."""
        self._routes: dict[str, dict[str, Handler]] = {}
        self._max_body_bytes, self._room = max_body_bytes, _Room(max_bodies_bytes)

    def add(self, method: str, path: str, handler: Handler) -> None:
        self._routes.setdefault(path, {})[method] = handler

    def knows(self, path: str) -> bool:
        return self._methods(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks HTTP only, not {scope['type']}")
        request = Request(scope, receive, self._max_body_bytes, self._room)
        try:
            answer = await self._handler(scope)(request)
        except Refused as refusal:
            answer = Answer.json({"error": refusal.reason}, refusal.status, refusal.headers)
        except ClientLeft:
            return
        finally:
            self._room.give_back(request.held_bytes)
        await send_answer(answer, send)

    def _methods(self, path: str) -> dict[str, Handler] | None:
        if path in self._routes:
            return self._routes[path]
        below = (route for route in self._routes if route.endswith("/") and path.startswith(route))
        longest = max(below, key=len, default=None)
        return None if longest is None else self._routes[longest]

    def _handler(self, scope: Scope) -> Handler:
        methods = self._methods(scope["path"])
        if methods is None:
            raise Refused(404, "there is nothing at this path")
        if scope["method"] not in methods:
            allowed = ", ".join(sorted(methods))
            raise Refused(405, f"allowed here: {allowed}", headers={"allow": allowed})
        return methods[scope["method"]]


async def send_answer(answer: Answer, send: Send) -> None:
    """Send an answer over ASGI. A piece goes out when the client has room for it."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if isinstance(answer.body, bytes):
        await send({"type": "http.response.body", "body": answer.body})
        return
    # Servers hold the head back until the first piece; this one may be long in coming.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    async with aclosing(answer.body) as pieces:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
