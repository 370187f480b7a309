"""The relay of the tests leaves nothing open, whose finding would fail a test that has no part in it."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

from tests.net.relay import Relay


async def test_a_relay_that_ends_at_any_moment_leaves_no_connection_open() -> None:
    for turns in range(20):
        with socket.create_server(("127.0.0.1", 0)) as target:
            async with Relay(target.getsockname()) as relay:
                with socket.create_connection(("127.0.0.1", relay.port)):
                    for _ in range(turns):
                        await asyncio.sleep(0)
        gc.collect()


async def test_a_relay_to_nobody_breaks_the_connection() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with Relay(nobody.getsockname()) as relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()
    gc.collect()


async def test_a_connection_that_comes_at_the_moment_of_the_end_is_not_forgotten() -> None:
    relay, late = Relay(("127.0.0.1", 1)), list[socket.socket]()
    some_turns = relay._some_turns

    async def and_a_client_comes() -> None:
        await some_turns()
        if not late:
            late.append(socket.create_connection(("127.0.0.1", relay.port)))
            for _ in range(2):  # so many it takes to accept it, and not yet to know it
                await asyncio.sleep(0)

    relay._some_turns = and_a_client_comes  # type: ignore[method-assign]
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with relay:
        pass
    late[0].close()
    assert said == []
