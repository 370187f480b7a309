"""How objects and files are damaged."""

from __future__ import annotations

from littlebigcluster.store import Store
from tests.scenarios.stage import Stage


def wrong_bit(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]


async def body_of(store: Store, name: str) -> bytes:
    body = await store.get(name)
    assert body is not None
    return body


async def grown(s: Stage, number: int = 6) -> int:
    """A leader has written and left; returns an epoch in the middle of the log."""
    a = await s.leader()
    for _ in range(number):
        await s.recorder.write(a.node)
    await a.leave()
    return a.node.epoch.value - 3


async def harm(store: Store, name: str, how: str, other: bytes = b"") -> None:
    """Damage an object. `other` is what is put in its place by "another"."""
    body = await body_of(store, name)
    match how:
        case "cut":
            await store.put(name, body[:-7])
        case "empty":
            await store.put(name, b"")
        case "flipped in front":
            await store.put(name, wrong_bit(body, 40))
        case "flipped":
            await store.put(name, wrong_bit(body, len(body) - 30))
        case "gone":
            await store.delete([name])
        case "another":
            await store.put(name, other)
        case "grown":
            await store.put(name, body + b"more")
        case _:
            raise ValueError(how)


HARMS = ["cut", "empty", "flipped in front", "flipped", "gone", "another", "grown"]
