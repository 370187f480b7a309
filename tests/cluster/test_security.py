"""Who gets in between nodes, what is never told to anybody, and how the authority changes while all goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from littlebigcluster import Node, NodeSettings
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import certificates, listener
from littlebigcluster.cluster.certificates import Authorities, load_authorities
from littlebigcluster.cluster.identity import Minted
from littlebigcluster.epochs import codec, names
from littlebigcluster.errors import CorruptLog, PeerUnavailable, RequestTimeout
from littlebigcluster.net import Authority, Client, NodeIdentity, bundle
from littlebigcluster.store.wrappers import Wrapper
from tests.cluster.group import Group, all_fed, eventually, group, identity
from tests.net.serving import PATIENT
from tests.scenarios.stage import WAIT

QUIET = {"leader_timeout": 20.0}
HOUR = timedelta(hours=1)
PATHS = ["/.lbc/status", "/.lbc/ping", "/", "/leader"]


class Shifted(Clock):
    """Another time of day."""

    def __init__(self, by: timedelta) -> None:
        super().__init__()
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


REFUSED = (PeerUnavailable, RequestTimeout)
"""A request that meets the very end of its connection can be lost: it gets no answer then."""


async def get(node: Node, tls: NodeIdentity | None, path: str = "/.lbc/status", *, timeout: float = WAIT) -> int:
    async with Client(f"https://{node.address}", tls=tls, clock=Clock(), **PATIENT) as client:
        return (await client.request("GET", path, timeout=timeout)).status


async def trusted(g: Group) -> list[Authority]:
    return list((await load_authorities(g.store)).all)


# -- who gets in ---------------------------------------------------------------------------------------------------


async def test_a_member_gets_in(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    assert await get(a, await identity(g.store, "x")) == 200


async def test_strangers_get_nowhere(g: Group, caplog: pytest.LogCaptureFixture) -> None:
    a = await g.leader(settings=QUIET)
    clock, ours = Clock(), await trusted(g)
    other_cluster = Authority.create("lol", clock).mint("x", ["127.0.0.1"], HOUR, clock, trust=ours)
    expired = expired_identity(ours[0])
    self_signed = Authority.create("lol", clock)
    alone = NodeIdentity(self_signed.cert_pem, self_signed.key_pem, bundle(ours), clock.now())
    for stranger in (other_cluster, expired, alone):
        for path in PATHS:
            with pytest.raises(REFUSED) as caught:
                await get(a, stranger, path, timeout=5)
            assert "PRIVATE" not in str(caught.value)
    assert await get(a, await identity(g.store, "x")) == 200
    assert (await a.execute("INSERT INTO job VALUES (1)")).epoch > 0


def expired_identity(authority: Authority) -> NodeIdentity:
    yesterday = Shifted(-timedelta(hours=20))
    tls = authority.mint("x", ["127.0.0.1"], HOUR, yesterday)
    assert tls.not_after < Clock().now()
    return tls


async def test_without_a_certificate_nothing_is_told(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    host, port = a.address.split(":")
    context = ssl.create_default_context(cadata=bundle(await trusted(g)))
    context.set_alpn_protocols(["h2"])
    answer = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        async with asyncio.timeout(WAIT):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            try:
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.transport.abort()
    assert answer == b""


@pytest.mark.parametrize(
    "first", [b"GET /.lbc/status HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
async def test_plain_text_gets_nowhere(g: Group, first: bytes) -> None:
    a = await g.leader(settings=QUIET)
    host, port = a.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(first + bytes(64))
        async with asyncio.timeout(WAIT):
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
        assert len(answer) < 32, "a TLS alert at most"
        assert b"lol" not in answer
    finally:
        writer.transport.abort()
    with pytest.raises(REFUSED):
        async with Client(f"http://{a.address}", tls=None, clock=Clock()) as client:
            await client.request("GET", "/.lbc/status", timeout=3)


async def test_members_do_not_talk_to_a_node_of_another_cluster_at_a_members_address(g: Group) -> None:
    async with group() as other:
        a = await g.leader(settings=QUIET)
        stranger = await other.leader(settings=QUIET)
        client = a._listener.connect(stranger.address)
        with pytest.raises(PeerUnavailable) as caught:
            await client.request("GET", "/.lbc/status")
        assert not caught.value.sent
        await client.close()


async def test_a_member_cannot_speak_in_another_members_name(g: Group) -> None:
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    await eventually(lambda: a.members.value.get(b.id))
    tls = await identity(g.store, str(Clock().uuid7()))
    body = json.dumps({"member": b._member().to_json(), "session": b._session}).encode()
    async with Client(f"https://{a.address}", tls=tls, clock=Clock()) as client:
        for path in ("/.lbc/feed", "/.lbc/report", "/.lbc/leave"):
            assert (await client.request("POST", path, body=body)).status == 403
    await asyncio.sleep(0.6)  # the list goes out twice a second
    assert a.members.value.get(b.id) is not None


async def test_two_nodes_with_one_id_are_refused(g: Group, caplog: pytest.LogCaptureFixture) -> None:
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    body = json.dumps({"member": b._member().to_json(), "session": "another process"}).encode()
    own = json.dumps({"member": a._member().to_json(), "session": "another process"}).encode()
    for tls, text in ((b._listener._identity, body), (a._listener._identity, own)):
        async with Client(f"https://{a.address}", tls=tls, clock=Clock()) as client:
            for path in ("/.lbc/feed", "/.lbc/report"):
                answer = await client.request("POST", path, body=text)
                assert answer.status == 409
                assert "another node" in answer.json()["error"]
    b._session = b._reporter._session = "another process"
    await g.unfeed(b, a)
    b._reporter._connect = b._listener.connect
    await eventually(lambda: "does not feed this node: 409" in caplog.text, "it says why it is not fed")
    await asyncio.sleep(0.6)
    assert caplog.text.count("does not feed") == 1, "once"


# -- what nobody is told -----------------------------------------------------------------------------------------------


def secrets_of(text: str) -> list[str]:
    """The lines of private keys, to be looked for."""
    lines, inside = [], False
    for line in text.splitlines():
        inside = (inside or "BEGIN PRIVATE" in line) and "END PRIVATE" not in line
        if inside and "BEGIN" not in line:
            lines.append(line)
    assert lines
    return lines


async def test_keys_show_in_no_text_and_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with group() as g:
        a = await g.leader(settings={**QUIET, "directory": tmp_path / "a", "snapshot_epochs": 2})
        b = await g.node(settings={**QUIET, "directory": tmp_path / "b"})
        await all_fed(b)
        for _ in range(4):
            await b.execute("INSERT INTO job VALUES (1)")
        await eventually(lambda: a._local.since_snapshot.epoch > 0)
        stranger = Authority.create("lol", Clock()).mint("x", ["127.0.0.1"], HOUR, Clock())
        errors = []
        for tls in (stranger, expired_identity((await trusted(g))[0])):
            try:
                await get(a, tls, timeout=5)
            except REFUSED as error:
                errors.append("".join(traceback.format_exception(error)))
        assert errors
        authorities = await load_authorities(g.store)
        secrets = [
            line
            for pem in (authorities.all[0].key_pem, a._listener._identity.key_pem, b._listener._identity.key_pem)  # type: ignore[union-attr]
            for line in secrets_of(pem)
        ]
        damaged = names.authority(2)
        await g.store.put(damaged, (authorities.all[0].to_json()[:-20]).encode())
        with pytest.raises(CorruptLog) as caught:
            await load_authorities(g.store)
        errors.append("".join(traceback.format_exception(caught.value)))
        await g.store.delete([damaged])
        texts = {
            "repr": repr([authorities, *authorities.all, a._listener._identity, vars(a), vars(a._listener), g.cluster]),
            "log": caplog.text,
            "status": json.dumps([a.status(), b.status()]),
            "errors": "\n".join(errors),
        }
        for info in await g.store.list(""):
            if not info.key.startswith(names.AUTHORITIES):
                raw = await g.store.get(info.key) or b""
                texts[info.key] = raw.decode("latin-1") + _decompressed(raw)
        for path in tmp_path.rglob("*"):
            if path.is_file():
                texts[str(path)] = path.read_bytes().decode("latin-1")
        for where, text in texts.items():
            assert not any(secret in text or secret.replace("/", "\\/") in text for secret in secrets), where
            assert "BEGIN PRIVATE" not in text and "BEGIN EC PRIVATE" not in text, where  # noqa: PT018
        assert any(where.endswith(".db") for where in texts)
        with pytest.raises(ValueError):
            await a.store.get(names.authority(1))


def _decompressed(raw: bytes) -> str:
    try:
        return codec.decode(raw, name="x").raw.decode("latin-1")
    except CorruptLog:
        return ""


# -- rotation --------------------------------------------------------------------------------------------------------


def issuer(node: Node) -> str:
    tls = node._listener._identity
    assert tls is not None
    return x509.load_pem_x509_certificate(tls.cert_pem.encode()).issuer.rfc4514_string()


def test_a_new_authority_does_not_sign_before_all_can_know_it() -> None:
    before = Shifted(-timedelta(days=1))
    old, new = Authority.create("lol", before), Authority.create("lol", Clock())
    both = Authorities([new, old], [2, 1])
    assert both.signer(in_seconds(0)) is old
    assert both.signer(in_seconds(certificates.SETTLED_SECONDS)) is new
    assert Authorities([new], [2]).signer(in_seconds(0)) is new
    certificate = both.mint(Clock().uuid7(), ["127.0.0.1"], Clock())
    assert certificate.ca_bundle_pem.count("BEGIN CERTIFICATE") == 2


def test_a_former_authority_is_trusted_until_the_new_one_has_signed_for_all() -> None:
    first, second = (Authority.create("lol", Shifted(timedelta(days=days))) for days in (-9, -8))
    third, now = Authority.create("lol", Clock()), in_seconds(0)
    assert list(Authorities([first], [1]).trusted(now)) == [first], "the only one never ends"
    assert list(Authorities([second, first], [2, 1]).trusted(now)) == [second]
    all_three = Authorities([third, second, first], [3, 2, 1])
    assert list(all_three.trusted(now)) == [third, second]
    by_the_new = in_seconds(certificates.SETTLED_SECONDS + certificates.LOOK_SECONDS)
    assert (all_three.signer(by_the_new), list(all_three.trusted(by_the_new))) == (third, [third, second])
    assert list(all_three.trusted(in_seconds(certificates.ENDED_SECONDS))) == [third]


def test_who_signs_is_trusted_at_any_time() -> None:
    ages = [0.0, 500.0, 1000.0, 2000.0, 3000.0, 4000.0]
    made = [Authority.create("lol", Shifted(-timedelta(seconds=age))) for age in ages]
    for now in (in_seconds(each * 400) for each in range(-5, 15)):
        authorities = Authorities(made, range(len(made), 0, -1))
        assert authorities.signer(now) in authorities.trusted(now)


def in_seconds(seconds: float) -> datetime:
    return Clock().now() + timedelta(seconds=seconds)


async def test_the_authority_is_changed_while_all_goes_on(g: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(certificates, "SETTLED_SECONDS", 2.0)
    monkeypatch.setattr(certificates, "ENDED_SECONDS", 3600.0)
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    before = issuer(a)
    stop, written = asyncio.Event(), 0

    async def write_on() -> None:
        nonlocal written
        while not stop.is_set():
            await b.execute("INSERT INTO job VALUES (1)")
            written += 1
            await asyncio.sleep(0.01)

    writing = asyncio.create_task(write_on())
    rotation = await g.cluster.rotate_authority()
    assert (rotation.number, rotation.begun_now) == (2, True)
    again = await g.cluster.rotate_authority()
    assert again == replace(rotation, begun_now=False), "a second one changes nothing"
    newcomer = await g.node(settings=QUIET)
    await all_fed(newcomer)
    await eventually(lambda: before not in [issuer(node) for node in (a, b, newcomer)])
    late = await g.node(settings=QUIET)
    await all_fed(b, newcomer, late)
    assert issuer(late) != before
    new, old = await trusted(g)
    former = old.mint("x", ["127.0.0.1"], HOUR, Clock(), trust=[new])
    assert await get(a, former) == 200, "during the change both are trusted"
    assert all(issuer(node) != before for node in (a, b, newcomer, late))
    assert rotation.former_end_at is not None
    end_at = Clock().now() + timedelta(seconds=1)  # not before all of the above was seen, on a slow machine too
    sooner = (rotation.former_end_at - end_at).total_seconds()
    monkeypatch.setattr(certificates, "ENDED_SECONDS", 3600.0 - sooner)
    await eventually(lambda: trusts(a) == 1, "the former is trusted no more")
    assert Clock().now() >= end_at
    assert len(await trusted(g)) == 2, "it is still there, and of no use"
    with pytest.raises(REFUSED):
        await get(a, former, timeout=5)
    await all_fed(b, newcomer, late)
    count = written
    await eventually(lambda: written > count + 5)
    stop.set()
    await writing
    assert await b.read("SELECT count(*) FROM job") == [(written,)]


def trusts(node: Node) -> int:
    tls = node._listener._identity
    assert tls is not None
    return tls.ca_bundle_pem.count("BEGIN CERTIFICATE")


async def test_a_leaked_authority_is_trusted_no_more_as_soon_as_nodes_look(
    g: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.5)
    a = await g.leader(settings=QUIET)
    b = await g.node(settings=QUIET)
    await all_fed(b)
    before, leaked = issuer(a), (await trusted(g))[0].mint("x", ["127.0.0.1"], HOUR, Clock())
    assert await get(a, leaked) == 200
    await g.cluster.rotate_authority()
    rotation = await g.cluster.rotate_authority(at_once=True)
    assert (rotation.number, rotation.begun_now, rotation.former_end_at) == (3, True, None)
    assert (await load_authorities(g.store)).numbers == [3]
    await eventually(lambda: before not in (issuer(a), issuer(b)))
    await all_fed(b)
    for node in (a, b):
        with pytest.raises(REFUSED):
            await get(node, leaked, timeout=5)
    await b.execute("INSERT INTO job VALUES (1)")
    assert (await g.cluster.rotate_authority(at_once=True)).number == 4, "what was there before is worth nothing"


async def test_what_is_left_of_former_rotations_is_deleted(g: Group) -> None:
    for number, days in ((2, 9), (3, 8)):
        made = Authority.create("lol", Shifted(-timedelta(days=days)))
        await g.store.put(names.authority(number), made.to_json().encode())
    assert (await g.cluster.rotate_authority()).number == 4
    assert (await load_authorities(g.store)).numbers == [4, 3]


async def test_two_who_rotate_at_the_same_time_make_one_authority(g: Group) -> None:
    rotations = await asyncio.gather(*(g.cluster.rotate_authority() for _ in range(5)))
    assert {each.number for each in rotations} == {2}
    assert (await load_authorities(g.store)).numbers == [2, 1]


async def test_an_authority_that_is_deleted_while_they_are_read_is_no_damage(g: Group) -> None:
    class Retiring(Wrapper):
        async def get(self, key: str) -> bytes | None:
            if key == names.authority(1):
                await g.cluster.rotate_authority(at_once=True)
            return await super().get(key)

    assert (await load_authorities(Retiring(g.store))).numbers == [2]


async def test_a_node_cannot_join_without_an_authority(g: Group) -> None:
    await g.store.delete([names.authority(1)])
    with pytest.raises(CorruptLog, match="authority"):
        await g.node()


async def test_a_certificate_is_renewed_long_before_it_ends(g: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.1)
    a = await g.leader(settings=QUIET)
    tls, source = a._listener._identity, a._listener._source
    assert tls is not None
    assert isinstance(source, Minted)
    await asyncio.sleep(0.4)
    assert a._listener._identity is tls, "not without need"
    source.identity = replace(tls, not_after=Clock().now() + timedelta(days=3))
    await eventually(lambda: a._listener._identity is not tls)
    assert a._listener._identity is not None
    assert a._listener._identity.not_after > tls.not_after - HOUR
    assert await get(a, await identity(g.store, "x")) == 200


# -- without TLS -------------------------------------------------------------------------------------------------------

OFF = {**QUIET, "tls": "off"}


async def test_without_tls_a_node_says_so_loudly_and_works(g: Group, caplog: pytest.LogCaptureFixture) -> None:
    a = await g.leader(settings=OFF)
    assert any("TLS is off" in each.getMessage() and each.levelno >= logging.WARNING for each in caplog.records)
    b = await g.node(settings=OFF)
    await all_fed(b)
    await b.execute("INSERT INTO job VALUES (1)")
    async with Client(f"http://{a.address}", tls=None, clock=Clock()) as client:
        assert (await client.request("GET", "/.lbc/status")).status == 200


@pytest.mark.parametrize("address", ["0.0.0.0:0", "0.0.0.0", "[::]:0", "192.0.2.1:0"])
async def test_without_tls_only_this_machine_is_served_unless_told_twice(g: Group, address: str) -> None:
    with pytest.raises(ValueError, match="insecure=True"):
        await g.node(settings=OFF, address=address)


@pytest.mark.parametrize("environment", [None, "0.0.0.0:0"])
async def test_without_tls_the_address_that_is_found_by_itself_is_no_exception(
    g: Group, monkeypatch: pytest.MonkeyPatch, environment: str | None
) -> None:
    monkeypatch.setattr(listener, "reachable_host", lambda host: "192.0.2.1")
    monkeypatch.delenv("LBC_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("LBC_ADDRESS", environment)
    with pytest.raises(ValueError, match="insecure=True"):
        await g.node(settings=OFF, address=None)


async def test_without_tls_all_are_served_when_told_twice(g: Group, caplog: pytest.LogCaptureFixture) -> None:
    a = await g.leader(settings={**OFF, "insecure": True}, address="0.0.0.0:0")
    assert "TLS is off: everybody who reaches 0.0.0.0 is trusted" in caplog.text
    port = a.address.rsplit(":", 1)[1]
    async with Client(f"http://127.0.0.1:{port}", tls=None, clock=Clock()) as client:
        assert (await client.request("GET", "/.lbc/status")).status == 200


async def test_the_default_is_tls_for_members_only() -> None:
    default = NodeSettings()
    assert (default.tls, default.clients, default.insecure) == ("on", "members", False)
