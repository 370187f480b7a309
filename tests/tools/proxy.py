"""A TCP-level man in the middle for S3: relays requests unchanged (so that signatures hold) and breaks answers."""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.net.relay import some_turns, stop_accepting

REASONS = {409: ("Conflict", "ConditionalRequestConflict"), 500: ("Internal Server Error", "InternalError")}
REASONS |= {412: ("Precondition Failed", "PreconditionFailed"), 503: ("Slow Down", "SlowDown")}


class Break(enum.Enum):
    """What to do to a request."""

    RESET_BEFORE = "close the connection; the store never sees the request"
    RESET_AFTER = "close the connection when the store has acted"
    HANG_AFTER = "never answer, though the store has acted"
    HANG_BEFORE = "never answer; the store never sees the request"


@dataclass
class Proxy:
    """`rule(method, path)` says what happens to a request: nothing (None), a `Break`, or an HTTP status as answer
    without asking the store (positive), or after it has acted (negative)."""

    upstream_port: int
    rule: Callable[[str, str], Break | int | None] = lambda method, path: None
    port: int = 0
    delay_seconds: Callable[[], float] = lambda: 0.0
    """How long a request takes to get here."""
    requests: list[tuple[str, str]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        try:
            while True:
                head, headers = await _head(reader)
                body = await _body(reader, headers)
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                self.requests.append((method, path))
                await asyncio.sleep(self.delay_seconds())
                answer = await self._answer(self.rule(method, path), method, head + body)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, broken: Break | int | None, method: str, request: bytes) -> bytes | None:
        if broken in (None, Break.RESET_AFTER, Break.HANG_AFTER) or (isinstance(broken, int) and broken < 0):
            answer = await self._ask(method, request)
            if broken is None:
                return answer
        if broken in (Break.HANG_AFTER, Break.HANG_BEFORE):
            await asyncio.sleep(3600)
        if isinstance(broken, int):
            return _error(abs(broken))
        return None

    async def _ask(self, method: str, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            writer.write(request)
            head, headers = await _head(reader)
            bodyless = method == "HEAD" or b" 204 " in head.split(b"\r\n", 1)[0]
            return head if bodyless else head + await _body(reader, headers)
        finally:
            writer.close()


@asynccontextmanager
async def proxied(upstream_port: int, listening: socket.socket | None = None) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own, or behind this socket, gone at the end with all its connections."""
    proxy = Proxy(upstream_port)
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await proxy.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # asyncio.streams would report it as an error
        finally:
            connections.discard(task)

    where: dict[str, Any] = {"sock": listening} if listening else {"host": "127.0.0.1", "port": 0}
    server = await asyncio.start_server(accept, limit=1 << 20, **where)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        await stop_accepting(server)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await some_turns()


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes]]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")[1:-2]
    return head, {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while True:
            line = await reader.readline()
            chunk = await reader.readexactly(int(line, 16) + 2)
            body += line + chunk
            if len(chunk) == 2:
                return body
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


def _error(status: int) -> bytes:
    reason, code = REASONS[status]
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'.encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
