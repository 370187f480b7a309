"""The node's HTTP face: the library's routes under `/.lbc/`, the application's own beside them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from littlebigcluster.cluster.forward import MAX_BODY_BYTES, Run, describe, serve_write
from littlebigcluster.cluster.snapshotting import SNAPSHOT_PATH
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import LbcError, NotLeader
from littlebigcluster.net import Answer, ASGIApp, Receive, Refused, Request, Router, Scope, Send, shows_certificate
from littlebigcluster.net.lifespan import live_as_one
from littlebigcluster.net.routes import send_answer

if TYPE_CHECKING:
    from littlebigcluster.cluster.node import Node
    from littlebigcluster.cluster.presence import Presence

LEADER_PATH = "/leader"
"""Where `leader_app` is mounted when there is an `app` too; else it is at the root."""

PING_PATH = "/.lbc/ping"
"""Answers 200: the node is there."""

LEADS_PATH = "/.lbc/leads"
"""Answers 200 when the node leads."""

REACHES_PATH = "/.lbc/reaches"
"""Answers whether the node hears the leader that is named by its id."""

ROLLBACK_PATH = "/.lbc/rollback"
"""Makes the state of a former epoch the present one, on the leader."""

HEAD_PATH = "/.lbc/head"
"""Answers, on the leader, with an epoch that covers every write acknowledged before the request."""

LEADER_HEADER = "x-lbc-leader"
"""On every 503 that says that this node does not lead: who does, as JSON (or null)."""

_HEAD_SECONDS = 5.0
"""Longer nobody who asks for the head waits."""


class Service:
    """An ASGI application. `app` is served by every node, `leader_app` by the leader only."""

    def __init__(
        self,
        node: Node,
        *,
        app: ASGIApp | None,
        leader_app: ASGIApp | None,
        presence: Callable[[], Presence | None],
        reaches: Callable[[Leader | None], bool],
        run: Run,
        head: Callable[[], Awaitable[int]],
        roll_back: Callable[[int], Awaitable[int]],
        snapshot: Callable[[Request], Awaitable[Answer]],
        members_only: bool,
    ) -> None:
        self._node, self._app, self._leader_app = node, app, leader_app
        self._proven_head, self._roll_back = head, roll_back
        self._presence, self._reaches_leader, self._members_only = presence, reaches, members_only
        self._router = Router(max_body_bytes=MAX_BODY_BYTES, max_bodies_bytes=node.settings.max_queued_bytes)
        self._router.add("GET", "/.lbc/status", self._status)
        self._router.add("GET", PING_PATH, self._ping)
        self._router.add("GET", LEADS_PATH, self._leads)
        self._router.add("GET", REACHES_PATH, self._reaches)
        self._router.add("GET", HEAD_PATH, self._head)
        self._router.add("POST", "/.lbc/feed", lambda request: self._leading().feed(request))
        self._router.add("POST", "/.lbc/report", lambda request: self._leading().report(request))
        self._router.add("POST", "/.lbc/write", lambda request: serve_write(request, run))
        self._router.add("POST", ROLLBACK_PATH, self._rollback)
        self._router.add("POST", SNAPSHOT_PATH, snapshot)
        self._router.add("POST", "/.lbc/step-down", self._step_down)
        self._router.add("POST", "/.lbc/leave", lambda request: self._leading().leave(request))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        path = scope["path"]
        if _meant_for(scope) not in (None, str(self._node.id)):
            await _refuse(scope, send, 421, {"error": f"this is node {self._node.id}"})
        elif path.startswith("/.lbc/"):
            await self._own(scope, receive, send)
        elif self._leader_app is not None and (self._app is None or _below(path)):
            await self._for_leader(scope, receive, send)
        elif self._app is not None:
            scope.setdefault("state", {})["lbc"] = self._node
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, send, 404, {"error": "this node serves no application"})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The lifespan of the application, or of both of them as one."""
        apps = [app for app in (self._app, self._leader_app) if app is not None]
        if len(apps) == 1:
            await apps[0](scope, receive, send)
        elif apps:
            await live_as_one(apps, scope, receive, send)

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._members_only and not shows_certificate(scope):
            why = "only members of the cluster may ask this; show a certificate"
            await _refuse(scope, send, 401, {"error": why})
        elif scope["type"] == "http":
            await self._router(scope, receive, send)
        else:
            await _refuse(scope, send, 404, {})

    async def _for_leader(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._node.is_leader:
            await _refuse(scope, send, 503, {"error": _NOT_LEADING, "leader": self._leader()}, self._elsewhere())
            return
        assert self._leader_app is not None
        scope.setdefault("state", {})["lbc"] = self._node
        if self._app is not None:
            scope["root_path"] = scope.get("root_path", "") + LEADER_PATH
        await self._leader_app(scope, receive, send)

    def _leading(self) -> Presence:
        presence = self._presence()
        if presence is None:
            raise Refused(503, _NOT_LEADING, headers=self._elsewhere())
        return presence

    def _leader(self) -> dict[str, str] | None:
        leader = self._node.leader.value
        return leader.to_json() if leader else None

    def _elsewhere(self) -> dict[str, str]:
        """Who leads instead, as of which epoch."""
        leader = self._leader()
        told = {**leader, "epoch": self._node.epoch.value} if leader else None
        return {"retry-after": "1", LEADER_HEADER: json.dumps(told)}

    async def _ping(self, request: Request) -> Answer:
        return Answer.json({})

    async def _leads(self, request: Request) -> Answer:
        self._leading()
        return Answer.json({})

    async def _reaches(self, request: Request) -> Answer:
        leader = self._node.leader.value
        known = leader is not None and str(leader.uuid) == request.query().get("leader")
        return Answer.json({"reaches": known and self._reaches_leader(leader)})

    async def _head(self, request: Request) -> Answer:
        self._leading()
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                return Answer.json({"epoch": await self._proven_head()})
        except (TimeoutError, LbcError) as error:
            raise Refused(503, f"it cannot be told whether this node still leads ({error})") from None

    async def _step_down(self, request: Request) -> Answer:
        try:
            to = (await request.json()).get("to")
            await self._node.step_down(to=None if to is None else UUID(to))
        except NotLeader as error:
            raise Refused(503, str(error)) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise Refused(400, str(error)) from None
        return Answer.json({})

    async def _rollback(self, request: Request) -> Answer:
        self._leading()
        try:
            to = (await request.json())["to"]
        except (ValueError, TypeError, KeyError):
            to = None
        if not isinstance(to, int) or to is True or to is False:
            raise Refused(400, "a rollback names the epoch to go back to")
        try:
            return Answer.json({"epoch": await self._roll_back(to)})
        except (LbcError, OSError, sqlite3.Error) as error:
            return Answer.json(describe(error), status=409)

    async def _status(self, request: Request) -> Answer:
        return Answer.json(self._node.status())


_NOT_LEADING = "this node does not lead"


def _meant_for(scope: Scope) -> str | None:
    """The node that the client wanted to reach, if it said so."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-lbc-to"), None)


def _below(path: str) -> bool:
    return path == LEADER_PATH or path.startswith(LEADER_PATH + "/")


async def _refuse(scope: Scope, send: Send, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send_answer(Answer.json(value, status, headers), send)
