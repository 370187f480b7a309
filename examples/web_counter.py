"""A counter on the web: every node serves it, any node takes a click, all of them show the same number.

python examples/web_counter.py /tmp/counter 127.0.0.1:8001      # as many as you like, each with an address of its own
python examples/web_counter.py /tmp/counter 127.0.0.1:8002
curl --insecure -X POST https://127.0.0.1:8001/clicks
curl --insecure https://127.0.0.1:8002/clicks
"""

import asyncio
import contextlib
import signal
import sys
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request

import littlebigcluster as lbc

SCHEMA = """CREATE TABLE IF NOT EXISTS counter(clicks INTEGER);
            INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT * FROM counter)"""


def this_node(request: Request) -> lbc.Node:
    return request.state.lbc


Node = Annotated[lbc.Node, Depends(this_node)]
Key = Annotated[str | None, Header(min_length=1, max_length=64)]  # who repeats a click with its key is counted once
app = FastAPI()


@app.get("/clicks")
async def show(node: Node) -> int:
    return (await node.read("SELECT clicks FROM counter"))[0][0]


@app.post("/clicks")
async def click(node: Node, idempotency_key: Key = None) -> int:
    done = await node.execute("UPDATE counter SET clicks = clicks + 1 RETURNING clicks", key=idempotency_key)
    return done.value.rows[0][0]


async def main(path: str, address: str) -> None:
    cluster = lbc.Cluster(path)
    with contextlib.suppress(lbc.AlreadyInitialized):
        await cluster.init()
    # Browsers have no certificate of this cluster, and who waits for a click does not wait long for a new leader.
    settings = lbc.NodeSettings(clients="anyone", leader_timeout=5)
    web = lbc.ReadYourWrites(app, cookie=True)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # like Ctrl-C: in good order
    async with cluster.join(can_lead=True, address=address, app=web, settings=settings) as node:
        await node.executescript(SCHEMA)
        print(f"Counting at https://{node.address}/clicks", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main(*sys.argv[1:]))
