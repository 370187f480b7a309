"""The smallest cluster: nodes that join, elect a leader, and say so.

python examples/lol_cluster.py -p /tmp/lol init
python examples/lol_cluster.py -p /tmp/lol leader      # several of them stand by for each other
python examples/lol_cluster.py -p /tmp/lol follower    # as many as you like
"""

import argparse
import asyncio
import logging
import signal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import littlebigcluster as lbc

log = logging.getLogger("lol_cluster")


def members(node: lbc.Node) -> str:
    """A table of whom this node knows: `*` is itself, `L` the leader."""
    leader, known = node.leader.value, {node.id: (node.address, node.az, node.roles)}
    known |= {member.id: (member.address, member.az, member.roles) for member in node.members.value}
    table = Table("", f"UUID({len(known)})", "Address", "AZ", "Roles", box=box.SQUARE)
    for uuid, (address, az, roles) in sorted(known.items()):
        mark = "*" * (uuid == node.id) + "L" * (leader is not None and uuid == leader.uuid)
        table.add_row(mark, str(uuid), address, az, ", ".join(roles))
    with (console := Console(width=120)).capture() as text:
        console.print(table)
    return text.get().rstrip()


async def tell(node: lbc.Node) -> None:
    """Print the members, now and at each change."""
    shown = ""

    async def follow(watch: lbc.Watch[Any], headline: str) -> None:
        nonlocal shown
        async for _ in watch:
            if (now := members(node)) != shown:
                log.info("%s\n%s", headline if shown else "Initial members:", now)
                shown = now

    await asyncio.gather(follow(node.leader, "Leader changed:"), follow(node.members, "Members changed:"))


async def init(cluster: lbc.Cluster) -> None:
    log.info("Initializing cluster...")
    await cluster.init()
    log.info("Cluster initialized!")


async def join(cluster: lbc.Cluster, az: str, can_lead: bool) -> None:
    log.info("Joining cluster...")
    task = asyncio.current_task()
    assert task is not None
    # Like Ctrl-C: whoever leads releases the leadership, so that the next one need not wait.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with cluster.join(az=az, can_lead=can_lead) as node, asyncio.TaskGroup() as tasks:
        log.info("Joined cluster! Listening on https://%s", node.address)
        tasks.create_task(tell(node))
        if can_lead:
            log.info("Waiting for leadership...")
            await node.wait_until_leader()
            log.info("We are the new leader!")


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)5s %(name)s: %(message)s", datefmt="%FT%T%z")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-p", "--path", required=True, help="the object store: a directory, s3://bucket/prefix ...")
    parser.add_argument("--az", default="AZ0", help="this node's availability zone")
    parser.add_argument("command", choices=["init", "leader", "follower"])
    given = parser.parse_args()
    cluster = lbc.Cluster(given.path)
    try:
        asyncio.run(init(cluster) if given.command == "init" else join(cluster, given.az, given.command == "leader"))
    except (KeyboardInterrupt, asyncio.CancelledError):
        log.info("Left the cluster.")
    except lbc.LbcError as error:
        raise SystemExit(f"Error: {error}") from None
