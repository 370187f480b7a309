"""The relay of the tests leaves nothing open, whose finding would fail a test that has no part in it."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import pytest

from tests.net import relay
from tests.net.relay import Relay


async def test_a_relay_that_ends_at_any_moment_leaves_no_connection_open() -> None:
    for turns in range(20):
        with socket.create_server(("127.0.0.1", 0)) as target:
            async with Relay(target.getsockname()) as between:
                with socket.create_connection(("127.0.0.1", between.port)):
                    for _ in range(turns):
                        await asyncio.sleep(0)
        gc.collect()


async def test_a_relay_to_nobody_breaks_the_connection() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with Relay(nobody.getsockname()) as between:
            reader, writer = await asyncio.open_connection("127.0.0.1", between.port)
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()
    gc.collect()


async def test_a_connection_that_comes_at_the_moment_of_the_end_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, some_turns = list[socket.socket](), relay.some_turns

    async def and_a_client_comes() -> None:
        await some_turns()
        if not late:
            late.append(socket.create_connection(("127.0.0.1", ending.port)))
            for _ in range(2):  # so many it takes to accept it, and not yet to know it
                await asyncio.sleep(0)

    monkeypatch.setattr(relay, "some_turns", and_a_client_comes)
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with Relay(("127.0.0.1", 1)) as ending:
        pass
    late[0].close()
    assert said == []
