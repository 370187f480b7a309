"""Web sessions that read their own writes: the newest epoch that a session knows travels with its requests."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from littlebigcluster.errors import DeadlineExceeded, LbcError
from littlebigcluster.net import Answer, ASGIApp, Message, Receive, Scope, Send
from littlebigcluster.net.routes import send_answer
from littlebigcluster.settings import Duration, seconds

if TYPE_CHECKING:
    from littlebigcluster.cluster.node import Node

logger = logging.getLogger(__name__)

EPOCH_HEADER = "x-lbc-epoch"
"""On each answer: the newest epoch that the session has written or seen. On a request: what it must see."""

EPOCH_COOKIE = "lbc-epoch"

_FEED_SECONDS = 0.5
"""An epoch that a node does not have yet mostly comes over its feed in a few milliseconds. After so long the node asks
what the newest one is, to see whether there is such an epoch at all."""

_NAME, _COOKIE_NAME = EPOCH_HEADER.encode(), EPOCH_COOKIE.encode()
_NUMBER = re.compile(rb"[0-9]{1,20}")

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Session:
    newest: int
    """The newest epoch that it has written or seen elsewhere."""


_session: ContextVar[_Session] = ContextVar("lbc session")


def wrote(epoch: int) -> None:
    """The request that is being served, if any, has written this epoch; it need not be visible here yet."""
    session = _session.get(None)
    if session is not None:
        session.newest = max(session.newest, epoch)


class ReadYourWrites:
    """ASGI middleware for applications on several nodes: what a request reads includes all that its session has
    written or seen, on whichever nodes. `cluster.join(app=lbc.ReadYourWrites(app))`.

    Each answer has a header `x-lbc-epoch`, and the client sends it with its next request. That one is given to the
    application when this node has that epoch; after `timeout` it is answered with 503 and `retry-after`. Without the
    header nothing is waited for. With `cookie=True` a cookie does the same for browsers that run no code.

    Of several values the largest counts. One that is no epoch is answered with 400. One that is ahead of the whole
    log (of another cluster, or forged) is noticed after half a second, and then counts for nothing.

    What is written after the head of the answer has been sent is not in its header.
    """

    def __init__(self, app: ASGIApp, *, cookie: bool = False, timeout: Duration = 5.0) -> None:
        if not callable(app):
            raise TypeError(f"ReadYourWrites is put around an ASGI application, not {app!r:.100}")
        self._app, self._cookie, self._timeout_seconds = app, cookie, seconds(timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RuntimeError when the application is not served by a node."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        node: Node | None = scope.get("state", {}).get("lbc")
        if node is None:
            raise RuntimeError(
                'ReadYourWrites finds no node in scope["state"]["lbc"]: serve it with cluster.join(app=), or let the'
                ' lifespan of the application yield {"lbc": node}, and run it (in tests: `with TestClient(app)`)'
            )
        try:
            known = _epoch(scope["headers"])
        except ValueError as error:
            await send_answer(Answer.json({"error": str(error)}, 400), send)
            return
        kept = _kept(scope["headers"]) if self._cookie else 0
        try:
            seen = await _catch_up(node, max(known, kept), self._timeout_seconds)
        except LbcError as error:
            logger.debug("a session at epoch %d has to wait: %s", max(known, kept), error)
            told = {"error": "this node is behind what the session has seen", "epoch": node.epoch.value}
            await send_answer(Answer.json(told, 503, {"retry-after": "1"}), send)
            return
        session = _Session(seen)

        async def send_with_epoch(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                epoch = max(session.newest, node.epoch.value, _epoch(headers))
                message = {**message, "headers": self._marked(headers, epoch, kept)}
            await send(message)

        _session.set(session)
        await self._app(scope, receive, send_with_epoch)

    def _marked(self, headers: Headers, epoch: int, kept: int) -> list[tuple[bytes, bytes]]:
        marked = [(name, value) for name, value in headers if name.lower() != _NAME]
        marked.append((_NAME, b"%d" % epoch))
        if self._cookie and epoch != kept:
            marked.append((b"set-cookie", b"%b=%d; Path=/; HttpOnly; SameSite=Lax" % (_COOKIE_NAME, epoch)))
        return marked


async def _catch_up(node: Node, epoch: int, timeout_seconds: float) -> int:
    """Return when reads on this node include the epoch: the epoch; or 0 when the log has none of this number yet.

    Raises LbcError.
    """
    if node.epoch.value >= epoch:
        return epoch
    at_first = min(_FEED_SECONDS, timeout_seconds)
    try:
        await node.read("SELECT 1", at_least=epoch, timeout=at_first)
    except DeadlineExceeded:
        # Whoever got this number from the cluster got it when the epoch was durable, so this read includes it.
        await node.read("SELECT 1", consistency="strong", timeout=timeout_seconds - at_first)
    if node.epoch.value >= epoch:
        return epoch
    logger.debug("a session says it has seen epoch %d, but the newest is %d", epoch, node.epoch.value)
    return 0


def _epoch(headers: Headers) -> int:
    """The epoch that the headers name; 0 when they name none. Raises ValueError when it is not a number."""
    values = [part.strip() for name, value in headers if name.lower() == _NAME for part in value.split(b",")]
    if not all(_NUMBER.fullmatch(value) for value in values):
        raise ValueError(f"{EPOCH_HEADER} is a number, as an earlier answer had it")
    return max(map(int, values), default=0)


def _kept(headers: Headers) -> int:
    """The epoch in the cookie; 0 for none, and for one that is damaged: a browser could do nothing about that."""
    cookies = [part.strip() for name, value in headers if name == b"cookie" for part in value.split(b";")]
    values = [value for name, _, value in (cookie.partition(b"=") for cookie in cookies) if name == _COOKIE_NAME]
    return max((int(value) for value in values if _NUMBER.fullmatch(value)), default=0)
