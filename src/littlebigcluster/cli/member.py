"""`lbc leader` and `lbc follower`: a member of the cluster that tells what it sees."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from littlebigcluster.cli.members import View, changes, members_table, view_of
from littlebigcluster.cli.signals import Stopped, run
from littlebigcluster.cli.text import rendered
from littlebigcluster.cluster import Cluster, Node
from littlebigcluster.settings import NodeSettings


def run_member(cluster: Cluster, *, can_lead: bool, az: str, settings: NodeSettings) -> None:
    """Join and stay until a signal comes; then leave in good order, releasing the leadership."""
    logger = logging.getLogger("lbc.leader" if can_lead else "lbc.follower")
    try:
        run(_stay(cluster, logger, can_lead=can_lead, az=az, settings=settings))
    except Stopped as stopped:
        logger.info("Left the cluster (%s).", stopped)


async def _stay(cluster: Cluster, logger: logging.Logger, *, can_lead: bool, **options: Any) -> NoReturn:
    logger.info("Joining cluster...")
    async with cluster.join(can_lead=can_lead, **options) as node:
        logger.info("Joined cluster!%s", f" Listening on {_url(node)}" if node.address else "")
        try:
            await _Narrator(node, logger).follow()
        finally:
            leaving = "Releasing the leadership..." if node.is_leader else "Leaving the cluster..."
            logger.info("%s (again to stop at once)", leaving)


def _url(node: Node) -> str:
    return f"https://{node.address}"


class _Narrator:
    """Tells what changes, in the order in which it changes."""

    def __init__(self, node: Node, logger: logging.Logger) -> None:
        self._node, self._logger = node, logger
        self._view: View | None = None

    async def follow(self) -> NoReturn:
        async for _ in self._node.leader:
            first, led = self._view is None, self._leads
            view = view_of(self._node)
            leads = view.leader == view.me
            if leads and not led:
                self._logger.info("We are the new leader!")
            if led and not leads:
                self._logger.warning("We are not the leader any more.")
            self._tell(view)
            if self._node.can_lead and not leads and (first or led):
                self._logger.info("Waiting for leadership...")
        raise AssertionError("the watch on the leader never ends by itself")

    @property
    def _leads(self) -> bool:
        return self._view is not None and self._view.leader == self._view.me

    def _tell(self, view: View) -> None:
        for headline in changes(self._view, view):
            self._logger.info("%s\n%s", headline, rendered(members_table(view)))
        self._view = view
