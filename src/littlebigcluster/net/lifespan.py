"""The start and the end of an ASGI application (the protocol's `lifespan`), once per server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from littlebigcluster.net.asgi import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 2.0


class Lifespan:
    """Runs an application's lifespan beside its requests.

    The application may put things into `state`; each request gets a shallow copy of it as `scope["state"]`. An
    application that knows no lifespan (it raises before it answers) is served without one, as the protocol asks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message | None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises RuntimeError with the application's own words when it refuses to start."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        answer = await self._ask("lifespan.startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            await self._end()
            raise RuntimeError(f"the application did not start: {answer.get('message') or 'it gave no reason'}")

    async def shutdown(self, timeout_seconds: float) -> None:
        """Lets the application clean up; cancels it when it takes longer than the time-out. Raises nothing."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._ask("lifespan.shutdown")
        except TimeoutError:
            _log.warning("the application did not shut down within %.1f s; it was cancelled", timeout_seconds)
        else:
            if answer is not None and answer["type"] == "lifespan.shutdown.failed":
                _log.error("the application failed to shut down: %s", answer.get("message", ""))
        await self._end()

    async def _ask(self, message_type: str) -> Message | None:
        if self._task is None or self._task.done():
            return None
        self._answer = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait({"type": message_type})
        return await self._answer

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._inbox.get, self._send)
        except Exception:
            _log.debug("the application ended its lifespan with an exception", exc_info=True)
        finally:
            self._reply(None)

    async def _send(self, message: Message) -> None:
        self._reply(message)

    def _reply(self, message: Message | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    async def _end(self) -> None:
        if self._task is not None:
            # A task that has answered its shutdown is about to return by itself.
            await asyncio.wait((self._task,), timeout=0.1)
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None


async def live_as_one(apps: Sequence[ASGIApp], scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespans of several applications as one; they share the state."""
    lives = [Lifespan(app) for app in apps]
    await receive()
    try:
        for life in lives:
            await life.startup()
            scope["state"].update(life.state)
    except RuntimeError as error:
        await _end_all(lives)
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await _end_all(lives)
    await send({"type": "lifespan.shutdown.complete"})


async def _end_all(lives: Sequence[Lifespan]) -> None:
    await asyncio.gather(*(life.shutdown(_SHUTDOWN_SECONDS) for life in lives))
