"""One proof for all who ask at a time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from littlebigcluster import LbcError, StoreUnavailable
from littlebigcluster.roles import SharedProof


async def test_a_proof_that_fails_when_all_who_asked_have_gone_is_no_unseen_failure() -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    fail = asyncio.Event()

    async def prove() -> None:
        await fail.wait()
        raise StoreUnavailable("silent")

    proof = SharedProof(prove)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await proof.wait()
    fail.set()
    await asyncio.sleep(0.01)
    del proof
    gc.collect()
    assert said == []


async def test_proofs_that_fail_one_after_the_other_are_forgotten() -> None:
    class Failure(StoreUnavailable):
        pass

    failures: list[weakref.ref[Failure]] = []

    async def prove() -> None:
        failure = Failure("silent")
        failures.append(weakref.ref(failure))
        raise failure

    proof = SharedProof(prove)
    for _ in range(10):
        with pytest.raises(Failure):
            await proof.wait()
    gc.collect()
    assert sum(failure() is not None for failure in failures) <= 1


async def test_at_the_end_who_waits_is_told_and_not_cancelled_and_no_proof_begins_any_more() -> None:
    """Whoever reads in a task of its own would be taken for one that somebody has cancelled."""
    begun = 0

    async def prove() -> None:
        nonlocal begun
        begun += 1
        await asyncio.Event().wait()

    proof = SharedProof(prove)
    waiting = asyncio.create_task(proof.wait())
    await asyncio.sleep(0)
    late = asyncio.create_task(proof.wait())
    await asyncio.sleep(0)
    await proof.close()
    for task in (waiting, late, asyncio.create_task(proof.wait())):
        with pytest.raises(LbcError, match="stopped"):
            await task
    assert begun == 1
