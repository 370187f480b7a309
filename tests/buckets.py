"""Fresh buckets and containers on the test servers, and the URLs to reach them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import obstore
from obstore.store import S3Store

from tests.servers import Server

AZURE_ACCOUNT = "devstoreaccount1"
# The well-known key of the emulator, the same everywhere.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
S3_KEYS = {"ministack": ("test", "test"), "ceph": ("ak", "sksksksk"), "s3rver": ("S3RVER", "S3RVER")}


def s3_config(server: Server) -> dict[str, str]:
    """What obstore must know to use this server."""
    access_key, secret_key = S3_KEYS[server.kind]
    return {
        "endpoint": server.endpoint,
        "region": "us-east-1",
        "access_key_id": access_key,
        "secret_access_key": secret_key,
    }


def new_bucket(server: Server) -> str:
    """The name of a fresh, empty bucket."""
    name = f"test-{uuid4().hex[:20]}"
    client = S3Store(name, config=s3_config(server), client_options={"allow_http": True})  # type: ignore[arg-type]
    # The empty key is the bucket itself.
    url = obstore.sign(client, "PUT", "", timedelta(minutes=5))
    _put(url, {})
    return name


def new_s3_url(server: Server, prefix: str = "prefix") -> str:
    """A URL for `open_store`, with everything in it."""
    query = urlencode({**s3_config(server), "allow_http": "true"})
    return f"s3://{new_bucket(server)}/{prefix}?{query}"


def new_azure_url(server: Server, prefix: str = "prefix") -> str:
    """The same for a fresh container of Azurite."""
    name = f"test-{uuid4().hex[:20]}"
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    version = "2021-08-06"
    # The Shared Key scheme: method, eleven empty headers, the x-ms- headers, the resource.
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    authorization = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    endpoint = f"{server.endpoint}/{AZURE_ACCOUNT}"
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": authorization}
    _put(f"{endpoint}/{name}?restype=container", headers)
    settings = {
        "endpoint": endpoint,
        "account_name": AZURE_ACCOUNT,
        "account_key": AZURE_KEY,
        "allow_http": "true",
    }
    return f"az://{name}/{prefix}?{urlencode(settings)}"


def _put(url: str, headers: dict[str, str]) -> None:
    # urllib would add a Content-Type, which is part of what is signed.
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("PUT", f"{parts.path}?{parts.query}", headers={"Content-Length": "0", **headers})
        response = connection.getresponse()
        answer = response.read()
        if response.status not in (200, 201):
            raise RuntimeError(f"cannot make a bucket: {response.status} {answer[:500]!r}")
    finally:
        connection.close()
