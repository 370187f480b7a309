"""The smallest cluster: nodes that join, elect a leader, and say so.

python examples/lol_cluster.py -p /tmp/lol init
python examples/lol_cluster.py -p /tmp/lol leader      # several of them stand by for each other
python examples/lol_cluster.py -p /tmp/lol follower    # as many as you like
"""

import argparse
import asyncio
import logging
import time

from rich import box
from rich.console import Console
from rich.table import Table

import littlebigcluster as lbc

log = logging.getLogger("lol_cluster")


def members(node: lbc.Node) -> str:
    """A table of whom this node knows: `*` is itself, `L` the leader."""
    leader = node.leader.value
    known = {node.id: (node.address, node.az)} | ({leader.uuid: (leader.address, leader.az)} if leader else {})
    table = Table("", f"UUID({len(known)})", "Address", "AZ", box=box.SQUARE)
    for uuid, (address, az) in sorted(known.items()):
        mark = "*" * (uuid == node.id) + "L" * (leader is not None and uuid == leader.uuid)
        table.add_row(mark, str(uuid), address, az)
    with (console := Console(width=100)).capture() as text:
        console.print(table)
    return text.get().rstrip()


async def tell_leaders(node: lbc.Node) -> None:
    headline = "Initial members:"
    async for _ in node.leader:
        log.info("%s\n%s", headline, members(node))
        headline = "Leader changed:"


async def init(cluster: lbc.Cluster, az: str) -> None:
    log.info("Initializing cluster...")
    await cluster.init()
    log.info("Cluster initialized!")


async def leader(cluster: lbc.Cluster, az: str) -> None:
    log.info("Joining cluster...")
    async with cluster.join(az=az, can_lead=True) as node, asyncio.TaskGroup() as tasks:
        log.info("Joined cluster!")
        tasks.create_task(tell_leaders(node))
        log.info("Waiting for leadership...")
        await node.wait_until_leader()
        log.info("We are the new leader!")


async def follower(cluster: lbc.Cluster, az: str) -> None:
    log.info("Joining cluster...")
    async with cluster.join(az=az) as node:
        log.info("Joined cluster!")
        await tell_leaders(node)


if __name__ == "__main__":
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(format="%(asctime)s.%(msecs)03dZ %(levelname)5s %(name)s: %(message)s", datefmt="%FT%T")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-p", "--path", required=True, help="the object store: a directory, s3://bucket/prefix ...")
    parser.add_argument("--az", default="AZ0", help="this node's availability zone")
    parser.add_argument("command", choices=["init", "leader", "follower"])
    given = parser.parse_args()
    try:
        asyncio.run(globals()[given.command](lbc.Cluster(given.path), given.az))
    except KeyboardInterrupt:
        log.info("Left the cluster.")
    except lbc.LbcError as error:
        raise SystemExit(f"Error: {error}") from None
