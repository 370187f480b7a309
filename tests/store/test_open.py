"""From what a user writes to a store, and clear words for what cannot be one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from obstore.store import AzureStore, HTTPStore, LocalStore, MemoryStore, S3Store

from littlebigcluster.clock import Clock
from littlebigcluster.store import Created, DirectoryStore, Exists, ObjectStore, open_store
from littlebigcluster.store.open import without_retries

KEYS = "access_key_id=KEYID&secret_access_key=SECRET"


def test_paths_and_file_urls_are_directories(tmp_path: Path, clock: Clock) -> None:
    for location in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        store = open_store(location, clock=clock)
        assert isinstance(store, DirectoryStore)
        assert store.root == tmp_path
        assert store.url == tmp_path.as_uri()
    spaced = open_store("file:///tmp/a%20b", clock=clock)
    assert isinstance(spaced, DirectoryStore)
    assert spaced.root == Path("/tmp/a b")
    assert open_store("~/x", clock=clock).url == (Path.home() / "x").as_uri()
    assert open_store("C:/x", clock=clock).url.endswith("C%3A/x" if sys.platform != "win32" else "C:/x")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (f"s3://bucket/some/prefix/?{KEYS}", "s3://bucket/some/prefix"),
        (f"s3://bucket?{KEYS}", "s3://bucket"),
        (f"S3://bucket/a%20b?{KEYS}", "s3://bucket/a b"),
        ("gs://bucket/p", "gs://bucket/p"),
        ("az://container/p?account_name=me&account_key=U0VDUkVU", "az://container/p"),
        ("memory://", "memory://"),
        ("memory://name", "memory://name"),
        ("memory://name/prefix", "memory://name/prefix"),
        (
            S3Store("bucket", prefix="p", config={"access_key_id": "KEYID", "secret_access_key": "SECRET"}),
            "s3://bucket/p",
        ),
        (AzureStore("container", config={"account_name": "me", "account_key": "U0VDUkVU"}), "az://container"),
        (MemoryStore(), "memory://"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_url_is_for_people_and_keeps_secrets(location: str, url: str, clock: Clock) -> None:
    store = open_store(location, clock=clock)
    assert isinstance(store, ObjectStore)
    assert store.url == url
    for text in (repr(store), str(store)):
        assert "SECRET" not in text
        assert "KEYID" not in text


async def test_each_unnamed_memory_is_new_and_a_named_one_is_shared(clock: Clock) -> None:
    first, second = open_store("memory://", clock=clock), open_store("memory://", clock=clock)
    assert await first.create("k", b"") == await second.create("k", b"") == Created()
    one, other = open_store("memory://shared", clock=clock), open_store("memory://shared", clock=clock)
    assert await one.create("k", b"") == Created()
    assert await other.create("k", b"") == Exists()
    below = open_store("memory://shared/prefix", clock=clock)
    assert await below.create("k", b"") == Created()
    assert await one.get("prefix/k") == b""


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("ftp://host/x", "ftp:// is not known; use s3://"),
        ("s3:", "name of the bucket is missing"),
        ("s3:///prefix", "name of the bucket is missing"),
        ("s3://KEYID:SECRET@bucket/p", "credentials belong in the environment"),
        ("s3://localhost:9000/bucket", "another server in [?]endpoint"),
        ("s3://bucket/a//b", "is not a key"),
        ("s3://bucket/../b", "is not a key"),
        ("s3://bucket/p#x", "write '#'"),
        (f"s3://bucket/p?{KEYS}&nonsense=VALUE", "Configuration key: 'nonsense' is not valid"),
        (f"s3://bucket/p?{KEYS}&timeout=VALUE", "cannot open s3://bucket"),
        (f"s3://bucket/p?{KEYS}&endpoint=127.0.0.1:9000", "endpoint is a URL with its scheme"),
        (f"s3://bucket/p?{KEYS}&aws_endpoint_url=localhost", "aws_endpoint_url is a URL with its scheme"),
        (f"s3://bucket/p?{KEYS}&endpoint=localhost:9000", "endpoint is a URL with its scheme"),
        (f"s3://bucket/p?{KEYS}&endpoint=http://a%20b", "endpoint is a URL with its scheme"),
        (f"s3://buck et/p?{KEYS}", "no bucket can have the name 'buck et'"),
        ("az://container/p?account_key=SECRET", "cannot open az://container: Account must be specified; set AZURE"),
        ("az://container/p?account_name=me&account_key=not-base64-SECRET!", "cannot open az://container"),
        ("memory://?size=1", "no settings"),
        ("memory:///x", "memory://name"),
        ("file://host/path", "absolute/path"),
        ("file:///p?x=1", "without a query"),
        ("s3://[bad", "cannot be parsed"),
        (LocalStore("/tmp"), "give the directory's path instead"),
        (HTTPStore("http://127.0.0.1:1/"), "no conditional create"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_location_is_refused_at_once(location: str, said: str, clock: Clock) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        open_store(location, clock=clock)
    for secret in ("SECRET", "KEYID", "VALUE"):
        assert secret not in str(caught.value)


def test_an_endpoint_in_the_environment_is_looked_at_too(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL is a URL with its scheme"):
        open_store(f"s3://bucket?{KEYS}", clock=clock)
    open_store("memory://", clock=clock)


@pytest.mark.parametrize("location", [None, 3, b"/tmp", object()])
def test_what_is_no_location_at_all_is_a_type_error(location: str, clock: Clock) -> None:
    with pytest.raises(TypeError, match="a URL, a path or an obstore store"):
        open_store(location, clock=clock)


@pytest.mark.parametrize("seconds", [0, -1])
def test_timeout_must_be_positive(seconds: float, clock: Clock) -> None:
    with pytest.raises(ValueError, match="time-out of a store must be positive"):
        open_store("memory://", timeout_seconds=seconds, clock=clock)


def test_stores_never_retry_by_themselves(clock: Clock) -> None:
    ours = open_store(f"s3://bucket?{KEYS}", clock=clock)
    assert isinstance(ours, ObjectStore)
    assert ours._client.retry_config["max_retries"] == 0  # type: ignore[union-attr,index,typeddict-item]
    settings = {"config": {"access_key_id": "KEYID", "secret_access_key": "SECRET", "region": "eu-west-1"}}
    retrying = [
        S3Store("bucket", prefix="p", **settings),  # type: ignore[arg-type]
        S3Store("bucket", prefix="p", retry_config={"max_retries": 3}, **settings),  # type: ignore[arg-type]
    ]
    for theirs in retrying:
        copy = without_retries(theirs)
        assert copy.retry_config["max_retries"] == 0  # type: ignore[union-attr,index,typeddict-item]
        assert copy.config == theirs.config  # type: ignore[union-attr]
        assert copy.prefix == "p"  # type: ignore[union-attr]
    quiet = S3Store("bucket", retry_config={"max_retries": 0}, **settings)  # type: ignore[arg-type]
    assert without_retries(quiet) is quiet


def test_credential_provider_survives_the_rebuilding() -> None:
    def provide() -> None: ...

    theirs = S3Store("bucket", credential_provider=provide)  # type: ignore[arg-type]
    assert without_retries(theirs).credential_provider is provide  # type: ignore[union-attr]


def test_store_that_cannot_be_rebuilt_is_refused_with_the_way_out() -> None:
    """obstore panics when it is asked for settings that were given as `allow_http=True`. In a process of its own,
    as the panic writes to the standard error."""
    program = """
from obstore.store import S3Store
from littlebigcluster.clock import Clock
from littlebigcluster.store import open_store
try:
    open_store(S3Store("bucket", allow_http=True), clock=Clock())
except ValueError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert 'make it with retry_config={"max_retries": 0}' in shown.stdout
