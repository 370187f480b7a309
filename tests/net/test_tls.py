"""The authority, the identities it mints, and that no private key shows anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from littlebigcluster.clock import Clock
from littlebigcluster.net import Authority, NodeIdentity, PeerName, bundle
from littlebigcluster.net.tls import name_in_certificate

Mint = Callable[[str], NodeIdentity]
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Noon(Clock):
    def now(self) -> datetime:
        return NOW


def certificate(identity: NodeIdentity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.cert_pem.encode())


def test_an_identity_names_the_node_and_its_addresses() -> None:
    authority = Authority.create("the cluster/1", Noon())
    identity = authority.mint("node å", ["10.1.2.3", "::1", "db.example"], timedelta(days=7), Noon())
    names = certificate(identity).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "::1"]
    assert names.get_values_for_type(x509.DNSName) == ["db.example"]
    assert name_in_certificate(identity.cert_pem) == PeerName("the cluster/1", "node å")
    usage = certificate(identity).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_certificates_begin_a_day_ago_and_end_when_asked() -> None:
    authority = Authority.create("c", Noon())
    identity = authority.mint("n", [], timedelta(days=7), Noon())
    assert certificate(identity).not_valid_before_utc == NOW - timedelta(days=1)
    assert certificate(identity).not_valid_after_utc == identity.not_after == NOW + timedelta(days=7)
    assert authority.certificate.not_valid_before_utc == NOW - timedelta(days=1)


def test_no_identity_outlives_its_authority() -> None:
    authority = Authority.create("c", Noon(), lifetime=timedelta(days=3))
    assert authority.mint("n", [], timedelta(days=7), Noon()).not_after == authority.not_after


def test_an_authority_survives_json(clock: Clock) -> None:
    authority = Authority.create("c", clock)
    assert Authority.from_json(authority.to_json()) == authority
    assert Authority.from_json(authority.to_json().encode()).mint("n", [], timedelta(days=1), clock)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"key_pem": "x"}, {"cert_pem": ""}, {"name": None, "cert_pem": None}, {"key_pem": 7}],
)
def test_a_damaged_authority_is_refused_and_its_key_not_quoted(change: dict[str, object], clock: Clock) -> None:
    authority = Authority.create("c", clock)
    text = json.dumps({**json.loads(authority.to_json()), **change})
    with pytest.raises(ValueError) as caught:
        Authority.from_json(text)
    assert "PRIVATE" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", b"\xff"])
def test_what_is_no_authority_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        Authority.from_json(text)


def test_the_key_of_another_authority_is_refused(clock: Clock) -> None:
    one, other = Authority.create("c", clock), Authority.create("c", clock)
    with pytest.raises(ValueError):
        Authority.from_json(Authority("c", one.cert_pem, other.key_pem).to_json())


def test_keys_do_not_show(clock: Clock, mint: Mint) -> None:
    authority, identity = Authority.create("c", clock), mint("n")
    for shown in (repr(authority), str(authority), repr(identity), f"{identity}", bundle([authority])):
        assert "PRIVATE" not in shown
        assert authority.key_pem.splitlines()[1] not in shown
        assert identity.key_pem.splitlines()[1] not in shown


def test_a_bundle_holds_each_authority_once(clock: Clock) -> None:
    one, other = Authority.create("c", clock), Authority.create("c", clock)
    certificates = x509.load_pem_x509_certificates(bundle([one, other, one]).encode())
    assert certificates == [one.certificate, other.certificate]
    assert one.certificate.subject != other.certificate.subject


def test_a_foreign_certificate_has_no_name_of_ours(clock: Clock) -> None:
    assert name_in_certificate(Authority.create("c", clock).cert_pem) is None


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_names_that_do_not_fit_are_refused(name: str, authority: Authority, clock: Clock) -> None:
    with pytest.raises(ValueError, match="characters"):
        Authority.create(name, clock)
    with pytest.raises(ValueError, match="characters"):
        authority.mint(name, [], timedelta(days=1), clock)
