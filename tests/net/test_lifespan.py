"""Applications start and end once, also those that know no lifespan or misbehave."""

from __future__ import annotations

import asyncio

import pytest

from littlebigcluster.net import Receive, Scope, Send
from littlebigcluster.net.lifespan import Lifespan


async def test_an_application_without_a_lifespan_is_served() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(60)


async def test_an_application_that_returns_at_once_is_served() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(60)


async def test_an_application_that_does_not_end_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal cancelled
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled = True
            raise

    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(0.05)
    assert cancelled
    assert "it was cancelled" in caplog.text


async def test_a_failed_shutdown_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "disk full"})

    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(60)
    assert "disk full" in caplog.text
