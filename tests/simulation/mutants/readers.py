"""Mutants of what readers are promised."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from littlebigcluster.cluster.node import Node
from tests.simulation.mutants.lives import Impatient
from tests.simulation.mutants.mutant import Mutant


def strong_proves_nothing() -> AbstractContextManager[Any]:
    async def broken(self: Any) -> None:
        await asyncio.sleep(0)

    return patch.object(Node, "_prove_head", broken)


def leader_believes_itself() -> AbstractContextManager[Any]:
    """A strong read on a node that believes to lead is answered without a look at the store."""
    prove = Node._prove_head

    async def broken(self: Any) -> None:
        if not self.is_leader:
            await prove(self)

    return patch.object(Node, "_prove_head", broken)


def at_least_is_not_waited_for() -> AbstractContextManager[Any]:
    async def broken(self: Any, epoch: int) -> None:
        await asyncio.sleep(0)

    return patch.object(Node, "_reach", broken)


def answered_before_visible() -> AbstractContextManager[Any]:
    async def broken(self: Any, work: Any, limit: float, key: str | None) -> Any:
        return await self._forwarder.send(work, timeout=limit, key=key)

    return patch.object(Node, "_forward", broken)


MUTANTS = [
    Mutant("strong proves nothing", "a strong read includes all that was acknowledged before", strong_proves_nothing),
    Mutant("leader believes itself", "a strong read on a deposed leader is not stale", leader_believes_itself, 3),
    Mutant("at_least not waited for", "at_least=epoch includes that epoch", at_least_is_not_waited_for, 1),
    Mutant("answered before visible", "execute returns when reads see it", answered_before_visible, life=Impatient),
]
