"""Certificates that somebody else makes: read from PEM files, and checked for all that would fail later."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from littlebigcluster.net.tls import NodeIdentity

Pem = Path | bytes
"""A file, or what would be in it."""

_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_MAX_BYTES = 1 << 20


def load_identity(
    certificate: Pem, private_key: Pem, authorities: Pem, *, host: str | None, now: datetime
) -> NodeIdentity:
    """The identity in these files.

    `certificate` is the certificate, and those between it and the authority; `private_key` is not encrypted, RSA or
    EC on the curves P-256 and P-384; `authorities` are those whose signatures are accepted, the authority of this
    certificate among them. `host` is the address or name at which others reach the node, which the certificate must
    hold; None for one that only connects to others.

    Raises ValueError that names the file when one cannot be read or all together cannot be used. No text ever quotes
    a key.
    """
    cert_pem, key_pem, bundle_pem = (_read(pem) for pem in (certificate, private_key, authorities))
    chain = _certificates("certificate", certificate, cert_pem)
    trusted = _certificates("certificates of authorities", authorities, bundle_pem)
    key = _key(private_key, key_pem)
    leaf = chain[0]
    if leaf.public_key() != key.public_key():
        raise ValueError(f"the key in {_name(private_key)} does not belong to the certificate in {_name(certificate)}")
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        span = f"from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%SZ} to {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}"
        raise ValueError(f"the certificate in {_name(certificate)} is valid {span}, and it is {now:%Y-%m-%d %H:%M:%SZ}")
    _check_usage(certificate, leaf, (_SERVER, _CLIENT) if host is not None else (_CLIENT,))
    if host is not None and not _names(leaf, host):
        raise ValueError(
            f"the certificate in {_name(certificate)} does not name {host}, at which others reach this node,"
            " as a subject alternative name"
        )
    if not _leads_to_a_root(leaf, chain[1:], trusted):
        raise ValueError(
            f"the certificate in {_name(certificate)} does not lead to a self-signed authority in {_name(authorities)}"
        )
    plain_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return NodeIdentity(_pem(chain), plain_key.decode(), _pem(trusted), leaf.not_valid_after_utc)


def _read(pem: Pem) -> bytes:
    if isinstance(pem, bytes):
        return pem
    try:
        with pem.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{pem} cannot be read: {error.strerror}") from None


def _name(pem: Pem) -> str:
    return str(pem) if isinstance(pem, Path) else "the given bytes"


def _certificates(what: str, pem: Pem, text: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        # The parser's own message could quote what it read, and that may be a key.
        raise ValueError(f"{_name(pem)} holds no {what} in PEM") from None


def _key(pem: Pem, text: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        raise ValueError(f"{_name(pem)} holds no private key in PEM, unencrypted") from None
    if isinstance(key, rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES)
    ):
        return key
    raise ValueError(f"the key in {_name(pem)} must be RSA, or EC on the curve P-256 or P-384")


def _check_usage(pem: Pem, cert: x509.Certificate, wanted: Iterable[x509.ObjectIdentifier]) -> None:
    try:
        usages = list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    for usage, name in ((_SERVER, "server"), (_CLIENT, "client")):
        if usage in wanted and usage not in usages:
            raise ValueError(f"the certificate in {_name(pem)} is not for use by a {name} (extended key usage)")


def _names(cert: x509.Certificate, host: str) -> bool:
    try:
        found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ip_address(host) in found.get_values_for_type(x509.IPAddress)
    except ValueError:
        names = [name.lower() for name in found.get_values_for_type(x509.DNSName)]
        return host.lower() in names or "*." + host.lower().partition(".")[2] in names


def _leads_to_a_root(leaf: x509.Certificate, between: list[x509.Certificate], trusted: list[x509.Certificate]) -> bool:
    """Whether signatures lead from the certificate to a trusted one that has signed itself. Clients want no less."""
    left, cert = [*trusted, *between], leaf
    while not (cert in trusted and _signed(cert, by=cert)):
        issuer = next((each for each in left if _signed(cert, by=each)), None)
        if issuer is None:
            return False
        left.remove(issuer)
        cert = issuer
    return True


def _signed(cert: x509.Certificate, *, by: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)
