"""Requests to one of several nodes that will do, sent again where that is safe."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.peers import Connections, Peer
from littlebigcluster.errors import LbcError, NoMember, PeerUnavailable, RequestTimeout
from littlebigcluster.net import CUT_OFF_HEADER, Body, Response, StreamResponse
from littlebigcluster.settings import Duration, seconds

R = TypeVar("R", Response, StreamResponse)

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_MAX_BREAKS = 3
"""A request on which the connection breaks so often breaks it itself."""


class PeerClient(ABC):
    """Requests to one of several nodes that will do, over connections that are kept open.

    A request is sent again, elsewhere or later, only when that is safe: it certainly never arrived, the node refused
    it unseen because it is not the one meant, or the connection broke, or the node stopped, before the answer came and
    the method is idempotent (GET, HEAD, PUT, DELETE). One whose body is an iterator is sent once.

    All methods raise NoMember when there was nobody to ask in time, PeerUnavailable when it cannot be reached, the
    connection broke or the node stopped, RequestTimeout when it did not answer in time, ValueError for what is no
    request, and LbcError after this node has stopped. `timeout` covers everything, waiting for somebody to ask
    included; None waits for ever, and that may be for a request that was lost with its connection (rare, but possible:
    see `net.Client.request`).
    """

    def __init__(self, connections: Connections, clock: Clock) -> None:
        self._connections, self._clock = connections, clock

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        timeout: Duration | None = 30.0,
    ) -> Response:
        """Send a request and read the whole answer, whatever its status."""

        async def exchange(peer: Peer, left: float | None) -> Response:
            async with peer.use() as client:
                named = {**(headers or {}), **peer.headers}
                return await client.request(method, path, headers=named, body=body, timeout=left)

        return await self._ask(method, body, timeout, exchange)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        timeout: Duration | None = 30.0,
        heartbeat: Duration | None = None,
    ) -> AsyncIterator[StreamResponse]:
        """Send a request and read the answer as it comes. Leaving the block ends the stream.

        `timeout` is for the head of the answer, `heartbeat` for each next piece of its body. Nothing is sent again
        once the answer has begun.
        """
        silence = None if heartbeat is None else seconds(heartbeat)
        async with AsyncExitStack() as stack:

            async def begin(peer: Peer, left: float | None) -> StreamResponse:
                await stack.aclose()
                client = await stack.enter_async_context(peer.use())
                named = {**(headers or {}), **peer.headers}
                return await stack.enter_async_context(
                    client.stream(method, path, headers=named, body=body, timeout=left, heartbeat=silence)
                )

            yield await self._ask(method, body, timeout, begin)

    async def get(self, path: str, **options: Any) -> Response:
        """GET; options and answer as of `request`."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: Body = None, **options: Any) -> Response:
        """POST; options and answer as of `request`."""
        return await self.request("POST", path, body=body, **options)

    async def get_json(self, path: str, **options: Any) -> Any:
        """The JSON of a GET. Raises ValueError for a status other than 2xx, too."""
        return _json_of(await self.get(path, **options), f"GET {path}")

    async def post_json(self, path: str, value: Any, **options: Any) -> Any:
        """POST `value` as JSON and return the JSON answered. Raises ValueError for a status other than 2xx, too."""
        headers = {"content-type": "application/json", **(options.pop("headers", None) or {})}
        body = json.dumps(value, separators=(",", ":")).encode()
        return _json_of(await self.post(path, body, headers=headers, **options), f"POST {path}")

    async def _ask(
        self, method: str, body: Body, timeout: Duration | None, attempt: Callable[[Peer, float | None], Awaitable[R]]
    ) -> R:
        """The answer of the first attempt that has one."""
        limit = None if timeout is None else seconds(timeout)
        give_up_at = None if limit is None else self._clock.monotonic() + limit
        again = body is None or isinstance(body, bytes)
        tried: list[Peer] = []
        breaks = 0
        failure: LbcError | None = None
        while True:
            peer = self._choose(tried)
            if peer is None:
                try:
                    async with asyncio.timeout(self._left(give_up_at)):
                        peer = await self._next(tried, failure)
                except TimeoutError:
                    raise NoMember(f"{self._nobody()} within {limit:g} s" + _after(failure)) from failure
            tried.append(peer)
            try:
                answer = await attempt(peer, self._left(give_up_at))
                if CUT_OFF_HEADER in answer.headers:
                    raise PeerUnavailable(f"{peer.place.address} stopped before it had answered", sent=True)
            except RequestTimeout:
                peer.doubt()
                raise
            except PeerUnavailable as error:
                peer.fail()
                breaks += error.sent
                if not again or (error.sent and (method not in _IDEMPOTENT or breaks >= _MAX_BREAKS)):
                    raise
                failure = error
            else:
                if self._accept(peer, answer) or not again:
                    return answer
                peer.fail()
                failure = PeerUnavailable(f"{peer.place.address} is not the node that was meant", sent=False)

    def _left(self, give_up_at: float | None) -> float | None:
        return None if give_up_at is None else max(give_up_at - self._clock.monotonic(), 0.001)

    @abstractmethod
    def _choose(self, tried: Sequence[Peer]) -> Peer | None:
        """Whom to ask now, after those who were tried in vain; None to wait."""

    @abstractmethod
    async def _next(self, tried: Sequence[Peer], failure: LbcError | None) -> Peer:
        """Wait for somebody to ask. Raises `failure` when that is no use."""

    @abstractmethod
    def _nobody(self) -> str:
        """What it means that `_next` did not end."""

    def _accept(self, peer: Peer, answer: Response | StreamResponse) -> bool:
        """Whether it is an answer of the node that was meant, not of another at its address."""
        return answer.status != 421


def _json_of(response: Response, where: str) -> Any:
    if not 200 <= response.status < 300:
        raise ValueError(f"{where} was answered with {response.status}: {response.body[:200]!r}")
    return response.json()


def _after(failure: LbcError | None) -> str:
    return f" (the last attempt: {failure})" if failure else ""
