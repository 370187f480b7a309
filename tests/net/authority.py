"""Certificates as a company's own authority would make them, with everything that can be wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from littlebigcluster.clock import Clock

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)  # some are made when tests are collected, and used when a long run comes to them


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key_in(serialization.PrivateFormat.PKCS8)

    def key_in(self, form: serialization.PrivateFormat, password: bytes | None = None) -> bytes:
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, form, hidden)


def issue(
    name: str,
    by: Issued | None = None,
    *,
    hosts: Sequence[str] = ("127.0.0.1",),
    key: Key | None = None,
    is_authority: bool = False,
    usages: Sequence[x509.ObjectIdentifier] = (SERVER, CLIENT),
    ends_in: timedelta = DAY,
) -> Issued:
    """A certificate by another, or by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), Clock().now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * HOUR)
        .not_valid_after(now + ends_in)
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    elif hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    if usages and not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    signer = by.key if by else key
    return Issued(builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()), key)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
