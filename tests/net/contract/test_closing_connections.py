"""A request that meets a connection which the peer is just closing: nobody has begun with it, so nothing is lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client

PREFACE_BYTES = 24
HEADERS, RESET, SETTINGS, GOAWAY = 1, 3, 4, 7
END_OF_STREAM_AND_HEADERS = 5
STATUS_200 = b"\x88"
REFUSED_STREAM = b"\0\0\0\x07"
NOTHING_TAKEN_NO_ERROR = bytes(8)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def turn_away_at_once(connection: socket.socket) -> None:
    connection.sendall(frame(SETTINGS) + frame(GOAWAY, NOTHING_TAKEN_NO_ERROR))


def turn_away_when_asked(connection: socket.socket) -> None:
    connection.sendall(frame(SETTINGS))
    next(requests(connection))
    connection.sendall(frame(GOAWAY, NOTHING_TAKEN_NO_ERROR))


def refuse(connection: socket.socket) -> None:
    connection.sendall(frame(SETTINGS))
    for stream in requests(connection):
        connection.sendall(frame(RESET, REFUSED_STREAM, stream=stream))


def answer(connection: socket.socket) -> None:
    connection.sendall(frame(SETTINGS))
    stream = next(requests(connection))
    connection.sendall(frame(HEADERS, STATUS_200, flags=END_OF_STREAM_AND_HEADERS, stream=stream))


def requests(connection: socket.socket) -> Iterator[int]:
    """The numbers of the requests' streams, until the client closes the connection."""
    source = connection.makefile("rb")
    source.read(PREFACE_BYTES)
    while head := source.read(9):
        source.read(int.from_bytes(head[:3], "big"))
        if head[3] == HEADERS:
            yield int.from_bytes(head[5:], "big")


class Gate:
    """Accepts connections one after the other. A thread of its own, so that it is faster than the client."""

    def __init__(self, behave: Callable[[int], Callable[[socket.socket], None]]) -> None:
        self.connections = 0
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        for number in count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(60)
            self._open.append(connection)
            self.connections += 1
            self._behave(number)(connection)

    @contextmanager
    def opened(self) -> Iterator[Gate]:
        self._thread.start()
        try:
            yield self
        finally:
            while self._thread.is_alive():
                for held in (self._listener, *self._open):
                    with suppress(OSError):  # it is closed already
                        held.shutdown(socket.SHUT_RDWR)
                self._thread.join(0.1)
            for held in (self._listener, *self._open):
                held.close()


@dataclass
class Tries:
    """Several tries of one request, of which the library may lose one: it gets no answer until its time-out.

    Each connection has a queue for its requests. What comes in at the very moment when the connection ends can stay
    there: the end closes and empties the queue, and who had looked before whether it is open adds to it after. The
    queue is tokio's; https://github.com/hyperium/hyper/issues/4122 is the same race. Seen 3 times in some 370,000
    connections that turned away at once, and never in 318,000 that did so after the request had arrived.
    """

    lost: int = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        try:
            yield
        except RequestTimeout:
            self.lost += 1
            if self.lost > 1:
                raise


async def test_a_request_that_a_closing_connection_did_not_take_is_sent_again(clock: Clock) -> None:
    tries = Tries()
    for _ in range(20):
        with tries.one(), once_turned_away().opened() as gate:
            async with Client(gate.url, tls=None, clock=clock) as client:
                response = await client.request("POST", "/", body=b"once", timeout=30)
                assert response.status == 200
            assert gate.connections == 2
        with tries.one(), once_turned_away().opened() as gate:
            async with (
                Client(gate.url, tls=None, clock=clock) as client,
                client.stream("POST", "/", body=b"once", timeout=30) as stream,
            ):
                assert stream.status == 200
            assert gate.connections == 2


def once_turned_away() -> Gate:
    return Gate(lambda number: answer if number else turn_away_at_once)


async def test_a_request_that_is_never_taken_counts_as_not_sent(clock: Clock) -> None:
    tries = Tries()
    for _ in range(100):  # how far the client comes with a connection before it learns that it closes differs
        with tries.one():
            await _is_not_sent(turn_away_at_once, clock)


@pytest.mark.parametrize(("behave", "times"), [(turn_away_when_asked, 10), (refuse, 1)])
async def test_a_request_that_is_given_back_counts_as_not_sent(
    behave: Callable[[socket.socket], None], times: int, clock: Clock
) -> None:
    for _ in range(times):
        await _is_not_sent(behave, clock)


async def _is_not_sent(behave: Callable[[socket.socket], None], clock: Clock) -> None:
    with Gate(lambda number: behave).opened() as gate:
        async with Client(gate.url, tls=None, clock=clock) as client:
            with pytest.raises(PeerUnavailable) as caught:
                await client.request("POST", "/", body=b"once", timeout=30)
        assert not caught.value.sent, caught.value
        assert 1 <= gate.connections <= 6


async def test_a_body_that_cannot_be_read_again_is_not_sent_again(clock: Clock) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    with Gate(lambda number: answer if number else turn_away_at_once).opened() as gate:
        async with Client(gate.url, tls=None, clock=clock) as client:
            with pytest.raises(PeerUnavailable) as caught:
                await client.request("POST", "/", body=body(), timeout=60)
            assert not caught.value.sent
            assert gate.connections == 1
