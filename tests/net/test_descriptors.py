"""A server that runs out of file descriptors: open connections go on, new ones are taken again when there are some."""

from __future__ import annotations

import asyncio
import resource
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


class Starving:
    def __init__(self, process: Process, port: int) -> None:
        self.pid, self.url = process.pid, f"http://127.0.0.1:{port}"
        self._process = process
        self._limits = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)

    def starve(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (1, self._limits[1]))

    def feed(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, self._limits)

    async def says(self, what: str) -> None:
        """Wait until it has logged this."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while what not in (line := (await self._process.stderr.readline()).decode()):
                assert line, "the process ended"

    def client(self, *, connect_timeout_seconds: float = 0.5) -> Client:
        """Of a stranger. Those who must be let in have time."""
        return Client(self.url, tls=None, clock=Clock(), connect_timeout_seconds=connect_timeout_seconds)

    async def answers_strangers(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                async with self.client() as stranger:
                    try:
                        assert (await stranger.request("GET", "/", timeout=1)).status == 200
                        return
                    except (PeerUnavailable, RequestTimeout):
                        await asyncio.sleep(0.1)


@asynccontextmanager
async def starving(*arguments: str) -> AsyncIterator[Starving]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.net.starving", *arguments, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdin is not None
    made = Starving(process, int(await process.stdout.readline()))
    try:
        yield made
    finally:
        made.feed()
        process.stdin.close()
        await process.communicate()
        assert process.returncode == 0, "it can be stopped in any state"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the server drops its connections, and comes back")
async def test_open_connections_go_on_without_descriptors_and_new_ones_wait_for_some() -> None:
    async with starving() as server, server.client(connect_timeout_seconds=PATIENCE_SECONDS) as known:
        assert (await known.request("GET", "/")).status == 200
        server.starve()
        await server.says("no new connections are taken")
        for _ in range(3):
            async with server.client() as stranger:
                with pytest.raises((PeerUnavailable, RequestTimeout)) as caught:
                    await stranger.request("GET", "/", timeout=5)
            if isinstance(caught.value, PeerUnavailable):
                assert not caught.value.sent
            assert (await known.request("GET", "/")).status == 200
        server.feed()
        await server.answers_strangers()
        assert (await known.request("GET", "/")).status == 200


async def test_a_server_that_could_not_accept_comes_back() -> None:
    async with starving("unguarded") as server:
        server.starve()
        async with server.client() as stranger:
            with pytest.raises((PeerUnavailable, RequestTimeout)):
                await stranger.request("GET", "/", timeout=2)
        await server.says("accepts no connections")
        await asyncio.sleep(1.0)  # so that an attempt to come back is in vain, mostly
        server.feed()
        await server.answers_strangers()


async def test_a_server_can_be_stopped_while_it_cannot_accept() -> None:
    async with starving("unguarded") as server:
        server.starve()
        async with server.client() as stranger:
            with pytest.raises((PeerUnavailable, RequestTimeout)):
                await stranger.request("GET", "/", timeout=2)
