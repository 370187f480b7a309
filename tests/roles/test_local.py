"""The local copy of a node: what it says of itself is of one moment."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.roles.long_logs import CLOCK, LongLog

from littlebigcluster.database import Readers, StateChecksum
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
