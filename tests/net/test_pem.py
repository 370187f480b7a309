"""Certificates that somebody else makes: what can be used works on both ends, all else is refused with its file."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from littlebigcluster.clock import Clock
from littlebigcluster.net import NodeIdentity, load_identity
from tests.net.app import ContractApp
from tests.net.authority import CLIENT, HOUR, SERVER, Issued, Key, issue
from tests.net.serving import pair

ROOT = issue("root", is_authority=True)
BETWEEN = issue("between", ROOT, is_authority=True)
NODE = issue("node", BETWEEN)
CHAIN = NODE.pem + BETWEEN.pem
P8, TRADITIONAL = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL


def load(certificate: Any = CHAIN, key: Any = NODE.key_pem, ca: Any = ROOT.pem, host: str | None = "127.0.0.1") -> Any:
    return load_identity(certificate, key, ca, host=host, now=Clock().now())


def loaded(issued: Issued, form: serialization.PrivateFormat = P8) -> NodeIdentity:
    """One that the certificate between has signed."""
    return load(issued.pem + BETWEEN.pem, issued.key_in(form))


def with_key(key: Key) -> Issued:
    return issue("node", BETWEEN, key=key)


def self_signed() -> NodeIdentity:
    own = issue("self")
    return load(own.pem, own.key_pem, own.pem)


USABLE: dict[str, Callable[[], NodeIdentity]] = {
    "a chain to a root": load,
    "the certificate between in the bundle": lambda: load(NODE.pem, ca=BETWEEN.pem + ROOT.pem),
    "one that has signed itself": self_signed,
    "no usages": lambda: loaded(issue("x", BETWEEN, usages=())),
    "an EC key in its own form": lambda: load(key=NODE.key_in(TRADITIONAL)),
    "an RSA key in its own form": lambda: loaded(with_key(rsa.generate_private_key(65537, 2048)), TRADITIONAL),
    "P-384": lambda: loaded(with_key(ec.generate_private_key(ec.SECP384R1()))),
    "several authorities": lambda: load(ca=issue("other", is_authority=True).pem + ROOT.pem),
}


@pytest.mark.parametrize("kind", USABLE)
async def test_what_is_taken_works_on_both_ends(kind: str, app: ContractApp) -> None:
    async with pair(app, USABLE[kind]()) as (_, client):
        assert (await client.request("GET", "/hello")).status == 200


def test_a_certificate_for_a_client_alone_is_enough_to_ask() -> None:
    only = issue("operator", ROOT, usages=[CLIENT], hosts=[])
    assert load(only.pem, only.key_pem, host=None).not_after == only.certificate.not_valid_after_utc


def test_the_same_files_are_the_same_identity() -> None:
    assert load() == load()


Parts = tuple[bytes, bytes, bytes]


def parts(issued: Issued) -> Parts:
    return issued.pem + BETWEEN.pem, issued.key_pem, ROOT.pem


NO_WAY = "CERT does not lead to a self-signed authority in CA"

UNUSABLE: dict[str, tuple[Callable[[], Parts], str]] = {
    "no certificate": (lambda: (b"nonsense", NODE.key_pem, ROOT.pem), "CERT holds no certificate"),
    "a key for a certificate": (lambda: (NODE.key_pem, NODE.key_pem, ROOT.pem), "CERT holds no certificate"),
    "a certificate cut off": (lambda: (NODE.pem[:-60], NODE.key_pem, ROOT.pem), "CERT holds no certificate"),
    "no key": (lambda: (CHAIN, NODE.pem, ROOT.pem), "KEY holds no private key"),
    "a key cut off": (lambda: (CHAIN, NODE.key_pem[:-60], ROOT.pem), "KEY holds no private key"),
    "a key with a password": (lambda: (CHAIN, NODE.key_in(P8, b"secret"), ROOT.pem), "KEY holds no private key"),
    "no authorities": (lambda: (CHAIN, NODE.key_pem, b""), "CA holds no certificates of authorities"),
    "another's key": (lambda: (CHAIN, ROOT.key_pem, ROOT.pem), "KEY does not belong to the certificate in CERT"),
    "Ed25519": (lambda: parts(with_key(ed25519.Ed25519PrivateKey.generate())), "the key in KEY must be RSA"),
    "P-521": (lambda: parts(with_key(ec.generate_private_key(ec.SECP521R1()))), "the key in KEY must be RSA"),
    "over": (lambda: parts(issue("x", BETWEEN, ends_in=-HOUR)), "the certificate in CERT is valid from"),
    "no client": (lambda: parts(issue("x", BETWEEN, usages=[SERVER])), "CERT is not for use by a client"),
    "no server": (lambda: parts(issue("x", BETWEEN, usages=[CLIENT])), "CERT is not for use by a server"),
    "another address": (lambda: parts(issue("x", BETWEEN, hosts=["10.0.0.1", "a.b"])), "CERT does not name 127.0.0.1"),
    "no address": (lambda: parts(issue("x", BETWEEN, hosts=[])), "CERT does not name 127.0.0.1"),
    "another authority": (lambda: (CHAIN, NODE.key_pem, issue("root", is_authority=True).pem), NO_WAY),
    "an authority without its root": (lambda: (CHAIN, NODE.key_pem, BETWEEN.pem), NO_WAY),
    "no certificate between": (lambda: (NODE.pem, NODE.key_pem, ROOT.pem), NO_WAY),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used_is_refused_with_its_file_and_no_key(kind: str, tmp_path: Path) -> None:
    make, reason = UNUSABLE[kind]
    made = make()
    files = [tmp_path / name for name in ("CERT", "KEY", "CA")]
    for file, content in zip(files, made, strict=True):
        file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_identity(*files, host="127.0.0.1", now=Clock().now())
    assert reason in str(caught.value).replace(f"{tmp_path}/", "")
    with pytest.raises(ValueError, match="the given bytes"):
        load_identity(*made, host="127.0.0.1", now=Clock().now())
    told = "".join(traceback.format_exception(caught.value))
    assert not [line for line in made[1].decode().splitlines() if line in told]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent cannot be read: No such file"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load(key=tmp_path)


@pytest.mark.parametrize(
    ("host", "named"),
    [("a.example", True), ("A.Example", True), ("x.wild.example", True), ("x.y.wild.example", False),
     ("wild.example", False), ("10.0.0.1", True), ("10.0.0.2", False), ("::1", True), ("b.example", False)],
)  # fmt: skip
def test_names_are_those_that_clients_accept(host: str, named: bool) -> None:
    own = issue("x", ROOT, hosts=["a.example", "*.wild.example", "10.0.0.1", "::1"])
    if named:
        load(own.pem, own.key_pem, host=host)
    else:
        with pytest.raises(ValueError, match="does not name"):
            load(own.pem, own.key_pem, host=host)
