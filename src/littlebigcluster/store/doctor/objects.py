"""Trials: ranges, large objects, uploads in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from littlebigcluster.store.base import Store
from littlebigcluster.store.probe import Broken

from .bench import Bench, created

MIB = 1 << 20
CREATE_BYTES = 16 * MIB
STREAM_BYTES = (0, 9 * MIB, 24 * MIB + 1)


async def ranges(bench: Bench) -> str:
    await bench.first.put("range", b"0123456789")
    await bench.first.put("empty", b"")
    asked = {
        ("range", 0, 4): b"0123",
        ("range", 4, 4): b"4567",
        ("range", 8, 4): b"89",
        ("range", 9, 1): b"9",
        ("range", 10, 4): b"",
        ("range", 99, 1000): b"",
        ("empty", 0, 1000): b"",
    }
    for (key, start, length), expected in asked.items():
        found = await bench.clients[-1].get_range(key, start, length)
        if found != expected:
            size = "10 bytes" if key == "range" else "an empty object"
            raise Broken(f"{length} bytes from {start} of {size} read as {found!r:.40}, not {expected!r}")
    return "inside, across the end, past the end, of an empty object"


async def large_objects(bench: Bench) -> str:
    body = bench.clock.token(CREATE_BYTES)
    await created(bench, "large/create", body)
    await _same(bench, "large/create", body)
    for size in STREAM_BYTES:
        body = bench.clock.token(size)
        await _upload(bench.first, "large/stream", _chunks(body))
        await _same(bench, "large/stream", body)
    sizes = ", ".join(f"{size / MIB:.0f}" for size in STREAM_BYTES)
    return f"{CREATE_BYTES // MIB} MiB in one request, {sizes} MiB in parts"


async def _same(bench: Bench, key: str, body: bytes) -> None:
    if await bench.clients[-1].get(key) != body:
        raise Broken(f"an object of {len(body):,} bytes does not read as it was written")
    tail = await bench.first.get_range(key, max(0, len(body) - 1000), 5000)
    if tail != body[-1000:]:
        raise Broken(f"the end of an object of {len(body):,} bytes does not read as it was written")


async def uploads_in_parts(bench: Bench) -> str:
    for fails in (True, False):
        await _upload_watched(bench, fails=fails)
    if len(await bench.first.get("parts") or b"") != 12 * MIB:
        raise Broken("an upload in parts that was complete cannot be read")
    return "visible only when complete; nothing stays of one that breaks off"


async def _upload_watched(bench: Bench, *, fails: bool) -> None:
    async def watching() -> AsyncIterator[bytes]:
        async for chunk in _chunks(bytes(12 * MIB)):
            yield chunk
        if any(found is not None for found in await bench.all_get("parts")) or await bench.first.list("parts"):
            raise Broken("an upload in parts is visible before it is complete")
        if fails:
            raise _BrokenOff

    try:
        await _upload(bench.first, "parts", watching())
    except _BrokenOff:
        if await bench.first.get("parts") is not None or await bench.first.list("parts"):
            raise Broken("an upload in parts that broke off is visible") from None


class _BrokenOff(Exception):
    pass


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), MIB):
        yield body[start : start + MIB]


async def _upload(store: Store, key: str, chunks: AsyncIterator[bytes]) -> None:
    """Runs to its end even when it is cancelled: the parts of an upload that was not ended cost, and nothing lists
    them."""
    upload = asyncio.ensure_future(store.put_stream(key, chunks))
    try:
        await asyncio.shield(upload)
    except asyncio.CancelledError:
        await asyncio.wait([upload])
        upload.exception()
        raise
