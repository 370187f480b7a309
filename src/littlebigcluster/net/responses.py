"""What a client receives, and what the library's errors mean."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import wreq
from wreq.exceptions import BuilderError

from littlebigcluster.errors import LbcError, PeerUnavailable, RequestTimeout
from littlebigcluster.reasons import reason

logger = logging.getLogger(__name__)

LIBRARY_ERRORS: tuple[type[Exception], ...] = tuple(
    value
    for name in wreq.exceptions.__all__
    if isinstance(value := getattr(wreq.exceptions, name), type) and value is not BuilderError
)

# The library tells in its message only what became of the request. (A URL in the message has no raw blanks.)
# It writes a request only to a connection that it knows: what has no `connect_info` failed before.
_NO_CONNECTION = re.compile(r"source: Error \{ kind: (Connect\b|SendRequest, .*, connect_info: None \} \}$)")
# "Canceled", and "ChannelClosed" before it knew the connection: that closed before the request was written to it. The
# others are the peer's word that it did not begin with the request: its number is above the last one that a closing
# peer takes, or it was refused.
_GIVEN_BACK = re.compile(
    r"source: Error \{ kind: (Canceled\b|SendRequest, source: Some\(\S+\("
    r"(ChannelClosed\)\), connect_info: None \} \}$|Http2, Error \{ kind: "
    r'(GoAway\(b"[^"]*", NO_ERROR, Remote\)|Reset\(StreamId\(\d+\), REFUSED_STREAM, Remote\))))'
)
_REFUSED = re.compile(r"source: Error \{ kind: Connect\b.*\bkind: ConnectionRefused\b")
_OUT_OF_TIME = re.compile(r"source: TimedOut \}")

_PARTS = 4
"""A heartbeat's time passes in so many."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is none."""
        return json.loads(self.body)


class StreamResponse:
    """An answer whose body arrives piece by piece. Iterate over it once; pieces are cut anywhere."""

    def __init__(self, response: wreq.Response, where: str, heartbeat_seconds: float | None) -> None:
        self.status: int = response.status.as_int()
        self.headers: Mapping[str, str] = headers_of(response)
        self.finished = False
        self._where = where
        self._heartbeat_seconds = heartbeat_seconds
        self._pieces = response.stream()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises PeerUnavailable when the connection breaks, or when nothing came for the
        heartbeat's time while this process listened."""
        while True:
            try:
                async with _Listening(self._heartbeat_seconds):
                    piece = await self._pieces.__anext__()
            except StopAsyncIteration:
                self.finished = True
                raise
            except TimeoutError:
                raise PeerUnavailable(
                    f"{self._where}: no sign of life for {self._heartbeat_seconds:g} s", sent=True
                ) from None
            except LIBRARY_ERRORS as error:
                self.finished = True
                raise failure(self._where, error, begun=True) from error
            if isinstance(piece, memoryview):
                return bytes(piece)

    async def read(self) -> bytes:
        """All that is left of the body."""
        return b"".join([piece async for piece in self])

    async def close(self) -> None:
        """End the stream; what has not come is lost."""
        await self._pieces.__aexit__(None, None, None)


class _Listening:
    """A time-out by which silence counts only while this process listens (ADR 5). It passes in parts; one that ends
    late does not count, as the event loop stood still: what has come meanwhile is taken first."""

    def __init__(self, seconds: float | None) -> None:
        self._part_seconds = None if seconds is None else seconds / _PARTS
        self._left = _PARTS
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        if self._part_seconds is not None:
            self._begin_part(self._part_seconds)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises TimeoutError when all parts have passed."""
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _begin_part(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._end_part, loop.time() + seconds, seconds)

    def _end_part(self, due: float, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self._left -= now - due < seconds
        if self._left:
            self._begin_part(seconds)
        else:
            self._timeout.reschedule(now)


def headers_of(response: wreq.Response) -> dict[str, str]:
    return {str(name, "ascii"): str(value, "latin-1") for name, value in response.headers}


def given_back(error: Exception) -> bool:
    """Whether there was a connection, but it was closing, and the peer has certainly not begun with the request."""
    return _GIVEN_BACK.search(str(error)) is not None


def failure(where: str, error: Exception, timeout: float | None = None, *, begun: bool) -> LbcError:
    """What an error of the library means to the caller. `begun` is whether an answer had begun to come."""
    message = str(error)
    logger.debug("%s: %s", where, message)
    if _OUT_OF_TIME.search(message):
        return too_late(where, timeout)
    sent = begun or not (_NO_CONNECTION.search(message) or _GIVEN_BACK.search(message))
    refused = not begun and _REFUSED.search(message) is not None
    return PeerUnavailable(f"{where}: {reason(message)}", sent=sent, refused=refused)


def too_late(where: str, timeout: float | None) -> RequestTimeout:
    return RequestTimeout(f"{where}: no complete answer after {timeout or 0:g} s")
