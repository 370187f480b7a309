"""What every store must do, whatever it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from itertools import pairwise

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import (
    Created,
    Exists,
    Location,
    Mine,
    Scoped,
    Store,
    Theirs,
    open_store,
    probe_exists,
    probe_race,
    put_if_absent,
)

MIB = 1 << 20
ODD_KEYS = ["a b", "a#b", "a?b", "ü€😀", "a~b", "a*b", "a+b&c=d", "a%20b", "'q'", "x.", ".hidden", "-", "[]{}^`|<>"]
BAD_KEYS = ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b", "a\nb", "a\\b", "x" * 1000, "\ud800"]


async def chunked(body: bytes, size: int = MIB) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def listed(store: Store, prefix: str, start_after: str = "") -> list[str]:
    return [info.key for info in await store.list(prefix, start_after)]


def test_store_keeps_the_protocol(store: Store) -> None:
    assert isinstance(store, Store)


async def test_nothing_is_there_at_first(store: Store) -> None:
    assert await store.get("a/b") is None
    assert await store.get_range("a/b", 0, 10) is None
    assert await store.list("") == []
    assert await store.list("a/") == []
    await store.delete(["a/b"])


async def test_created_object_is_read_and_cannot_be_created_again(store: Store) -> None:
    assert await store.create("a/b", b"first") == Created()
    assert await store.create("a/b", b"first") == Exists()
    assert await store.create("a/b", b"other") == Exists()
    assert await store.get("a/b") == b"first"


async def test_deleted_object_can_be_created_again(store: Store) -> None:
    await store.create("k", b"1")
    await store.delete(["k"])
    assert await store.get("k") is None
    assert await store.create("k", b"2") == Created()
    assert await store.get("k") == b"2"


async def test_one_of_many_concurrent_creates_wins(store: Store) -> None:
    bodies = [b"%d" % writer for writer in range(16)]
    outcomes = await asyncio.gather(*(store.create("race", body) for body in bodies))
    assert sorted(map(str, outcomes)) == ["Created()"] + ["Exists()"] * 15
    assert await store.get("race") == bodies[outcomes.index(Created())]


async def test_put_overwrites(store: Store) -> None:
    await store.put("k", b"one")
    await store.put("k", b"second")
    assert await store.get("k") == b"second"
    assert await store.create("k", b"x") == Exists()


async def test_readers_see_whole_objects_while_they_are_overwritten(store: Store) -> None:
    bodies = [bytes([value]) * 200_000 for value in range(8)]
    await store.put("k", bodies[0])

    async def write() -> None:
        for body in bodies:
            await store.put("k", body)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await store.get("k") in bodies
    await writing


@pytest.mark.parametrize(
    "body", [b"", b"\0" * 3, bytes(range(256)) * (20 * MIB // 256)], ids=["empty", "short", "20 MiB"]
)
async def test_bytes_come_back_as_they_were(store: Store, body: bytes) -> None:
    assert await store.create("c", body) == Created()
    await store.put("p", body)
    assert await store.get("c") == body
    assert await store.get("p") == body


async def test_range_ends_where_the_object_ends(store: Store) -> None:
    await store.put("k", b"0123456789")
    assert await store.get_range("k", 0, 4) == b"0123"
    assert await store.get_range("k", 4, 4) == b"4567"
    assert await store.get_range("k", 8, 4) == b"89"
    assert await store.get_range("k", 10, 4) == b""
    assert await store.get_range("k", 99, 1000) == b""
    await store.put("empty", b"")
    assert await store.get_range("empty", 0, 1000) == b""


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (0, -1)])
async def test_bad_range_is_refused(store: Store, start: int, length: int) -> None:
    with pytest.raises(ValueError, match="range"):
        await store.get_range("k", start, length)


async def test_list_is_by_string_prefix_and_sorted_by_code_point(store: Store) -> None:
    keys = ["a/1", "a/2", "a/b/c", "ab", "b", "B", "a-", "a.", "a/ü", "a/😀", "a/\ufffd"]
    for key in keys:
        await store.put(key, key.encode())
    assert await listed(store, "") == sorted(keys)
    assert await listed(store, "a") == sorted(key for key in keys if key.startswith("a"))
    assert await listed(store, "a/") == sorted(key for key in keys if key.startswith("a/"))
    assert await listed(store, "a/b") == ["a/b/c"]
    assert await listed(store, "a/b/") == ["a/b/c"]
    assert await listed(store, "c") == []
    assert [info.size_bytes for info in await store.list("a/ü")] == [len("a/ü".encode())]


async def test_list_starts_after_a_key_that_need_not_exist(store: Store) -> None:
    keys = [f".lbc/{number:020}.wal" for number in range(1, 30)] + ["zz"]
    await asyncio.gather(*(store.put(key, b"x") for key in keys))
    assert await listed(store, ".lbc/", keys[9]) == keys[10:-1]
    assert await listed(store, ".lbc/", ".lbc/00000000000000000010") == keys[9:-1]
    assert await listed(store, ".lbc/", ".lbc/00000000000000000010.x") == keys[10:-1]
    assert await listed(store, ".lbc/", "zz") == []
    assert await listed(store, "", ".lbc0") == ["zz"]
    assert await listed(store, ".lbc/0000000000000000002", keys[24]) == keys[25:-1]


async def test_list_returns_more_than_a_page(store: Store) -> None:
    keys = [f"many/{number:05}" for number in range(1100)]
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(store.put(key, b"") for key in keys[start : start + 50]))
    assert await listed(store, "many/") == keys
    assert await listed(store, "many/", keys[1050]) == keys[1051:]
    await store.delete(keys)
    assert await listed(store, "many/") == []


async def test_objects_are_dated_by_one_clock(store: Store) -> None:
    """Retention compares these dates with each other: what is written later must not look older."""
    for number in range(6):
        assert await store.create(f"dated/{number}", b"x") == Created()
        await asyncio.sleep(0.3)
    await store.put("dated/0", b"again")
    await store.put_stream("dated/1", chunked(bytes(12 * MIB)))
    dates = {info.key: info.last_modified for info in await store.list("dated/")}
    in_order = [dates[f"dated/{number}"] for number in (2, 3, 4, 5, 0, 1)]
    assert all(date.utcoffset() == timedelta() for date in in_order)
    second = timedelta(seconds=1.5)  # some stores round to whole seconds
    assert all(later >= earlier - second for earlier, later in pairwise(in_order))
    # The date is that of the last writing, and time does pass.
    assert timedelta(seconds=0.4) <= dates["dated/0"] - dates["dated/2"] < timedelta(minutes=5)
    assert [info.last_modified for info in await Scoped(store, "dated").list("")] == list(dates.values())


async def test_delete_passes_over_what_is_absent(store: Store) -> None:
    for key in ("a", "b/c", "d"):
        await store.put(key, b"x")
    await store.delete([])
    await store.delete(["absent", "a", "b/absent", "b/c", "absent"])
    assert await listed(store, "") == ["d"]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_keys_work(store: Store, key: str) -> None:
    assert await store.create(f"odd/{key}", key.encode()) == Created()
    assert await store.get(f"odd/{key}") == key.encode()
    assert await listed(store, "odd/") == [f"odd/{key}"]
    await store.delete([f"odd/{key}"])
    assert await listed(store, "odd/") == []


async def test_bad_keys_are_refused(store: Store) -> None:
    for key in BAD_KEYS:
        for call in (
            store.get(key),
            store.get_range(key, 0, 1),
            store.create(key, b""),
            store.put(key, b""),
            store.put_stream(key, chunked(b"x")),
            store.delete([key]),
        ):
            with pytest.raises(ValueError, match="is not a key"):
                await call


async def test_a_body_that_is_no_bytes_is_refused(store: Store) -> None:
    for body in ("/etc/hostname", None, bytearray(b"x")):
        with pytest.raises(TypeError, match="bytes"):
            await store.create("k", body)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="bytes"):
            await store.put("k", body)  # type: ignore[arg-type]
    assert await store.list("") == []


@pytest.mark.parametrize("size", [0, 5, 8 * MIB, 20 * MIB + 1])
async def test_stream_becomes_one_object(store: Store, size: int) -> None:
    body = bytes(size)
    await store.put_stream("s", chunked(body))
    assert await store.get("s") == body
    await store.put_stream("s", chunked(b"shorter"))
    assert await store.get("s") == b"shorter"


@pytest.mark.parametrize("size", [3, 20 * MIB])
async def test_stream_that_breaks_leaves_nothing(store: Store, size: int) -> None:
    class Broken(Exception):
        pass

    async def breaking() -> AsyncIterator[bytes]:
        async for chunk in chunked(bytes(size)):
            yield chunk
        assert await store.get("s") is None, "visible before it is whole"
        raise Broken("by the writer")

    with pytest.raises(Broken, match="by the writer"):
        await store.put_stream("s", breaking())
    assert await store.get("s") is None
    assert await store.list("") == []


async def test_stream_may_be_slow(location: Location, clock: Clock) -> None:
    """The time the producer takes is not the store's."""

    async def slow(seconds: float) -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(seconds * 0.4)
            yield bytes(4 * MIB)

    for seconds in (1.0, 8.0):  # the store itself may need more time than the first
        store = open_store(location, clock=clock, timeout_seconds=seconds)
        try:
            await store.put_stream("s", slow(seconds))
            assert len(await store.get("s") or b"") == 12 * MIB
            return
        except StoreUnavailable:
            assert seconds < 8
        finally:
            await store.close()


async def test_cancelled_request_ends_at_once(store: Store) -> None:
    for make in (
        lambda: store.get("k"),
        lambda: store.create("k", bytes(4 * MIB)),
        lambda: store.put("k", bytes(4 * MIB)),
        lambda: store.list(""),
        lambda: store.put_stream("k", chunked(bytes(12 * MIB))),
    ):
        task = asyncio.ensure_future(make())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("size", [3, 20 * MIB])
async def test_cancelled_stream_leaves_its_producer_alone(store: Store, size: int) -> None:
    ended: list[BaseException] = []
    waiting = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        async for chunk in chunked(bytes(size)):
            yield chunk
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ended.append(error)
            raise

    chunks = endless()
    task = asyncio.ensure_future(store.put_stream("k", chunks))
    async with asyncio.timeout(60):
        await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    await chunks.aclose()  # raises if somebody still waits in it
    assert await store.get("k") is None


async def test_two_openings_share_the_objects(location: Location, clock: Clock) -> None:
    if location == "memory://":
        location = "memory://shared by name"
    first, second = open_store(location, clock=clock), open_store(location, clock=clock)
    await first.create("k", b"x")
    assert await second.get("k") == b"x"
    assert await second.create("k", b"y") == Exists()
    await first.close()
    await second.close()


async def test_store_passes_the_probes(store: Store, clock: Clock) -> None:
    await probe_race(store, clock=clock)
    assert await store.list("") == [], "the probe cleans up"
    await store.create("identity", b"me")
    await probe_exists(store, "identity", b"me")


async def test_put_if_absent_tells_whose_it_is(store: Store, clock: Clock) -> None:
    assert await put_if_absent(store, "k", b"mine", clock=clock, deadline_seconds=60) == Mine()
    assert await put_if_absent(store, "k", b"mine", clock=clock, deadline_seconds=60) == Mine()
    assert await put_if_absent(store, "k", b"yours", clock=clock, deadline_seconds=60) == Theirs(b"mine")


async def test_scope_keeps_out_what_is_forbidden(store: Store) -> None:
    scope = Scoped(store, "", forbidden=".lbc/")
    await store.put(".lbc/secret", b"x")
    await scope.put("data/1", b"1")
    assert await listed(scope, "") == ["data/1"]
    for key in (".lbc/secret", ".lbc"):
        with pytest.raises(ValueError, match="cluster's own"):
            await scope.get(key)
    inner = Scoped(store, "data")
    assert await listed(inner, "") == ["1"]
    assert await listed(inner, "", "1") == []
    assert await inner.get("1") == b"1"
    assert await inner.create("2", b"2") == Created()
    assert await store.get("data/2") == b"2"
    await inner.delete(["1", "2"])
    assert await listed(store, "") == [".lbc/secret"]


def test_url_shows_no_credentials(store: Store) -> None:
    for text in (store.url, repr(store), str(store)):
        assert "sksk" not in text
        assert "key" not in text
        assert "?" not in text
