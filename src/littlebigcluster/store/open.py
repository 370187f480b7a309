"""From what a user writes ("s3://bucket/prefix", a path, an obstore store) to a `Store`."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from littlebigcluster.clock import Clock
from littlebigcluster.reasons import reason

from .base import Store
from .directory import DirectoryStore
from .keys import checked
from .object_store import ObjectStore

Client = S3Store | GCSStore | AzureStore | MemoryStore
Location = str | os.PathLike[str] | Client

CLOUDS: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
CLIENT_OPTIONS = frozenset(
    [
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "http1_only",
        "http2_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_url",
        "proxy_ca_certificate",
        "proxy_excludes",
        "randomize_addresses",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    ]
)
"""What the query of a URL may say about connections (obstore's ClientConfig); all else is for the store."""

NO_RETRIES: Any = {"max_retries": 0}
REQUEST_LIMIT = timedelta(hours=1)
"""obstore's own time-out for a request. Ours are shorter and know the size; its default of 30 s does not."""

# obstore does not look at these before the first request, and then panics.
_BUCKET = re.compile(r"[\w.$-]+", re.ASCII)
_ENDPOINT = re.compile(r"(aws_|azure_|azure_storage_)?endpoint(_url(_s3)?)?", re.IGNORECASE)
_HTTP = re.compile(r"https?://[^\s/?#]+[^\s?#]*", re.IGNORECASE)

_memories: dict[str, MemoryStore] = {}


def open_store(location: Location, *, timeout_seconds: float = 10.0, clock: Clock) -> Store:
    """The store at `location`; nothing is read or written yet.

    - `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`: settings come from the environment, as
      obstore reads it (AWS_*, GOOGLE_*, AZURE_*), and from the query: `?endpoint=http://host:9000&allow_http=true`.
      The query is never shown again.
    - `file:///path`, or a path: a directory, durable and safe for many processes.
    - `memory://`: a new one in memory; `memory://name`: one per process and name.
    - an obstore store. If it may retry by itself it is rebuilt so that it does not: a create that is retried
      cannot tell its own success from a conflict.

    Raises ValueError or TypeError for what is none of these.
    """
    if timeout_seconds <= 0:
        raise ValueError(f"the time-out of a store must be positive, not {timeout_seconds!r}")
    if isinstance(location, Client):
        client = without_retries(location)
        return ObjectStore(client, url=_described(client), timeout_seconds=timeout_seconds, clock=clock)
    if isinstance(location, LocalStore):
        raise ValueError("obstore's LocalStore does not survive a power cut; give the directory's path instead")
    if isinstance(location, HTTPStore):
        raise ValueError("obstore's HTTPStore has no conditional create, on which everything here rests")
    if not isinstance(location, str | os.PathLike):
        raise TypeError(f"a store is a URL, a path or an obstore store, not {type(location).__name__}")
    text = str(os.fspath(location))
    if not text or "\0" in text:
        raise ValueError("a store's location is a URL or a path, and cannot be empty or hold NUL")
    # One letter is a drive of Windows.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text) if isinstance(location, str) else None
    if scheme is None:
        return DirectoryStore(text, timeout_seconds=timeout_seconds, clock=clock)
    return _from_url(scheme[1].lower(), text, timeout_seconds, clock)


def _from_url(scheme: str, text: str, timeout_seconds: float, clock: Clock) -> Store:
    try:
        url = urlsplit(text)
    except ValueError:
        raise ValueError(f"this {scheme} URL cannot be parsed; write it like {scheme}://name/prefix") from None
    if url.fragment:
        raise ValueError(f"the URL of a store has no fragment: write '#' in {scheme}://... as %23")
    if scheme == "file":
        return DirectoryStore(_path_of(url), timeout_seconds=timeout_seconds, clock=clock)
    if scheme != "memory" and scheme not in CLOUDS:
        raise ValueError(f"{scheme}:// is not known; use s3://, gs://, az://, file://, memory:// or a path")
    if "@" in url.netloc or ":" in url.netloc:
        raise ValueError(
            f"write {scheme}://name/prefix with the bucket's name only: credentials belong in the environment, "
            "and another server in ?endpoint=..."
        )
    prefix = unquote(url.path).strip("/")
    if prefix:
        checked(prefix)
    client = _memory(url) if scheme == "memory" else _cloud(scheme, url)
    shown = f"{scheme}://{url.netloc}/{prefix}".rstrip("/") if url.netloc else f"{scheme}://"
    return ObjectStore(client, prefix, url=shown, timeout_seconds=timeout_seconds, clock=clock)


def _path_of(url: Any) -> str:
    if url.netloc not in ("", "localhost") or url.query or not url.path:
        raise ValueError("a file URL is file:///absolute/path, without a host and without a query")
    path = unquote(url.path)
    # file:///C:/x is C:/x
    return path[1:] if re.match(r"/[A-Za-z]:/", path) else path


def _memory(url: Any) -> MemoryStore:
    if url.query:
        raise ValueError("memory:// takes no settings")
    if not url.netloc:
        if url.path.strip("/"):
            raise ValueError("write memory:// or memory://name")
        return MemoryStore()
    return _memories.setdefault(url.netloc, MemoryStore())


def _cloud(scheme: str, url: Any) -> Client:
    if not url.netloc:
        raise ValueError(f"{scheme}://name/prefix: the name of the bucket is missing")
    if not _BUCKET.fullmatch(url.netloc):
        raise ValueError(f"no bucket can have the name {url.netloc!r}: use letters, digits, '-', '_' and '.'")
    config: dict[str, str] = {}
    options: dict[str, Any] = {"timeout": REQUEST_LIMIT}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        (options if name in CLIENT_OPTIONS else config)[name] = value
    _check_endpoints(config)
    try:
        client: Client = CLOUDS[scheme](url.netloc, config=config, client_options=options, retry_config=NO_RETRIES)
    except (BaseError, ValueError, TypeError) as error:
        # It names the setting; the values stay out of it.
        why = reason(str(error))
        for value in (*config.values(), *map(str, options.values())):
            why = why.replace(value, "...") if len(value) > 3 else why
        advice = "; set AZURE_STORAGE_ACCOUNT_NAME" if why == "Account must be specified" else ""
        raise ValueError(f"cannot open {scheme}://{url.netloc}: {why}{advice}") from None
    return client


def _check_endpoints(config: dict[str, str]) -> None:
    """Raises ValueError for one that is no URL, at which obstore would panic with the first request."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_"))}
    for name, value in {**environment, **config}.items():
        if _ENDPOINT.fullmatch(name) and value and not _HTTP.fullmatch(value):
            raise ValueError(f"{name} is a URL with its scheme, like https://host or http://host:9000")


def without_retries(client: Client) -> Client:
    """`client` itself if it never retries, else a copy that does not. Raises ValueError if it cannot be copied."""
    if isinstance(client, MemoryStore) or (client.retry_config or {}).get("max_retries") == 0:
        return client
    try:
        args, kwargs = client.__getnewargs_ex__()  # type: ignore[no-untyped-call]
        settings = {**kwargs, "retry_config": NO_RETRIES}
        if client.credential_provider is not None:
            settings["credential_provider"] = client.credential_provider
        return type(client)(*args, **settings)
    except BaseException as error:  # obstore panics on some settings, outside of Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f"{client!r} retries by itself, so the outcome of a create would not be known; "
            'make it with retry_config={"max_retries": 0}'
        ) from None


def _described(client: Client) -> str:
    if isinstance(client, MemoryStore):
        return "memory://"
    scheme = next(name for name, kind in CLOUDS.items() if isinstance(client, kind))
    found = re.search(r'(?:bucket|container_name|container)="([^"]*)"', repr(client))
    name = found[1] if found else "?"
    return f"{scheme}://{name}/{client.prefix or ''}".rstrip("/")
