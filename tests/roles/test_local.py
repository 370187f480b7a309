"""The local copy of a node: what it says of itself is of one moment."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.roles.long_logs import CLOCK, LongLog

from littlebigcluster.database import PageSource, Readers, StateChecksum
from littlebigcluster.roles import LocalCopy, local
from littlebigcluster.settings import NodeSettings


async def test_an_image_made_while_the_copy_is_replaced_is_that_of_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await LongLog(tmp_path, seed=1).begin()
    copy = LocalCopy(log.store, log.identity, tmp_path / "copy", NodeSettings(), clock=CLOCK)
    await copy.start()
    await log.write(3)
    gate = threading.Event()
    copy._thread.submit(gate.wait)
    asked = asyncio.create_task(copy.image())
    await asyncio.sleep(0)

    def readers(*arguments: Any, **options: Any) -> Readers:
        gate.set()  # in the midst of the change
        time.sleep(0.2)
        return Readers(*arguments, **options)

    monkeypatch.setattr(local, "Readers", readers)
    await copy.replace()
    image, metadata, position = await asked
    with image:
        checksum = StateChecksum(log.page_size)
        for chunk in image.chunks():
            checksum.feed(chunk)
    assert f"{checksum.value:016x}" == metadata.state_checksum
    assert position.epoch == metadata.epoch
    await copy.close()
    log.close()


async def test_the_former_copy_is_closed_when_its_replacement_is_cancelled_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await LongLog(tmp_path, seed=1).begin()
    copy = LocalCopy(log.store, log.identity, tmp_path / "copy", NodeSettings(), clock=CLOCK)
    await copy.start()
    former, close, closing = copy.replica, Readers.close, asyncio.Event()

    async def hanging(readers: Readers, *, timeout: float) -> bool:
        await close(readers, timeout=timeout)
        closing.set()
        return await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Readers, "close", hanging)
        replacing = asyncio.create_task(copy.replace())
        await closing.wait()
        replacing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replacing
    with pytest.raises(AttributeError):  # its descriptors are given back
        former.connect()
    await copy.close()
    log.close()


async def test_an_image_that_nobody_waits_for_any_more_is_closed(tmp_path: Path) -> None:
    log = await LongLog(tmp_path, seed=1).begin()
    copy = LocalCopy(log.store, log.identity, tmp_path / "copy", NodeSettings(), clock=CLOCK)
    await copy.start()
    images: list[PageSource] = []
    pages, begun, go_on = copy.replica.pages, threading.Event(), threading.Event()

    def slowly() -> PageSource:
        images.append(pages())
        begun.set()
        go_on.wait()
        return images[0]

    copy.replica.pages = slowly  # type: ignore[method-assign]
    asked = asyncio.create_task(copy.image())
    await asyncio.to_thread(begun.wait)
    asked.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asked
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        images[0]._connection.execute("SELECT 1")
    await copy.close()
    log.close()
