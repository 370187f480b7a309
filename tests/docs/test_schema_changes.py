"""The pattern of docs/OPERATING.md for applications that migrate their schema, over rollbacks and changes of leader."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import littlebigcluster as lbc
from tests.cluster.group import all_fed, eventually, group
from tests.docs.documents import blocks
from tests.docs.test_operating import OPERATING
from tests.scenarios.stage import WAIT


def pattern() -> dict[str, Any]:
    """What the document defines."""
    (code,) = [text for _, text in blocks(OPERATING, "python") if "MIGRATIONS" in text]
    names: dict[str, Any] = {"lbc": lbc, "contextlib": contextlib}
    exec(code, names)
    return names


async def test_an_older_schema_that_comes_back_is_migrated_by_the_next_leader() -> None:
    names = pattern()
    async with group() as g:
        a = await g.node(can_lead=True)
        keeping = [asyncio.create_task(names["keep_migrated"](a))]
        await a.wait_until_leader(timeout=WAIT)

        async def version(node: lbc.Node) -> Any:
            return (await node.read("PRAGMA user_version"))[0][0]

        async with asyncio.timeout(WAIT):
            while await version(a) != 2 and not keeping[0].done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await a.execute("INSERT INTO job(name, worker) VALUES ('x', 'me')")
        b = await g.node(can_lead=True)
        keeping.append(asyncio.create_task(names["keep_migrated"](b)))
        await all_fed(b)
        await eventually(lambda: len(a.members.value) == 2)
        await a.rollback(1)
        assert (await version(a), await a.read("SELECT count(*) FROM sqlite_schema WHERE name = 'job'")) == (0, [(0,)])
        await a.step_down()
        await b.wait_until_leader(timeout=WAIT)
        async with asyncio.timeout(WAIT):
            while await version(b) != 2 and not keeping[1].done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await b.read("SELECT name, worker FROM job") == []
        await b.transaction(names["migrate"])
        names["MIGRATIONS"].pop()
        with pytest.raises(RuntimeError, match="the schema has version 2, this program knows 1: upgrade it"):
            await b.transaction(names["migrate"])
        assert await version(b) == 2
        for task in keeping:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.wait(keeping)
