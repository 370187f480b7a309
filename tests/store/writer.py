"""A process that creates the objects 0, 1, 2, ... in a directory and says of each, once it is durable, whose it is.

python -m tests.store.writer DIRECTORY NAME COUNT
"""

from __future__ import annotations

import asyncio
import sys

from littlebigcluster.clock import Clock
from littlebigcluster.store import Mine, open_store, put_if_absent


async def main(directory: str, name: str, count: int) -> None:
    clock = Clock()
    store = open_store(directory, clock=clock)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for number in range(count):
        body = f"{name} {number} ".encode() * 500
        result = await put_if_absent(store, f"log/{number:06}", body, clock=clock, deadline_seconds=20)
        await store.put("marker", f"{number:06}".encode() * 1000)
        print(number, "mine" if isinstance(result, Mine) else "theirs", flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
