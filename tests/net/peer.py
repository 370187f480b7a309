"""A server or a client in a process of its own, to be frozen, killed or cut off. Speaks JSON lines on stdio.

    python -m tests.net.peer server HOST       hosts the ContractApp; prints its port, then what happens to it
    python -m tests.net.peer client URL PATH   streams PATH; prints "piece" once, then how the stream ended

The first line of its input is the identity.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net import Client, NodeIdentity, Server, load_identity
from tests.net.app import ContractApp


class Peer:
    """The parent's side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def told(self, wanted: str | None = None, *, within_seconds: float = 60.0) -> str:
        """The next line it prints, or the next that is `wanted`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_seconds):
            while line := await self.process.stdout.readline():
                word = str(json.loads(line))
                if wanted is None or word == wanted:
                    return word
        raise AssertionError("the process ended")


@asynccontextmanager
async def peer(identity: NodeIdentity, *arguments: str, prefix: tuple[str, ...] = ()) -> AsyncIterator[Peer]:
    pipe = asyncio.subprocess.PIPE
    command = (*prefix, sys.executable, "-m", "tests.net.peer", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    process.stdin.write(json.dumps([identity.cert_pem, identity.key_pem, identity.ca_bundle_pem]).encode() + b"\n")
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _tell(word: str) -> None:
    print(json.dumps(word), flush=True)


async def _serve(identity: NodeIdentity, host: str) -> None:
    server = Server(ContractApp(_tell), host=host, tls=identity)
    await server.start()
    _tell(str(server.address[1]))
    await server.wait()


async def _follow(identity: NodeIdentity, url: str, path: str) -> None:
    async with Client(url, tls=identity, clock=Clock(), connect_timeout_seconds=60) as client:
        try:
            async with client.stream("GET", path) as response:
                async for _ in response:
                    _tell("piece")
            _tell("ended")
        except PeerUnavailable:
            _tell("lost")


def main() -> None:
    identity = load_identity(*map(str.encode, json.loads(sys.stdin.readline())), host=None, now=Clock().now())
    role, *arguments = sys.argv[1:]
    asyncio.run({"server": _serve, "client": _follow}[role](identity, *arguments))


if __name__ == "__main__":
    main()
