"""Becoming a member for a while, and ceasing to be one in good order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.description import Description
from littlebigcluster.cluster.directory import node_directory
from littlebigcluster.cluster.node import Node
from littlebigcluster.cluster.statements import Procedures
from littlebigcluster.epochs import names, read_identity
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Store, probe_exists
from littlebigcluster.threads import carried_through


class Join:
    """`async with cluster.join(...) as node`. When the node fails in the background, the body is cancelled and the
    failure raised from the `async with`."""

    def __init__(
        self,
        store: Store,
        expected_id: str | None,
        settings: NodeSettings,
        description: Description,
        procedures: Procedures,
        *,
        clock: Clock,
    ) -> None:
        self._store, self._expected_id, self._settings = store, expected_id, settings
        self._description, self._procedures, self._clock = description, procedures, clock
        self._failed = self._leaving = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"a Join has no {name!r}: `async with cluster.join(...) as node` gives the node")

    async def __aenter__(self) -> Node:
        identity, body = await read_identity(self._store, expected_id=self._expected_id)
        await probe_exists(self._store, names.CLUSTER, body)
        self._directory = AsyncExitStack()
        directory = await self._directory.enter_async_context(node_directory(self._settings.directory))
        try:
            self._node = Node(
                self._store, identity, directory, self._settings,
                description=self._description,
                procedures=self._procedures,
                clock=self._clock,
            )  # fmt: skip
            try:
                await self._node._start()
            except BaseException:
                await carried_through(self._node._close())
                raise
        except BaseException:
            await self._directory.aclose()
            raise
        body_task = asyncio.current_task()
        assert body_task is not None
        self._body: asyncio.Task[Any] = body_task
        self._main = asyncio.create_task(self._node._run(), name=f"lbc-{self._node.id}")
        self._main.add_done_callback(self._on_end)
        return self._node

    def _on_end(self, main: asyncio.Task[None]) -> None:
        if not main.cancelled() and main.exception() is not None and not self._leaving:
            self._failed = True
            self._body.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leaving = True  # the end of `main` may be on its way to `_on_end` already
        cancelled_by_us = self._failed and self._body.uncancel() == 0
        ending = asyncio.create_task(self._end())
        interrupted: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError as cancelled:
                # At once, then, without a release; but nothing is left behind.
                interrupted = cancelled
                self._main.cancel()
        ending.result()
        if interrupted is not None:
            raise interrupted
        if not self._main.cancelled():
            failure = self._main.exception()
            if failure is not None and (error is None or (cancelled_by_us and kind is asyncio.CancelledError)):
                raise failure

    async def _end(self) -> None:
        try:
            await self._node._stop(self._main)
        finally:
            await self._node._close()
            await self._directory.aclose()
