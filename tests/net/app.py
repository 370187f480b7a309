"""The application that the contract's servers host: one path for each thing a library could get wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable

from littlebigcluster.net import Message, Receive, Scope, Send, peer_name

FLOOD_PIECE_BYTES = 64 << 10


class ContractApp:
    """Counts what happens to it: `events["hang cancelled"]`."""

    def __init__(self, on_event: Callable[[str], None] = lambda name: None) -> None:
        self.events: Counter[str] = Counter()
        self.clients: set[tuple[str, int]] = set()
        self.flooded_bytes = 0
        self.received_bytes = 0
        self.released = asyncio.Event()
        self._news = asyncio.Event()
        self._on_event = on_event

    async def happened(self, name: str, *, times: int = 1, within_seconds: float = 60.0) -> None:
        """Wait until `name` was counted so often."""
        async with asyncio.timeout(within_seconds):
            while self.events[name] < times:
                self._news.clear()
                await self._news.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        self.clients.add(tuple(scope["client"]))
        handler = getattr(self, "_" + scope["path"].strip("/"), None)
        if handler is None:
            await _answer(send, 404, b"")
            return
        name = scope["path"].strip("/")
        self._count(f"{name} begun")
        try:
            await handler(scope, receive, send)
        except asyncio.CancelledError:
            self._count(f"{name} cancelled")
            raise
        else:
            self._count(f"{name} done")
        finally:
            self._count(f"{name} ended")

    def _count(self, name: str) -> None:
        self.events[name] += 1
        self._news.set()
        self._on_event(name)

    async def _hello(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = peer_name(scope)
        tls = scope["extensions"].get("tls", {})
        told = {
            "peer": peer and peer.node_id,
            "authority": peer and peer.authority,
            "tls_version": tls.get("tls_version"),
            "http": scope["http_version"],
        }
        await _answer(send, 200, json.dumps(told).encode())

    async def _hang(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.released.wait()
        await _answer(send, 200, b"released")

    async def _ticks(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _begin(send, 200)
        while True:
            await _piece(send, b"tick")
            await asyncio.sleep(0.1)

    async def _silence(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _begin(send, 200)
        await _piece(send, b"first")
        await self.released.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async def _broken(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _begin(send, 200)
        await _piece(send, b"half")
        raise ValueError("the application broke")

    async def _boom(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("the application broke")

    async def _burst(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _begin(send, 200)
        await _piece(send, bytes(int(scope["query_string"])))
        await self.released.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async def _flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _begin(send, 200)
        while True:
            await _piece(send, bytes(FLOOD_PIECE_BYTES))
            self.flooded_bytes += FLOOD_PIECE_BYTES

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _begin(send, 200)
        await _piece(send, b"")  # lets the head go out before the first answer
        while (message := await receive()).get("more_body"):
            await _piece(send, message["body"])
        await send({"type": "http.response.body", "body": message.get("body", b"")})

    async def _count_bytes(self, scope: Scope, receive: Receive, send: Send) -> None:
        size_bytes = 0
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            size_bytes += len(message.get("body", b""))
        await _answer(send, 200, b"%d" % size_bytes)

    async def _slow_reader(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await self.released.wait()
        await _answer(send, 200, b"")

    async def _big(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send, 200, b"x" * int(scope["query_string"]))


async def _begin(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-test", b"yes")]})


async def _piece(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _answer(send: Send, status: int, body: bytes) -> None:
    await _begin(send, status)
    await send({"type": "http.response.body", "body": body})
