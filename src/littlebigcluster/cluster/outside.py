"""Asking the leader of a cluster without joining it: who can read the bucket is trusted."""

from __future__ import annotations

import json
from typing import Any

from littlebigcluster.clock import Clock
from littlebigcluster.cluster import inspect
from littlebigcluster.cluster.identity import source_of
from littlebigcluster.cluster.service import LEADER_HEADER
from littlebigcluster.epochs import Leader
from littlebigcluster.errors import LbcError, NotLeader, PeerUnavailable
from littlebigcluster.net import Client
from littlebigcluster.reasons import BROKEN, NOT_PLAIN_HTTP2, NOT_TLS, REFUSED, SILENT, UNKNOWN_HOST, UNTRUSTED
from littlebigcluster.settings import NodeSettings
from littlebigcluster.store import Store

TIMEOUT_SECONDS = 15.0


async def ask_leader(
    store: Store,
    method: str,
    path: str,
    value: Any = None,
    *,
    expected_id: str | None,
    settings: NodeSettings,
    timeout: float = TIMEOUT_SECONDS,
    clock: Clock,
) -> Any:
    """The JSON that the leader answers within `timeout` seconds, as the log names it. `settings` say how the nodes of
    the cluster talk: over TLS or not, and by whose certificates. No other way is tried.

    Raises NotLeader when nobody leads, PeerUnavailable, RequestTimeout, LbcError for a refusal, ValueError for an own
    certificate that cannot be used, and what reading the store raises.
    """
    leader = (await inspect.status(store, expected_id=expected_id)).leader
    if leader is None or not leader.address:
        raise NotLeader("nobody leads at the moment")
    return await ask(store, leader, method, path, value, settings=settings, timeout=timeout, clock=clock)


async def ask(
    store: Store,
    leader: Leader,
    method: str,
    path: str,
    value: Any = None,
    *,
    settings: NodeSettings,
    timeout: float = TIMEOUT_SECONDS,
    clock: Clock,
) -> Any:
    """The JSON that this node answers within `timeout` seconds; see `ask_leader`. Raises NotLeader when it says that it
    does not lead."""
    secure = settings.tls == "on"
    identity = await source_of(store, clock.uuid7(), settings, [], clock=clock).look() if secure else None
    body = None if value is None else json.dumps(value).encode()
    headers = {"x-lbc-to": str(leader.uuid), "content-type": "application/json"}
    async with Client(f"{'https' if secure else 'http'}://{leader.address}", tls=identity, clock=clock) as client:
        try:
            response = await client.request(method, path, headers=headers, body=body, timeout=timeout)
        except PeerUnavailable as error:
            why = f"no talking to the leader {_how(settings)}: {error}"
            raise PeerUnavailable(
                why + _advice(str(error), settings), sent=error.sent, refused=error.refused
            ) from error
    try:
        answer = response.json()
        refusal = response.status != 200 and answer.get("error", response.status)
    except (ValueError, AttributeError):
        answer, refusal = None, f"it answers {response.status} without JSON"
    if refusal:
        # 421: it is another node that listens there now.
        elsewhere = response.status == 421 or (response.status == 503 and LEADER_HEADER in response.headers)
        raise (NotLeader if elsewhere else LbcError)(f"{leader.address} refuses: {refusal}")
    return answer


def _how(settings: NodeSettings) -> str:
    if settings.tls == "off":
        return "without TLS"
    return "over TLS with " + (
        "the given certificate" if settings.tls_certificate is not None else "the cluster's certificates"
    )


_PERHAPS_DEAD = "if it is dead, the next node that can lead takes over"
_OTHERS = "certificates of their own (--tls-certificate), or is another cluster's node at that address?"
_WITH_TLS = 'the nodes run with TLS: leave out --tls off, or tls="off"'
_ADVICE = {
    REFUSED: _PERHAPS_DEAD,
    SILENT: _PERHAPS_DEAD,
    UNKNOWN_HOST: "can it be reached from this machine at all?",
    UNTRUSTED: f"do the nodes have {_OTHERS}",
    BROKEN: f"do the nodes run without TLS (--tls off), or with {_OTHERS}",
    NOT_TLS: 'the nodes run without TLS: say so, with --tls off or tls="off"',
    NOT_PLAIN_HTTP2: _WITH_TLS,
}


def _advice(failure: str, settings: NodeSettings) -> str:
    # Whether its answer in TLS, or the end of the connection, is seen first is a matter of luck.
    advice = {**_ADVICE, BROKEN: _WITH_TLS} if settings.tls == "off" else _ADVICE
    return next((f"; {text}" for reason, text in advice.items() if failure.endswith(reason)), "")
