"""A server in a process of its own, whose file descriptors the other side takes away: `python -m tests.net.starving`.

Prints its port; with the argument "unguarded" nothing keeps the library from accepting what it cannot."""

from __future__ import annotations

import asyncio
import sys

from littlebigcluster.net import Answer, Request, Router, Server


async def ping(request: Request) -> Answer:
    return Answer.json({})


async def main() -> None:
    router = Router()
    router.add("GET", "/", ping)
    server = Server(router, host="127.0.0.1", tls=None)
    await server.start()
    if sys.argv[1:] == ["unguarded"] and server._guard is not None:
        server._guard.cancel()
    print(server.address[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
