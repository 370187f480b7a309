"""Nodes with certificates of an authority of the user's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from littlebigcluster import Node, NodeSettings
from littlebigcluster.clock import Clock
from littlebigcluster.cluster import identity as identities
from littlebigcluster.errors import LbcError, NotLeader, PeerUnavailable, RequestTimeout
from littlebigcluster.net import Client, NodeIdentity, load_identity
from tests.cluster.group import Group, all_fed, eventually, group, identity, within
from tests.net.authority import CLIENT, HOUR, Issued, issue
from tests.net.serving import PATIENT
from tests.scenarios.stage import WAIT

QUIET: dict[str, Any] = {"leader_timeout": 20.0}
REFUSED = (PeerUnavailable, RequestTimeout)


def replace_file(path: Path, content: bytes) -> None:
    """At once: nobody reads a half of it."""
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


class Files:
    """What a node is given: a directory that something else renews, file by file."""

    def __init__(self, directory: Path, authority: Issued, name: str = "node") -> None:
        directory.mkdir()
        self.certificate, self.key, self.authorities = (directory / f for f in ("tls.crt", "tls.key", "ca.crt"))
        self.renew(issue(name, authority), authority)

    def renew(self, issued: Issued, *authorities: Issued) -> None:
        replace_file(self.certificate, issued.pem)
        replace_file(self.key, issued.key_pem)
        replace_file(self.authorities, b"".join(each.pem for each in authorities))

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **QUIET,
            "tls_certificate": self.certificate,
            "tls_private_key": self.key,
            "tls_authorities": self.authorities,
        }


@pytest.fixture
async def g() -> AsyncIterator[Group]:
    async with group() as made:
        yield made


@pytest.fixture
def company() -> Issued:
    return issue("company", is_authority=True)


@pytest.fixture
def files(tmp_path: Path, company: Issued) -> Files:
    return Files(tmp_path / "a", company)


def in_bytes(issued: Issued, *authorities: Issued) -> dict[str, Any]:
    bundle = b"".join(each.pem for each in authorities)
    return {**QUIET, "tls_certificate": issued.pem, "tls_private_key": issued.key_pem, "tls_authorities": bundle}


def shown_by(issued: Issued, *authorities: Issued) -> NodeIdentity:
    """For a client."""
    bundle = b"".join(each.pem for each in authorities)
    return load_identity(issued.pem, issued.key_pem, bundle, host=None, now=Clock().now())


async def get(node: Node, tls: NodeIdentity, path: str = "/.lbc/status", *, timeout: float = WAIT) -> int:
    async with Client(f"https://{node.address}", tls=tls, clock=Clock(), **PATIENT) as client:
        return (await client.request("GET", path, timeout=timeout)).status


async def is_refused(node: Node, tls: NodeIdentity) -> None:
    """Or gets no answer: a request that meets the very end of its connection can be lost."""
    with pytest.raises(REFUSED):
        await get(node, tls, timeout=5)


async def test_nodes_with_own_certificates_are_a_cluster(g: Group, files: Files, company: Issued) -> None:
    a = await g.leader(settings=files.settings)
    b = await g.node(settings=in_bytes(issue("b", company), company), can_lead=True, roles=["x"])
    await all_fed(b)
    await b.execute("INSERT INTO job VALUES (1)")
    assert (await a.client("x").get("/.lbc/ping")).status == 200
    assert len(a.members.value) == 2
    await g.leave(a)
    await b.wait_until_leader(timeout=10)
    assert (await b.leader_client.get("/.lbc/leads")).status == 200


@pytest.mark.parametrize("clients", ["members", "anyone"])
async def test_the_clusters_own_certificate_is_of_no_use_there(g: Group, files: Files, clients: str) -> None:
    a = await g.leader(settings={**files.settings, "clients": clients})
    ours = await identity(g.store, "x")
    knows_both = NodeIdentity(
        ours.cert_pem, ours.key_pem, ours.ca_bundle_pem + files.authorities.read_text(), ours.not_after
    )
    for tls in (ours, knows_both):
        await is_refused(a, tls)
    b = await g.node(settings=QUIET)
    epoch = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    await b.epoch.until(lambda now: now >= epoch, timeout=10)
    assert not b._reporter.connected.value, "it polls the store, and is no member"
    assert [each.id for each in a.members.value] == [a.id]


async def test_an_own_certificate_is_of_no_use_where_the_clusters_are(g: Group, files: Files, company: Issued) -> None:
    a = await g.leader(settings=QUIET)
    own, ours = shown_by(issue("x", company), company), await identity(g.store, "x")
    knows_both = NodeIdentity(own.cert_pem, own.key_pem, own.ca_bundle_pem + ours.ca_bundle_pem, own.not_after)
    for tls in (own, knows_both):
        await is_refused(a, tls)
    b = await g.node(settings=files.settings)
    epoch = (await a.execute("INSERT INTO job VALUES (1)")).epoch
    await b.epoch.until(lambda now: now >= epoch, timeout=10)
    assert not b._reporter.connected.value
    assert [each.id for each in a.members.value] == [a.id]


async def test_another_company_gets_nowhere(g: Group, files: Files, company: Issued) -> None:
    a = await g.leader(settings=files.settings)
    other = issue("company", is_authority=True)
    for stranger in (issue("x", other), issue("x"), issue("x", company, ends_in=-HOUR)):
        tls = NodeIdentity(stranger.pem.decode(), stranger.key_pem.decode(), company.pem.decode(), Clock().now())
        await is_refused(a, tls)
    assert await get(a, shown_by(issue("x", company), company)) == 200


async def test_a_renewed_certificate_is_taken_up_and_nobody_is_refused(
    g: Group, files: Files, company: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "OWN_LOOK_SECONDS", 0.1)
    others = Files(tmp_path / "b", company)
    a, b = await g.leader(settings=files.settings), await g.node(settings=others.settings)
    await all_fed(b)
    client = b.leader_client
    assert (await client.get("/.lbc/leads")).status == 200
    operator = shown_by(issue("operator", company, usages=[CLIENT]), company)
    answers = 0

    async def connect_on() -> None:
        nonlocal answers
        while True:
            assert await get(a, operator, timeout=5) == 200  # a new connection each time
            answers += 1

    connecting = asyncio.create_task(connect_on())
    renewed = {}
    for node, given in ((a, files), (b, others)):
        given.renew(renewed.setdefault(node, issue("renewed", company)), company)
    await eventually(lambda: all(shown(node) == renewed[node].pem.decode() for node in (a, b)))
    next_company = issue("next company", is_authority=True)
    for given, node in ((files, a), (others, b)):
        given.renew(renewed[node], company, next_company)
    await eventually(lambda: all(trusted(node).count("BEGIN") == 2 for node in (a, b)))
    for given, node in ((files, a), (others, b)):
        renewed[node] = issue("by the next", next_company)
        given.renew(renewed[node], company, next_company)
    await eventually(lambda: all(shown(node) == renewed[node].pem.decode() for node in (a, b)))
    with pytest.raises(REFUSED):
        await within(connecting)  # the operator does not know the next company yet; until then nobody refused it
    assert answers > 5
    assert await get(a, shown_by(issue("x", company), company, next_company)) == 200
    for given in (files, others):
        replace_file(given.authorities, next_company.pem)
    await eventually(lambda: all(trusted(node) == next_company.pem.decode() for node in (a, b)))
    await is_refused(a, shown_by(issue("x", company), company, next_company))
    assert (await client.get("/.lbc/leads", timeout=10)).status == 200
    await all_fed(b)
    await b.execute("INSERT INTO job VALUES (1)")


def shown(node: Node) -> str:
    tls = node._listener._identity
    assert tls is not None
    return tls.cert_pem


def trusted(node: Node) -> str:
    tls = node._listener._identity
    assert tls is not None
    return tls.ca_bundle_pem


async def test_files_that_cannot_be_used_are_told_once_and_the_node_goes_on(
    g: Group, files: Files, company: Issued, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(identities, "OWN_LOOK_SECONDS", 0.05)
    a = await g.leader(settings=files.settings)
    present = shown(a)
    new = issue("new", company)
    replace_file(files.certificate, new.pem)  # and not yet its key
    await eventually(lambda: "does not belong to the certificate" in caplog.text)
    files.key.unlink()
    await eventually(lambda: f"{files.key} cannot be read" in caplog.text)
    await asyncio.sleep(0.3)
    assert caplog.text.count("the node keeps the certificate") == 2
    assert shown(a) == present
    assert await get(a, shown_by(issue("x", company), company)) == 200
    replace_file(files.key, new.key_pem)
    await eventually(lambda: shown(a) == new.pem.decode())


@pytest.mark.parametrize("which", ["certificate", "key", "authorities"])
async def test_a_join_with_a_wrong_file_names_it(g: Group, files: Files, which: str) -> None:
    file: Path = getattr(files, which)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=str(file)):
        await g.node(settings=files.settings)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        await g.node(settings=files.settings)


async def test_a_join_at_an_address_that_the_certificate_does_not_name_is_refused(g: Group, files: Files) -> None:
    with pytest.raises(ValueError, match=r"does not name elsewhere\.example"):
        await g.node(settings=files.settings, advertise="elsewhere.example:1")


async def test_the_leader_is_asked_from_outside_with_an_own_certificate(
    g: Group, files: Files, company: Issued
) -> None:
    a = await g.leader(settings=files.settings)
    operator = NodeSettings(**in_bytes(issue("operator", company, usages=[CLIENT], hosts=[]), company))
    assert (await g.cluster.ask_leader("GET", "/.lbc/status", settings=operator))["this"]["id"] == str(a.id)
    with pytest.raises(PeerUnavailable, match="over TLS with the cluster's certificates"):
        await g.cluster.ask_leader("GET", "/.lbc/status")
    with pytest.raises(REFUSED):
        await g.cluster.ask_leader("GET", "/.lbc/status", settings=NodeSettings(tls="off"), timeout=3)


async def test_from_outside_there_is_no_way_back_to_plain_text(g: Group) -> None:
    off = NodeSettings(tls="off")
    a = await g.leader(settings={**QUIET, "tls": "off"})
    assert (await g.cluster.ask_leader("GET", "/.lbc/status", settings=off))["this"]["id"] == str(a.id)
    with pytest.raises(PeerUnavailable, match="over TLS with the cluster's certificates"):
        await g.cluster.ask_leader("GET", "/.lbc/status")
    await g.leave(a)
    with pytest.raises(NotLeader):
        await g.cluster.ask_leader("GET", "/.lbc/status", settings=off)


async def test_without_tls_a_server_with_it_is_not_talked_to(g: Group) -> None:
    await g.leader(settings=QUIET)
    with pytest.raises((*REFUSED, LbcError)):
        await g.cluster.ask_leader("GET", "/.lbc/status", settings=NodeSettings(tls="off"), timeout=3)


async def test_own_keys_show_nowhere(
    g: Group, files: Files, company: Issued, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(identities, "OWN_LOOK_SECONDS", 0.05)
    issued, errors = issue("b", company), []
    a, b = await g.leader(settings=files.settings), await g.node(settings=in_bytes(issued, company))
    await all_fed(b)
    keys = [files.key.read_text(), issued.key_pem.decode()]
    files.certificate.write_text(keys[0])  # somebody mixes them up
    await eventually(lambda: "holds no certificate" in caplog.text)
    mixed_up = NodeSettings(tls_certificate=issued.key_pem, tls_private_key=issued.pem, tls_authorities=issued.key_pem)
    for wrong in (mixed_up, NodeSettings(**{**in_bytes(issued, company), "tls_authorities": b""})):
        with pytest.raises(ValueError) as caught:
            await g.cluster.ask_leader("GET", "/.lbc/status", settings=wrong)
        errors.append(str(caught.value))
    for name in ("tls_certificate", "tls_private_key", "tls_authorities"):
        with pytest.raises(ValueError) as caught:
            NodeSettings(**{name: issued.key_pem.decode()})  # type: ignore[arg-type]
        errors.append(str(caught.value))
    parts = [vars(each) for node in (a, b) for each in (node, node._listener)]
    texts = [
        repr([a.settings, b.settings, mixed_up, b._listener._identity, *parts]),
        json.dumps([a.status(), b.status()]),
        caplog.text,
        *errors,
    ]
    lines = {line for key in keys for line in key.splitlines()}
    assert not [line for line in lines for text in texts if line in text]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"tls_certificate": b"x"}, "go together; given: tls_certificate"),
        ({"tls_private_key": b"x", "tls_authorities": b"x"}, "go together"),
        ({"tls_certificate": b"x", "tls_private_key": b"x", "tls_authorities": b"x", "tls": "off"}, 'tls="off"'),
        ({"tls_certificate": 5}, "a path, or bytes, not int"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, TypeError), match=reason):
        NodeSettings(**given)


async def test_an_empty_certificate_does_not_fall_back_to_the_clusters(g: Group, company: Issued) -> None:
    empty = {**in_bytes(issue("x", company), company), "tls_certificate": b""}
    with pytest.raises(ValueError, match="holds no certificate"):
        await g.node(settings=empty)


def test_a_path_may_be_a_text() -> None:
    names = {"tls_certificate": "/a", "tls_private_key": "/b", "tls_authorities": "/c"}
    settings = NodeSettings(**names)  # type: ignore[arg-type]
    assert [settings.tls_certificate, settings.tls_private_key] == [Path("/a"), Path("/b")]
