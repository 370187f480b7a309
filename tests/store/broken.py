"""Stores that break the promise of a conditional create, each in its own way."""

from __future__ import annotations

import asyncio

from littlebigcluster.store import Created, CreateOutcome, Exists, Wrapper


class Ignoring(Wrapper):
    """Ignores the condition."""

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        await self.inner.put(key, body)
        return Created()


class Racy(Wrapper):
    """Looks, and then writes: right for one writer, wrong for two."""

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        if await self.inner.get(key) is not None:
            return Exists()
        await asyncio.sleep(0.001)
        await self.inner.put(key, body)
        return Created()


class Overwriting(Wrapper):
    """Answers rightly, and writes all the same."""

    async def create(self, key: str, body: bytes) -> CreateOutcome:
        outcome = await self.inner.create(key, body)
        if outcome == Exists():
            await self.inner.put(key, body)
        return outcome
