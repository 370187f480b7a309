"""An HTTP/2 server that hosts one ASGI application on a socket of its own. `h2corn` lies behind it.

The contract that any server library must keep is `tests/net/contract`; run it before changing the version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any, Literal

import h2corn
from h2corn._lib import prepare_tls
from h2corn._server import TlsMaterial

from littlebigcluster.net.asgi import ASGIApp, Message, Receive, Scope, Send
from littlebigcluster.net.descriptors import guard
from littlebigcluster.net.lifespan import Lifespan
from littlebigcluster.net.tls import NodeIdentity

_log = logging.getLogger(__name__)

ClientCertificates = Literal["required", "optional"]

CUT_OFF_HEADER = "x-cut-off"
"""On the 503 with which a stopping server ends a request that did not finish in time. The application had begun with
it, so it may have taken effect: as when the connection had broken."""

_TLS_1_3 = 0x0304
_ACCEPT_QUEUE = 1024
_AGAIN_SECONDS = 0.5
_IN_MEMORY = Path("in-memory")
"""Stands in the configuration where h2corn wants file names; the PEM texts are handed over themselves."""

_LIVENESS = (
    # A peer that vanished without a word is noticed after 4 s: by unacknowledged data, or, on a quiet connection,
    # by two unanswered probes after 2 s of silence. Accepted sockets inherit these from the listening one.
    ("TCP_USER_TIMEOUT", 4000),
    ("TCP_KEEPIDLE", 2),
    ("TCP_KEEPINTVL", 1),
    ("TCP_KEEPCNT", 2),
)


class Server:
    """Hosts `app` over HTTP/2. Used once: `start()`, then `stop()`.

    With `tls`, every client must show a certificate that one of the identity's authorities has signed, and speak
    TLS 1.3. `client_certificates="optional"` also lets clients in that show none (a browser, a load balancer);
    the application then decides by `peer_name(scope)`. What the client showed is in `scope["extensions"]["tls"]`.
    Without `tls`, clear-text HTTP/2 with prior knowledge is spoken.

    `max_request_bytes` bounds one request's body (413 above it, 0 means no limit). `drain_seconds` is the longest
    a connection may live on after `stop` or `reload`.

    A client that does not read holds the application back in `send()`, with at most 2 MiB waiting per connection.
    These are shared: while one stream has used them up, no other answer leaves on the same connection. After
    `stall_seconds` the stream that is not read is reset. So a stream that may stall is better read over a
    connection (a `Client`) of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int = 0,
        tls: NodeIdentity | None,
        client_certificates: ClientCertificates = "required",
        max_request_bytes: int = 64 << 20,
        stall_seconds: float = 10.0,
        drain_seconds: float = 10.0,
    ) -> None:
        self._app = app
        self._host, self._port = host, port
        self._tls = tls
        self._client_certificates = client_certificates
        self._max_request_bytes = max_request_bytes
        self._stall_seconds = stall_seconds
        self._drain_seconds = drain_seconds
        self._lifespan = Lifespan(app)
        self._socket: socket.socket | None = None
        self._current: _Generation | None = None
        self._generations: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._again: asyncio.Task[None] | None = None
        """Tries to serve again, after the library gave up."""
        self._guard: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port the server listens on, the port as the system assigned it."""
        if self._socket is None:
            raise RuntimeError("the server has not been started, or is stopped")
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    async def start(self) -> None:
        """Listen and serve. Raises OSError when the address cannot be bound, ValueError for unusable certificates,
        RuntimeError when the application refuses to start."""
        if self._ended is not None:
            raise RuntimeError("a server is started once")
        self._ended = asyncio.get_running_loop().create_future()
        self._socket = await _listen(self._host, self._port)
        try:
            await self._lifespan.startup()
            self._current = await self._serve(self._tls)
            self._guard = asyncio.create_task(guard(self._socket))
        except BaseException:
            await self.stop(1.0)
            raise

    async def reload(self, tls: NodeIdentity) -> None:
        """Serve new connections with another identity; no connection is refused meanwhile.

        Open connections are told to move over, and are closed once their requests are done, after
        `drain_seconds` at the latest. Raises ValueError for unusable certificates; the old ones then stay.
        """
        if self._current is None or self._tls is None:
            raise RuntimeError("only a running server with TLS can change its certificates")
        previous = self._current
        # The second server accepts on the same descriptor before the first one stops to.
        self._current = await self._serve(tls)
        self._tls = tls
        previous.native.shutdown()

    async def stop(self, timeout_seconds: float | None = None) -> None:
        """Stop listening at once, let open requests finish for `timeout_seconds` (default: `drain_seconds`), then
        cancel them; those that no answer was begun to get 503 with `CUT_OFF_HEADER`. Ends a second after that, or
        after `drain_seconds` when a client does not read at all."""
        if self._socket is None or self._stopping:
            return
        self._stopping = True
        helpers = [task for task in (self._again, self._guard) if task is not None]
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        if self._current is not None:
            self._current.native.shutdown()
        self._close_socket()
        patience = self._drain_seconds if timeout_seconds is None else timeout_seconds
        if self._generations:
            _, pending = await asyncio.wait(self._generations, timeout=patience)
            if pending:
                for request in tuple(self._requests):
                    request.cancel()
                await asyncio.wait(self._generations)
        await self._lifespan.shutdown(max(patience, 1.0))
        self._end(None)

    async def wait(self) -> None:
        """Until the server has stopped. Raises RuntimeError when it broke down by itself."""
        if self._ended is None:
            raise RuntimeError("the server has not been started")
        await asyncio.shield(self._ended)

    async def _serve(self, tls: NodeIdentity | None) -> _Generation:
        if self._socket is None:
            raise RuntimeError("the server is stopped")
        native = _Generation(self._handle, self._config(tls), tls)
        task = asyncio.create_task(native.serve(self._socket.fileno()), name="server")
        self._generations.add(task)
        task.add_done_callback(self._generation_ended)
        started = asyncio.create_task(native.native.wait_started())
        try:
            await asyncio.wait((started, task), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            await started
        except BaseException:
            task.cancel()  # to the library that is a shutdown
            raise
        finally:
            started.cancel()
            await asyncio.wait((started,))
            if not started.cancelled():
                started.exception()
        return native

    def _config(self, tls: NodeIdentity | None) -> h2corn.Config:
        files: dict[str, Any] = {}
        if tls is not None:
            names = ("certfile", "keyfile", "ca_certs")
            files = {**dict.fromkeys(names, _IN_MEMORY), "cert_reqs": self._client_certificates}
        assert self._socket is not None
        return h2corn.Config(
            bind=(f"fd://{self._socket.fileno()}",),
            http1=False,
            lifespan="off",
            access_log=False,
            max_concurrent_streams=2000,
            max_request_body_size=self._max_request_bytes,
            # Connections are always open and streams may be silent for long; the application has heartbeats.
            timeout_keep_alive=0.0,
            timeout_request_body_idle=0.0,
            timeout_graceful_shutdown=self._drain_seconds,
            h2_timeout_response_stall=self._stall_seconds,
            **files,
        )

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every request passes here on its way to the application."""
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        begun = left = False

        async def observed_send(message: Message) -> None:
            nonlocal begun, left
            begun = True
            try:
                await send(message)
            except OSError:
                left = True
                raise

        try:
            scope["state"] = self._lifespan.state.copy()
            if scope["scheme"] in ("https", "wss") and scope["extensions"]["tls"]["tls_version"] != _TLS_1_3:
                # The library has no setting for this; nothing of the application is shown to older versions.
                await _answer(send, 403, b"TLS 1.3 is required\n")
            else:
                await self._app(scope, receive, observed_send)
        except asyncio.CancelledError:
            if not self._stopping:
                raise  # the client left
            if not begun and scope["type"] == "http":
                await _answer(send, 503, b"stopping\n", (CUT_OFF_HEADER, "stopping"))
        except Exception:
            # Not raised on: the library would print it, whole, to stderr. An answer that was begun and is left
            # incomplete is reset, so that no client takes it for whole.
            what = scope.get("method", "websocket"), scope["path"][:200]
            if left:
                _log.debug("%s %s: the client left", *what)
                return
            _log.exception("%s %s failed", *what)
            if not begun and scope["type"] == "http":
                await _answer(send, 500, b"internal error\n")
        finally:
            self._requests.discard(task)

    def _generation_ended(self, task: asyncio.Task[None]) -> None:
        self._generations.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        is_current = self._current is not None and not self._stopping and not self._generations
        if isinstance(error, OSError) and is_current:
            if self._again is None or self._again.done():
                _log.warning("port %s accepts no connections, until it can: %s", self._port, error)
                self._again = asyncio.create_task(self._serve_again(), name="server")
            return
        if error is not None or is_current:
            _log.error("a server on port %s ended: %r", self._port, error)
        if is_current:
            self._end(RuntimeError(f"the HTTP/2 server ended by itself: {error!r}"))

    async def _serve_again(self) -> None:
        """The library gives up when it cannot accept a connection, for want of file descriptors mostly."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            with contextlib.suppress(OSError):
                self._current = await self._serve(self._tls)
                _log.warning("port %s accepts connections again", self._port)
                return

    def _end(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # whoever calls wait() sees it; nobody has to

    def _close_socket(self) -> None:
        if self._socket is not None:
            # The library holds a duplicate until its last connection is closed; without this, new connections
            # would be accepted by the system for so long, and hang.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None


class _Generation:
    """One run of the native server with one identity.

    The library's own `serve()` reads keys from files and prints a banner. The calls below it, which its worker
    processes use, take the PEM texts from memory; they are why its version is pinned.
    """

    def __init__(self, app: ASGIApp, config: h2corn.Config, tls: NodeIdentity | None) -> None:
        material = None
        if tls is not None:
            parts = (tls.cert_pem.encode(), tls.key_pem.encode(), tls.ca_bundle_pem.encode())
            material = TlsMaterial(*parts)
        try:
            self._prepared = prepare_tls(config, material)
        except (OSError, ValueError) as error:
            raise ValueError(f"the certificate, the key or the CA bundle cannot be used: {error}") from None
        self.native = h2corn.Server(app, config)

    async def serve(self, descriptor: int) -> None:
        await self.native._serve_worker_fds([os.dup(descriptor)], prepared_tls=self._prepared)


async def _listen(host: str, port: int) -> socket.socket:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _LIVENESS:
            if hasattr(socket, name):
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        listener.bind(address)
        listener.listen(_ACCEPT_QUEUE)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def _answer(send: Send, status: int, body: bytes, *more: tuple[str, str]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(name.encode(), value.encode()) for name, value in more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
