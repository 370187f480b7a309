"""An HTTP/2 client of one peer: many requests in flight on one connection. `wreq` lies behind it.

The contract that any client library must keep is `tests/net/contract`; run it before changing the version.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import wreq
from wreq import Method
from wreq.exceptions import BuilderError
from wreq.http2 import Http2Options
from wreq.tls import CertStore, Identity, TlsVersion

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net.resets import ResetBudget
from littlebigcluster.net.responses import (
    LIBRARY_ERRORS,
    Response,
    StreamResponse,
    failure,
    given_back,
    headers_of,
    too_late,
)
from littlebigcluster.net.tls import NodeIdentity
from littlebigcluster.reasons import reason

Body = bytes | AsyncIterator[bytes] | None

_UNUSABLE: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, BuilderError)

# What a stream, and all of them, may have under way unread. Generous, because a stream that has used up its window
# can hold up the others on the same connection (see Server).
_WINDOW_BYTES = 8 << 20
_CONNECTION_WINDOW_BYTES = 64 << 20


class Client:
    """Talks to the peer at `base_url` ("https://host:port") over one connection, made when first needed and again
    when it broke.

    A vanished or frozen peer is noticed within `ping_seconds` + `ping_timeout_seconds`, on a quiet connection too.
    The peer's certificate must be signed by one of the identity's authorities and name the host of `base_url`. Belongs
    to one event loop. Raises ValueError for an identity that cannot be used, as `reload` does.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tls: NodeIdentity | None,
        clock: Clock,
        connect_timeout_seconds: float = 2.0,
        ping_seconds: float = 1.0,
        ping_timeout_seconds: float = 2.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        scheme = "http" if tls is None else "https"
        if not base_url.startswith(f"{scheme}://"):
            raise ValueError(f"the URL of a peer must begin with {scheme}:// here, not {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self._connect_timeout_seconds = connect_timeout_seconds
        self._pings = (ping_seconds, ping_timeout_seconds)
        self._headers = dict(headers or {})
        self._library = self._open(tls)
        self._clock = clock
        self._resets = ResetBudget(clock)
        self._in_flight = 0
        """Requests that would each cost a reset if they were given up."""
        self._calls: set[asyncio.Task[Response]] = set()
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
        """Send a request and read the whole answer, whatever its status, within `timeout` seconds.

        Raises RequestTimeout when it is not complete in time, PeerUnavailable when the peer cannot be reached or
        the connection broke, ValueError for a method, path or header that is not allowed. What an asynchronous
        `body` raises comes out as it is.

        A request that met a closing connection, and that the peer has certainly not begun with, is sent once more,
        unless its `body` is asynchronous.

        Without a `timeout` (None) it may wait for ever: of 100,000 requests that meet the very end of a connection,
        the library loses about one without a word (`tests/net/contract/test_closing_connections.py`).
        """
        uploads = body is not None and not isinstance(body, bytes)
        if not uploads and self._resets.left() <= self._in_flight:
            return await self._abandonable(method, path, headers, body, timeout)
        self._in_flight += 1
        try:
            return await self._exchange(method, path, headers, body, timeout)
        except RequestTimeout:
            self._resets.spend()
            raise
        except asyncio.CancelledError:
            self._resets.spend()
            self._raise_if_closed(method, path)
            raise
        finally:
            self._in_flight -= 1

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
        """Send a request and read the answer as it comes. Leaving the block ends the stream.

        `timeout` (seconds) is for the head of the answer, `heartbeat` (seconds) for each next piece of its body. The
        request's body may go on while the answer comes. Raises as `request` does.
        """
        where = f"{method} {self.base_url}{path}"
        try:
            async with asyncio.timeout(timeout):
                raw = await self._send(method, path, headers, body, None)
        except TimeoutError:
            self._resets.spend()
            raise RequestTimeout(f"{where}: no answer after {timeout:g} s") from None
        except asyncio.CancelledError:
            self._resets.spend()
            self._raise_if_closed(method, path)
            raise
        response = StreamResponse(raw, where, heartbeat)
        try:
            yield response
        finally:
            if not response.finished:
                self._resets.spend()
            await response.close()

    async def get_json(self, path: str, **options: Any) -> Any:
        """The JSON of a GET. Raises ValueError for a status other than 2xx, and as `request`."""
        return _json_of(await self.request("GET", path, **options), f"GET {self.base_url}{path}")

    async def post_json(self, path: str, value: Any, **options: Any) -> Any:
        """POST `value` as JSON and return the JSON answered. Raises as `get_json`."""
        headers = {"content-type": "application/json", **(options.pop("headers", None) or {})}
        body = json.dumps(value, separators=(",", ":")).encode()
        response = await self.request("POST", path, headers=headers, body=body, **options)
        return _json_of(response, f"POST {self.base_url}{path}")

    def reload(self, tls: NodeIdentity) -> None:
        """Use another identity for what is sent from now on; what is in flight ends on the old connection."""
        self._library = self._open(tls)

    async def close(self) -> None:
        """Give up whatever is in flight and close the connection."""
        self._closed = True
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        self._library.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _abandonable(
        self, method: str, path: str, headers: Mapping[str, str] | None, body: Body, timeout: float | None
    ) -> Response:
        """As `_exchange`, for when the budget might not allow to reset the call: costs a task."""
        call = asyncio.create_task(self._exchange(method, path, headers, body, None))
        self._calls.add(call)
        call.add_done_callback(self._call_ended)
        try:
            await asyncio.wait((call,), timeout=timeout)
        except asyncio.CancelledError:
            self._give_up(call)
            raise
        if not call.done():
            self._give_up(call)
            raise too_late(f"{method} {self.base_url}{path}", timeout)
        if call.cancelled():
            self._raise_if_closed(method, path)
        return call.result()

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str] | None, body: Body, timeout: float | None
    ) -> Response:
        raw = await self._send(method, path, headers, body, timeout)
        try:
            content = bytes(await raw.bytes())
        except LIBRARY_ERRORS as error:
            raise failure(f"{method} {self.base_url}{path}", error, timeout, begun=True) from error
        return Response(raw.status.as_int(), headers_of(raw), content)

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None, body: Body, timeout: float | None
    ) -> wreq.Response:
        """The head of the answer. `timeout` holds for the whole answer."""
        where = f"{method} {self.base_url}{path}"
        if self._closed:
            raise PeerUnavailable(f"{where}: the client is closed", sent=False)
        verb: Method | None = getattr(Method, method, None)
        if verb is None or not path.startswith("/"):
            raise ValueError(f"not a request: {method!r} {path!r}")
        options: dict[str, Any] = {}
        upload = None
        if isinstance(body, bytes):
            options["body"] = body
        elif body is not None:
            upload = _Upload(body)
            options["body"] = upload.pieces()
        if headers or self._headers:
            options["headers"] = {**self._headers, **(headers or {})}
        give_up_at = None if timeout is None else self._clock.monotonic() + timeout
        again = upload is None
        while True:
            if give_up_at is not None:
                options["timeout"] = timedelta(seconds=max(give_up_at - self._clock.monotonic(), 0))
            try:
                return await self._library.request(verb, self.base_url + path, **options)
            except LIBRARY_ERRORS as error:
                if upload is not None and upload.error is not None:
                    raise upload.error from None
                # The library itself does this for some such requests only, not for the first of a connection.
                if not (again and given_back(error)) or self._closed:
                    raise failure(where, error, timeout, begun=False) from error
                again = False
            except (BuilderError, RuntimeError) as error:
                raise ValueError(f"{where}: {reason(str(error))}") from error

    def _raise_if_closed(self, method: str, path: str) -> None:
        """The library ends what is in flight on a closed client as if the caller's task had been cancelled."""
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise PeerUnavailable(f"{method} {self.base_url}{path}: the client was closed", sent=True) from None

    def _give_up(self, call: asyncio.Task[Response]) -> None:
        """Reset the call's stream, or, when that was done too often, let the answer come and drop it."""
        if self._resets.left() > self._in_flight:
            self._resets.spend()
            call.cancel()

    def _call_ended(self, call: asyncio.Task[Response]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # an abandoned call's error has nobody to go to

    def _open(self, tls: NodeIdentity | None) -> wreq.Client:
        interval, patience = (timedelta(seconds=value) for value in self._pings)
        secrets: dict[str, Any] = {}
        if tls is not None:
            try:
                secrets = {
                    "tls_verify": CertStore.from_pem_stack(tls.ca_bundle_pem.encode()),
                    "tls_identity": Identity.from_pkcs8_pem(tls.cert_pem.encode(), tls.key_pem.encode()),
                    "tls_min_version": TlsVersion.TLS_1_3,
                }
            except _UNUSABLE as error:
                raise ValueError(
                    f"the certificate, the key or the CA bundle cannot be used: {reason(str(error))}"
                ) from error
        return wreq.Client(
            http2_only=True,
            http2_options=Http2Options(
                keep_alive_interval=interval,
                keep_alive_timeout=patience,
                keep_alive_while_idle=True,
                initial_window_size=_WINDOW_BYTES,
                initial_connection_window_size=_CONNECTION_WINDOW_BYTES,
            ),
            no_proxy=True,
            connect_timeout=timedelta(seconds=self._connect_timeout_seconds),
            tcp_user_timeout=timedelta(seconds=4),
            pool_idle_timeout=timedelta(days=365),
            gzip=False,
            brotli=False,
            deflate=False,
            zstd=False,
            **secrets,
        )


class _Upload:
    """Keeps the error of a body that fails half way: the library only says that the body failed."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self.error: Exception | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in self._body:
                yield piece
        except Exception as error:
            self.error = error
            raise


def _json_of(response: Response, where: str) -> Any:
    if not 200 <= response.status < 300:
        raise ValueError(f"{where} answered {response.status}: {response.body[:200]!r}")
    return response.json()
