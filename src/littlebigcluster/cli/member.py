"""`lbc leader` and `lbc follower`: a member of the cluster that tells what it sees."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from littlebigcluster.cli.members import View, changes, members_table, view_of
from littlebigcluster.cli.signals import Stopped, run
from littlebigcluster.cli.text import rendered
from littlebigcluster.cluster import Cluster, Node
from littlebigcluster.watch import Watch


def run_member(cluster: Cluster, *, can_lead: bool, **options: Any) -> None:
    """Join and stay until a signal comes; then leave in good order, releasing the leadership. The options are those
    of `Cluster.join`."""
    logger = logging.getLogger("lbc.leader" if can_lead else "lbc.follower")
    try:
        run(_stay(cluster, logger, can_lead=can_lead, **options))
    except Stopped as stopped:
        logger.info("Left the cluster (%s).", stopped)


async def _stay(cluster: Cluster, logger: logging.Logger, *, can_lead: bool, **options: Any) -> None:
    logger.info("Joining cluster...")
    async with cluster.join(can_lead=can_lead, **options) as node:
        logger.info("Joined cluster! Listening on %s", _url(node))
        try:
            await _Narrator(node, logger).follow()
        finally:
            leaving = "Releasing the leadership..." if node.is_leader else "Leaving the cluster..."
            logger.info("%s (again to stop at once)", leaving)


def _url(node: Node) -> str:
    return f"{'https' if node.settings.tls == 'on' else 'http'}://{node.address}"


class _Narrator:
    """Tells what changes, in the order in which it changes."""

    def __init__(self, node: Node, logger: logging.Logger) -> None:
        self._node, self._logger = node, logger
        self._view: View | None = None

    async def follow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(self._node.leader))
            tasks.create_task(self._watch(self._node.members))

    async def _watch(self, watch: Watch[Any]) -> None:
        async for _ in watch:
            self._look()

    def _look(self) -> None:
        before, view = self._view, view_of(self._node)
        led, leads = before is not None and before.leads, view.leads
        if leads and not led:
            self._logger.info("We are the new leader!")
        if led and not leads:
            self._logger.warning("We are not the leader any more.")
        for headline in changes(before, view):
            self._logger.info("%s\n%s", headline, rendered(members_table(view)))
        if self._node.can_lead and not leads and (before is None or led):
            self._logger.info("Waiting for leadership...")
        self._view = view
