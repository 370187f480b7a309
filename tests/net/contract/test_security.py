"""Who gets in: holders of a valid certificate of the authority, over TLS 1.3, and nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from littlebigcluster.clock import Clock
from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net import Authority, Client, NodeIdentity, Server, bundle
from tests.net.app import ContractApp
from tests.net.conftest import LOOPBACK, WEEK
from tests.net.serving import PATIENT, serving, url_of

Mint = Callable[[str], NodeIdentity]


class LongAgo(Clock):
    def now(self) -> datetime:
        return super().now() - timedelta(days=30)


async def hello(url: str, identity: NodeIdentity | None) -> dict[str, object]:
    async with Client(url, tls=identity, clock=Clock(), **PATIENT) as client:
        answer = await client.get_json("/hello")
        assert isinstance(answer, dict)
        return answer


async def refuses(url: str, identity: NodeIdentity | None, app: ContractApp) -> None:
    with pytest.raises(PeerUnavailable) as caught:
        await hello(url, identity)
    assert not app.clients
    assert "PRIVATE" not in str(caught.value)


async def test_a_member_gets_in_and_the_application_sees_its_name(url: str, mint: Mint) -> None:
    told = await hello(url, mint("node-7"))
    assert told == {"peer": "node-7", "authority": "cluster-1", "tls_version": 0x0304, "http": "2"}


async def test_a_certificate_of_another_authority_is_refused(
    url: str, authority: Authority, app: ContractApp, clock: Clock
) -> None:
    other = Authority.create("cluster-1", clock)
    await refuses(url, other.mint("node-7", LOOPBACK, WEEK, clock, trust=[authority]), app)


async def test_a_server_of_another_authority_is_refused(url: str, app: ContractApp, mint: Mint, clock: Clock) -> None:
    # The server would let this client in; it is the client that must not talk to the server.
    good, other = mint("node-7"), Authority.create("cluster-1", clock)
    wary = NodeIdentity(good.cert_pem, good.key_pem, bundle([other]), good.not_after)
    with pytest.raises(PeerUnavailable) as caught:
        await hello(url, wary)
    assert str(caught.value).endswith("/hello: its certificate is not by a trusted authority, or for another address")
    assert not caught.value.sent
    assert not app.clients


async def test_a_server_that_the_certificate_does_not_name_is_refused(
    authority: Authority, app: ContractApp, mint: Mint, clock: Clock
) -> None:
    async with serving(app, authority.mint("server", ["192.0.2.1"], WEEK, clock)) as server:
        await refuses(url_of(server), mint("node-7"), app)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_an_expired_certificate_is_refused(side: str, authority: Authority, app: ContractApp, mint: Mint) -> None:
    old_authority = Authority.create("cluster-1", LongAgo())
    expired = old_authority.mint("old", LOOPBACK, WEEK, LongAgo(), trust=[authority])
    good = mint("good")
    good = NodeIdentity(good.cert_pem, good.key_pem, bundle([authority, old_authority]), good.not_after)
    async with serving(app, good if side == "client" else expired) as server:
        await refuses(url_of(server), expired if side == "client" else good, app)


async def test_a_self_signed_certificate_is_refused(
    url: str, authority: Authority, app: ContractApp, clock: Clock
) -> None:
    own = Authority.create("node-7", clock)
    ends = own.not_after
    await refuses(url, NodeIdentity(own.cert_pem, own.key_pem, bundle([authority]), ends), app)


async def test_plain_text_to_a_tls_port_is_refused(server: Server, app: ContractApp) -> None:
    await refuses(f"http://127.0.0.1:{server.address[1]}", None, app)


async def test_no_certificate_is_refused(server: Server, authority: Authority, app: ContractApp) -> None:
    context = ssl.create_default_context(cadata=authority.cert_pem)
    with pytest.raises(ssl.SSLError, match="certificate required"):
        await _request_by_hand(server.address[1], context, b"peer")
    assert not app.clients


async def test_no_certificate_gets_in_where_certificates_are_optional(
    app: ContractApp, authority: Authority, mint: Mint
) -> None:
    async with serving(app, mint("server"), client_certificates="optional") as server:
        context = ssl.create_default_context(cadata=authority.cert_pem)
        nobody = b'"peer": null'
        assert nobody in await _request_by_hand(server.address[1], context, nobody)
        assert (await hello(url_of(server), mint("node-7")))["peer"] == "node-7"


async def test_the_application_is_not_shown_to_tls_1_2(
    client: Client, server: Server, authority: Authority, app: ContractApp, mint: Mint, tmp_path: Path
) -> None:
    context = ssl.create_default_context(cadata=authority.cert_pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    pem = tmp_path / "client.pem"
    pem.write_text(_both(mint("old")))
    context.load_cert_chain(pem)
    refusal = b"TLS 1.3 is required"
    assert refusal in await _request_by_hand(server.address[1], context, refusal)
    assert not app.events


async def test_two_authorities_are_trusted_during_a_rotation(
    app: ContractApp, authority: Authority, mint: Mint, clock: Clock
) -> None:
    new = Authority.create("cluster-1", clock)
    async with serving(app, authority.mint("server", LOOPBACK, WEEK, clock, trust=[new])) as server:
        url = url_of(server)
        assert (await hello(url, mint("old-node")))["peer"] == "old-node"
        assert (await hello(url, new.mint("new-node", LOOPBACK, WEEK, clock, trust=[authority])))["peer"] == "new-node"


async def test_clear_text_with_prior_knowledge(app: ContractApp) -> None:
    async with serving(app, None) as server:
        told = await hello(f"http://127.0.0.1:{server.address[1]}", None)
        assert told == {"peer": None, "authority": None, "tls_version": None, "http": "2"}


async def test_who_is_wrong_about_tls_is_told_so(url: str, mint: Mint, app: ContractApp) -> None:
    """Unless the end of the connection is seen before the answer, which is a matter of luck."""
    with pytest.raises(PeerUnavailable, match=r"it does not speak HTTP/2 without TLS|the connection broke"):
        await hello(url.replace("https", "http"), None)
    async with serving(app, None) as server:
        with pytest.raises(PeerUnavailable, match=r"it does not speak TLS|the connection broke"):
            await hello(url_of(server), mint("node-7"))


def test_a_client_does_not_fall_back_to_clear_text(mint: Mint, clock: Clock) -> None:
    with pytest.raises(ValueError, match="must begin with https://"):
        Client("http://127.0.0.1:1", tls=mint("x"), clock=clock)


def _both(identity: NodeIdentity) -> str:
    return identity.cert_pem + identity.key_pem


async def _request_by_hand(port: int, context: ssl.SSLContext, wanted: bytes) -> bytes:
    """GET /hello over HTTP/2, with the frames written out (RFC 9113, 4.1; RFC 7541, appendix A)."""
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    settings = bytes.fromhex("000000040000000000")
    block = b"\x82\x87\x04\x06/hello\x41\x09127.0.0.1"  # :method GET, :scheme https, :path, :authority
    headers = len(block).to_bytes(3, "big") + b"\x01\x05\x00\x00\x00\x01" + block
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers)
    received = b""
    async with asyncio.timeout(60):
        while wanted not in received and (data := await reader.read(4096)):
            received += data
    writer.transport.abort()
    return received


async def test_an_address_in_use_is_an_os_error(server: Server, app: ContractApp, mint: Mint) -> None:
    second = Server(app, host="127.0.0.1", port=server.address[1], tls=mint("server"))
    with pytest.raises(OSError, match="in use"):
        await second.start()
