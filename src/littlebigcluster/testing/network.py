"""HTTP between simulated machines: the ASGI application of the target runs there, for each request. No TLS."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any

from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import ASGIApp, Body, Client, Network, Response, Server, StreamResponse
from littlebigcluster.testing.loop import Machine
from littlebigcluster.testing.wires import Connection, Net

CONNECT_SECONDS = 2.0


class SimulatedNetwork(Network):
    """How one machine is connected to all others. `context` is where its code runs."""

    def __init__(self, net: Net, machine: Machine, context: Context) -> None:
        self._net, self._machine, self._context = net, machine, context

    def serve(self, app: ASGIApp, *, host: str, port: int, **_: Any) -> Server:
        return SimulatedServer(self._net, self._machine, self._context, app, host=host, port=port)

    def connect(self, base_url: str, *, headers: Mapping[str, str] | None = None, **_: Any) -> Client:
        return SimulatedClient(self._net, self._machine, self._context, base_url, headers or {})


class SimulatedServer(Server):
    """The real one's way with applications, without its sockets."""

    def __init__(self, net: Net, machine: Machine, context: Context, app: ASGIApp, *, host: str, port: int) -> None:
        super().__init__(app, host=host, port=port, tls=None)
        self._net, self.machine, self.context = net, machine, context

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    async def start(self) -> None:
        address = f"{self._host}:{self._port}"
        if address in self._net.listening:
            raise OSError(98, "address already in use")
        await self._lifespan.startup()
        self._net.listening[address] = self
        self._net.dark.discard(address)

    async def stop(self, timeout_seconds: float | None = None) -> None:
        if self._stopping:
            return
        self._stopping = True
        address = f"{self._host}:{self._port}"
        if self._net.listening.get(address) is self:
            del self._net.listening[address]
        patience = self._drain_seconds if timeout_seconds is None else timeout_seconds
        if self._requests:
            await asyncio.wait(self._requests, timeout=patience)
        for request in tuple(self._requests):
            request.cancel()
        if self._requests:
            await asyncio.wait(self._requests)
        for connection in list(self._net.connections):
            if connection.server is self:
                connection.reply(connection.lose, "the server has stopped")
        await self._lifespan.shutdown(max(patience, 1.0))

    def begin(self, exchange: Exchange, scope: dict[str, Any], body: bytes) -> None:
        """A request has arrived."""
        if self._stopping:
            exchange.connection.reply(exchange.fail, "the server is closing", False)
            return
        exchange.request.append({"type": "http.request", "body": body, "more_body": False})
        task = asyncio.create_task(self._handle(scope, exchange.receive, exchange.send))
        exchange.task = task
        task.add_done_callback(exchange.handled)


class Exchange:
    """One request and its answer. The fields of the server and of the client are touched there only."""

    def __init__(self, connection: Connection, where: str) -> None:
        self.connection, self._where = connection, where
        # At the server.
        self.request: deque[dict[str, Any]] = deque()
        self.task: asyncio.Task[Any] | None = None
        self._left = self._complete = False
        self._start: Any = None
        self._asked: asyncio.Event = asyncio.Event()
        # At the client.
        self.status = 0
        self.headers: dict[str, str] = {}
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._error: PeerUnavailable | None = None
        self._arrived: asyncio.Event = asyncio.Event()
        connection.exchanges[self] = None

    async def receive(self) -> Any:
        while not self.request:
            if self._left:
                return {"type": "http.disconnect"}
            self._asked.clear()
            await self._asked.wait()
        return self.request.popleft()

    async def send(self, message: Any) -> None:
        if self._left or not self.connection.open:
            raise OSError("the client has left")
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, self._start = self._start, None
        self._complete = not message.get("more_body", False)
        self.connection.reply(self.arrive, start, message.get("body", b""), self._complete)

    def handled(self, task: asyncio.Task[Any]) -> None:
        if not self._complete and not self._left:
            self.connection.reply(self.fail, "the stream was reset")
        self.connection.exchanges.pop(self, None)

    def client_left(self) -> None:
        if not self._left:
            self._left = True
            self._asked.set()
            if self.task is not None:
                self.task.cancel()

    def arrive(self, start: Any, body: bytes, last: bool) -> None:
        if start is not None:
            self.status = start["status"]
            self.headers = {str(name, "ascii"): str(value, "latin-1") for name, value in start.get("headers", ())}
        if body:
            # SQLite itself draws the salts in an epoch, so its length is no matter of the seed.
            cut = int(self.connection.net.loop.chance.random() * len(body))
            self._pieces.extend(piece for piece in (body[:cut], body[cut:]) if piece)
        self._ended = last
        self._arrived.set()

    def fail(self, reason: str, sent: bool = True) -> None:
        if not self._ended and self._error is None:
            self._error = PeerUnavailable(f"{self._where}: {reason}", sent=sent)
            self._arrived.set()

    def close(self) -> None:
        """At the client: nobody waits for the rest."""
        if not self._ended and self.connection.open and self._error is None:
            self.connection.send(self.client_left)

    async def head(self) -> None:
        while not self.status:
            await self._wait()

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> memoryview:
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            await self._wait()
        return memoryview(self._pieces.popleft())

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _wait(self) -> None:
        """Until something has arrived. Raises what has gone wrong."""
        if self._error is None:
            self._arrived.clear()
            await self._arrived.wait()
        else:
            raise self._error


class SimulatedClient(Client):
    """One connection to one address."""

    def __init__(self, net: Net, machine: Machine, context: Context, base_url: str, headers: Mapping[str, str]) -> None:
        self.base_url = base_url.rstrip("/")
        self._net, self._machine, self._context = net, machine, context
        self._headers = dict(headers)
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        timeout: float | None = 30.0,
    ) -> Response:
        where = f"{method} {self.base_url}{path}"
        exchange: Exchange | None = None
        try:
            async with asyncio.timeout(timeout):
                exchange = await self._begin(method, path, headers, body)
                await exchange.head()
                pieces = [bytes(piece) async for piece in exchange]
                return Response(exchange.status, exchange.headers, b"".join(pieces))
        except TimeoutError:
            raise RequestTimeout(f"{where}: no complete answer after {timeout} s") from None
        finally:
            if exchange is not None:
                exchange.close()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        timeout: float | None = 30.0,
        heartbeat: float | None = None,
    ) -> AsyncIterator[StreamResponse]:
        where = f"{method} {self.base_url}{path}"
        exchange: Exchange | None = None
        try:
            try:
                async with asyncio.timeout(timeout):
                    exchange = await self._begin(method, path, headers, body)
                    await exchange.head()
            except TimeoutError:
                raise RequestTimeout(f"{where}: no answer after {timeout} s") from None
            yield SimulatedStream(exchange, where, heartbeat)
        finally:
            if exchange is not None:
                exchange.close()

    def reload(self, tls: Any) -> None:
        raise RuntimeError("there is no TLS in a simulation")

    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            for exchange in list(self._connection.exchanges):
                exchange.fail("the client was closed")
            self._connection.send(self._connection.lose, "the client was closed")

    async def _begin(self, method: str, path: str, headers: Mapping[str, str] | None, body: Body) -> Exchange:
        if body is not None and not isinstance(body, bytes):
            body = b"".join([piece async for piece in body])
        async with self._opening:
            if self._connection is None or not self._connection.open:
                self._connection = await self._connect(f"{method} {self.base_url}{path}")
        connection = self._connection
        path, _, query = path.partition("?")
        named = {**self._headers, **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()],
            "client": (self._machine.name, 1),
            "server": connection.server.address,
            "extensions": {},
        }
        exchange = Exchange(connection, f"{method} {self.base_url}{path}")
        connection.send(connection.server.begin, exchange, scope, body or b"")
        return exchange

    async def _connect(self, where: str) -> Connection:
        if self._closed:
            raise PeerUnavailable(f"{where}: the client is closed", sent=False)
        net, loop = self._net, self._net.loop
        connected: asyncio.Future[SimulatedServer | None] = loop.create_future()
        address = self.base_url.partition("://")[2]

        def knock() -> None:
            server = net.listening.get(address)
            host = None if server is None else server.machine
            if address in net.dark:
                return
            if host is not None and (net.is_cut(self._machine, host) or net.is_cut(host, self._machine)):
                return
            if server is None or not server.machine.frozen:
                loop.after(net.latency(), answered, server)

        def answered(server: SimulatedServer | None) -> None:
            if not connected.done():
                connected.set_result(server)

        loop.after(net.latency(), knock)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                server = await connected
        except TimeoutError:
            raise PeerUnavailable(f"{where}: cannot connect in {CONNECT_SECONDS:g} s", sent=False) from None
        if server is None or server._stopping:
            raise PeerUnavailable(f"{where}: connection refused", sent=False, refused=True)
        return Connection(net, self._machine, server, self._context)


class SimulatedStream(StreamResponse):
    """An answer that comes piece by piece."""

    def __init__(self, exchange: Exchange, where: str, heartbeat_seconds: float | None) -> None:
        self.status, self.headers = exchange.status, exchange.headers
        self.finished = False
        self._where, self._heartbeat_seconds, self._pieces = where, heartbeat_seconds, exchange  # type: ignore[assignment]
