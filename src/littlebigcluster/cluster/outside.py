"""Asking the leader of a cluster without joining it: who can read the bucket is trusted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import inspect
from littlebigcluster.cluster.certificates import load_authorities
from littlebigcluster.errors import LbcError, NotLeader
from littlebigcluster.net import Client
from littlebigcluster.store import Store

TIMEOUT_SECONDS = 15.0


async def ask_leader(
    store: Store, method: str, path: str, value: Any = None, *, expected_id: str | None, clock: Clock
) -> Any:
    """The JSON that the leader answers, as the log names it.

    Raises NotLeader when nobody leads, PeerUnavailable, RequestTimeout, LbcError for a refusal, and what reading
    the store raises.
    """
    leader = (await inspect.status(store, expected_id=expected_id)).leader
    if leader is None or not leader.address:
        raise NotLeader("nobody leads at the moment")
    authorities = await load_authorities(store)
    identity = await asyncio.to_thread(authorities.mint, clock.uuid7(), [], clock)
    body = None if value is None else json.dumps(value).encode()
    headers = {"x-lbc-to": str(leader.uuid), "content-type": "application/json"}
    async with Client(f"https://{leader.address}", tls=identity, clock=clock) as client:
        response = await client.request(method, path, headers=headers, body=body, timeout=TIMEOUT_SECONDS)
    answer = response.json()
    if response.status != 200:
        raise LbcError(f"{leader.address} refuses: {answer.get('error', response.status)}")
    return answer
