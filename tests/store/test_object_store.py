"""What the obstore backend makes of failures: a real S3 server behind a proxy that breaks requests."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import pytest
from obstore.store import S3Store

from littlebigcluster.clock import Clock
from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.store import Created, Exists, Mine, Store, Unknown, open_store, put_if_absent
from tests import buckets
from tests.servers import Server
from tests.tools.proxy import Break, Proxy, proxied


@pytest.fixture
async def proxy(ministack: Server) -> AsyncIterator[Proxy]:
    async with proxied(ministack.port) as running:
        yield running


@pytest.fixture
def url(ministack: Server, proxy: Proxy) -> str:
    return buckets.new_s3_url(ministack).replace(str(ministack.port), str(proxy.port))


@pytest.fixture
def store(url: str, clock: Clock) -> Store:
    """With patience: what it finds does not depend on how quick the server is."""
    return open_store(url, clock=clock, timeout_seconds=30)


class Standing(Clock):
    """The time that a request takes is not taken from that for the next attempts."""

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def hasty(url: str) -> Store:
    """For requests that nobody answers."""
    return open_store(url, clock=Standing(), timeout_seconds=1.5)


HANGS = (Break.HANG_BEFORE, Break.HANG_AFTER)


def first(broken: Break | int, method: str, times: int = 1):  # type: ignore[no-untyped-def]
    """Break the first so many requests of this method."""
    left = [times]

    def rule(seen: str, path: str) -> Break | int | None:
        if seen != method or left[0] == 0:
            return None
        left[0] -= 1
        return broken

    return rule


@pytest.mark.parametrize(
    ("broken", "applied"),
    [
        (Break.RESET_BEFORE, False),
        (Break.RESET_AFTER, True),
        (Break.HANG_BEFORE, False),
        (Break.HANG_AFTER, True),
        (500, False),
        (503, False),
        (-500, True),
        (-503, True),
    ],
)
async def test_create_that_fails_is_unknown_and_sent_once(
    store: Store, hasty: Store, proxy: Proxy, broken: Break | int, applied: bool
) -> None:
    proxy.rule = first(broken, "PUT")
    assert isinstance(await (hasty if broken in HANGS else store).create("k", b"x"), Unknown)
    assert [method for method, _ in proxy.requests] == ["PUT"], "the library must not retry"
    async with asyncio.timeout(60):  # the store may act after the time-out
        while broken is Break.HANG_AFTER and await store.get("k") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await store.get("k") == (b"x" if applied else None)


@pytest.mark.parametrize("status", [409, 412])
async def test_conflict_of_either_kind_is_exists(store: Store, proxy: Proxy, status: int) -> None:
    proxy.rule = first(status, "PUT")
    assert await store.create("k", b"x") == Exists()
    assert len(proxy.requests) == 1
    assert await store.get("k") is None


@pytest.mark.parametrize("broken", [Break.RESET_AFTER, Break.HANG_AFTER, -503, 409, Break.RESET_BEFORE])
async def test_put_if_absent_finds_out_that_it_is_ours(
    store: Store, hasty: Store, proxy: Proxy, clock: Clock, broken: Break | int
) -> None:
    proxy.rule = first(broken, "PUT")
    asked = hasty if broken in HANGS else store
    assert await put_if_absent(asked, "k", b"x", clock=clock, deadline_seconds=60) == Mine()


@pytest.mark.parametrize("broken", [Break.RESET_BEFORE, Break.RESET_AFTER, Break.HANG_AFTER, 500, 503])
async def test_safe_requests_are_tried_again(store: Store, hasty: Store, proxy: Proxy, broken: Break | int) -> None:
    await store.put("k", b"0123")
    asked, times = (hasty, 1) if broken in HANGS else (store, 2)
    for method, send, expected in (
        ("GET", lambda: asked.get("k"), b"0123"),
        ("GET", lambda: asked.get_range("k", 1, 2), b"12"),
        ("GET", lambda: listed(asked), [("k", 4)]),
        ("PUT", lambda: asked.put("k", b"new"), None),
        ("POST", lambda: asked.delete(["k"]), None),
    ):
        proxy.requests.clear()
        proxy.rule = first(broken, method, times)
        assert await send() == expected
        seen = [seen for seen, _ in proxy.requests]
        assert seen[: times + 1] == [method] * (times + 1)
        assert len(seen) == times + 1 or asked is hasty  # whom the server may have made wait, too


async def listed(store: Store) -> list[tuple[str, int]]:
    return [(info.key, info.size_bytes) for info in await store.list("")]


async def test_a_store_that_cannot_be_reached_says_in_a_few_words_why(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "littlebigcluster.store.failures")
    query = "endpoint=http://127.0.0.1:1&allow_http=true&access_key_id=KEYID&secret_access_key=SECRET&region=x"
    store = open_store(f"s3://bucket/p?{query}", clock=clock)
    for request, what in ((store.get("k"), "read p/k"), (store.list("k"), "list p/k*")):
        with pytest.raises(StoreUnavailable) as caught:
            await request
        told = "nobody listens there (connection refused); see whether the store is up"
        assert str(caught.value).startswith(f"cannot {what} at s3://bucket/p: http://127.0.0.1:1: {told}")
        assert caught.value.transient
    assert "Debug source" in caplog.text, "all that the library said"
    assert "list-type" not in caplog.text, "but for the query, which may hold a signature"


async def test_plain_http_that_is_not_allowed_is_said_at_once(clock: Clock) -> None:
    url = "s3://bucket/p?endpoint=http://127.0.0.1:1&access_key_id=a&secret_access_key=b&region=x"
    with pytest.raises(StoreUnavailable, match=r"add \?allow_http=true to the location") as caught:
        await open_store(url, clock=clock).get("k")
    assert not caught.value.transient


async def test_retries_end(store: Store, proxy: Proxy) -> None:
    proxy.rule = lambda method, path: 503
    with pytest.raises(StoreUnavailable, match=r"cannot read prefix/k at s3://test-\w+/prefix: .*503") as caught:
        await store.get("k")
    assert caught.value.transient
    assert len(proxy.requests) == 6


class Ticking(Clock):
    """A fifth of a second goes by with each look."""

    seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 0.2
        return self.seconds


async def test_store_that_never_answers_times_out(url: str, proxy: Proxy) -> None:
    proxy.rule = lambda method, path: Break.HANG_BEFORE
    store = open_store(url, clock=Ticking(), timeout_seconds=0.5)
    with pytest.raises(StoreUnavailable, match=r"no answer in 0\.5 s"):
        await store.list("")
    assert 2 <= len(proxy.requests) < 6


async def test_absent_bucket_says_so_at_once(ministack: Server, ceph: Server, azurite: Server, clock: Clock) -> None:
    for url in (buckets.new_s3_url(ministack), buckets.new_s3_url(ceph), buckets.new_azure_url(azurite)):
        bucket = url.split("/")[2]
        store = open_store(url.replace(f"//{bucket}/", f"//{bucket}-not/"), clock=clock)
        for request in (
            store.get("k"),
            store.get_range("k", 0, 1),
            store.create("k", b"x"),
            store.put("k", b"x"),
            store.list(""),
            store.delete(["k"]),
        ):
            with pytest.raises(StoreUnavailable, match="no such bucket or container; create it") as caught:
                await request
            assert not caught.value.transient


async def test_refused_credentials_say_so_and_are_not_shown(ceph: Server, azurite: Server, clock: Clock) -> None:
    wrong = "d3Jvbmcgd3Jvbmcgd3Jvbmc="
    s3 = buckets.new_s3_url(ceph).replace("sksksksk", wrong)
    azure, key = buckets.new_azure_url(azurite).split("account_key=")
    azure += "account_key=" + wrong + "&" + key.partition("&")[2]
    for store in (open_store(s3, clock=clock), open_store(azure, clock=clock)):
        for request in (store.get("k"), store.create("k", b"x"), store.put("k", b"x"), store.list("")):
            with pytest.raises(StoreUnavailable, match="refuses access; check the credentials") as caught:
                await request
            assert not caught.value.transient
            assert wrong not in str(caught.value)


async def test_nobody_listens(clock: Clock) -> None:
    with socket.socket() as taken:  # so that nobody else comes to listen there
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        url = f"s3://bucket/p?endpoint={endpoint}&allow_http=true&access_key_id=secret1&secret_access_key=secret2"
        store = open_store(url, clock=clock, timeout_seconds=0.5)
        assert isinstance(await store.create("k", b"x"), Unknown)
        with pytest.raises(StoreUnavailable, match="check the endpoint and the network") as caught:
            await store.get("k")
    assert caught.value.transient
    assert "secret" not in str(caught.value)


async def test_users_store_that_retries_is_rebuilt_without(ministack: Server, proxy: Proxy, clock: Clock) -> None:
    config = {**buckets.s3_config(ministack), "endpoint": f"http://127.0.0.1:{proxy.port}"}
    own = S3Store(
        buckets.new_bucket(ministack),
        prefix="mine",
        config=config,  # type: ignore[arg-type]
        client_options={"allow_http": True},
    )
    store = open_store(own, clock=clock)
    assert store.url.endswith("/mine")
    proxy.rule = first(503, "PUT", times=3)
    assert isinstance(await store.create("k", b"x"), Unknown)
    assert [method for method, _ in proxy.requests] == ["PUT"]
    proxy.rule = lambda method, path: None
    assert await store.create("k2", b"x") == Created()
    assert proxy.requests[-1][1].endswith("/mine/k2")
