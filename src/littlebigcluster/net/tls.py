"""Certificates: an authority that everybody in the group trusts, and the identities it mints.

Whoever holds the authority's key may mint an identity of any name, so the name in a certificate says who somebody
claims to be among equals; that it was signed by the authority is what keeps strangers out. Nothing here is ever
written to a disk, and no private key shows in a `repr`. Identities that others have made come from `pem.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from littlebigcluster.clock import Clock

BACKDATED = timedelta(days=1)
"""Certificates begin so long before they are made: the clocks of the nodes are not trusted to agree."""

AUTHORITY_LIFETIME = timedelta(days=3650)

_URI_SCHEME = "lbc"


@dataclass(frozen=True, slots=True)
class PeerName:
    """Who a certificate says its holder is."""

    authority: str
    node_id: str


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What a server or a client needs to prove who it is and to check who the other is. All are PEM texts."""

    cert_pem: str
    key_pem: str = field(repr=False)
    ca_bundle_pem: str = field(repr=False)
    """Whose signatures are accepted: one certificate, or several while the authority changes."""
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority (EC P-256). Whoever reads its `to_json()` can mint identities: it goes where only
    members of the group can read."""

    name: str
    """Who trusts it, for instance the id of a cluster; part of every certificate it signs."""
    cert_pem: str
    key_pem: str = field(repr=False)

    @classmethod
    def create(cls, name: str, clock: Clock, *, lifetime: timedelta = AUTHORITY_LIFETIME) -> Authority:
        """A new authority with a new key. Raises ValueError for an empty name or one over 60 characters."""
        if not 0 < len(name) <= 60:
            raise ValueError(f"the name of an authority has 1 to 60 characters, not {len(name)}")
        key = ec.generate_private_key(ec.SECP256R1())
        # Two authorities of one name live side by side during a rotation, and chains are built by subject.
        subject = _subject(name, f"authority {clock.token(8).hex()}")
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        cert = (
            _builder(subject, subject, key, clock.now() - BACKDATED, clock.now() + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(name, _cert_pem(cert), _key_pem(key))

    def to_json(self) -> str:
        """The whole authority with its private key."""
        return json.dumps({"version": 1, "name": self.name, "cert_pem": self.cert_pem, "key_pem": self.key_pem})

    @classmethod
    def from_json(cls, text: str | bytes) -> Authority:
        """The authority that `to_json` wrote. Raises ValueError when it is not one, or a newer version's."""
        try:
            data = json.loads(text)
            version, parts = data["version"], [data[key] for key in ("name", "cert_pem", "key_pem")]
            authority = cls(*parts)
            matches = authority.certificate.public_key() == authority._key.public_key()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError("this is not a certificate authority of ours (damaged, or another file)") from None
        if version != 1 or not matches:
            raise ValueError("the certificate authority is of a newer version, or its key is another's")
        return authority

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert_pem.encode())

    @property
    def created_at(self) -> datetime:
        return self.certificate.not_valid_before_utc + BACKDATED

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self.key_pem.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key of a certificate authority must be an elliptic-curve key")
        return key

    def mint(
        self,
        node_id: str,
        hosts: Iterable[str],
        lifetime: timedelta,
        clock: Clock,
        *,
        trust: Sequence[Authority] = (),
    ) -> NodeIdentity:
        """A new identity with a new key, for servers and clients alike.

        `hosts` are the IP addresses and host names under which others reach the node. `trust` are further
        authorities whose identities it accepts, during a rotation. It is valid from a day ago until `lifetime`
        from now, but never longer than the authority. Raises ValueError for a bad node id.
        """
        if not 0 < len(node_id) <= 64:
            raise ValueError(f"a node id has 1 to 64 characters, not {len(node_id)}")
        issuer, now = self.certificate, clock.now()
        not_before = max(now - BACKDATED, issuer.not_valid_before_utc)
        not_after = min(now + lifetime, issuer.not_valid_after_utc)
        if not_after <= not_before:
            raise ValueError(f"an identity that ends at {not_after} would never have been valid")
        key = ec.generate_private_key(ec.SECP256R1())
        uri = f"{_URI_SCHEME}://{quote(self.name, safe='')}/{quote(node_id, safe='')}"
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        cert = (
            _builder(_subject(self.name, node_id), issuer.subject, key, not_before, not_after, self._key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName([*names, x509.UniformResourceIdentifier(uri)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        ends = cert.not_valid_after_utc
        return NodeIdentity(_cert_pem(cert), _key_pem(key), bundle([self, *trust]), ends)


def bundle(authorities: Iterable[Authority]) -> str:
    """The certificates (never the keys) of several authorities, to trust them all at once."""
    return "".join(dict.fromkeys(authority.cert_pem for authority in authorities))


def shows_certificate(scope: Mapping[str, Any]) -> bool:
    """Whether this ASGI request came with a certificate, which the server has verified then."""
    return bool(_chain(scope))


def peer_name(scope: Mapping[str, Any]) -> PeerName | None:
    """Who sent this ASGI request, by the certificate that the server has verified.

    None without TLS, without a certificate, or when the certificate was not minted by an `Authority`.
    """
    chain = _chain(scope)
    return name_in_certificate(chain[0]) if chain else None


def _chain(scope: Mapping[str, Any]) -> Sequence[str]:
    return (scope.get("extensions") or {}).get("tls", {}).get("client_cert_chain") or ()


@lru_cache(maxsize=4096)
def name_in_certificate(cert_pem: str) -> PeerName | None:
    """The name that `mint` wrote into a certificate; None if there is none. Verifies nothing."""
    cert = x509.load_pem_x509_certificate(cert_pem.encode())
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        parts = urlsplit(uri)
        if parts.scheme == _URI_SCHEME:
            return PeerName(unquote(parts.netloc), unquote(parts.path.removeprefix("/")))
    return None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
    issuer_key: ec.EllipticCurvePrivateKey | None = None,
) -> x509.CertificateBuilder:
    signer = (issuer_key or key).public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before.astimezone(UTC))
        .not_valid_after(not_after.astimezone(UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _subject(organization: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _cert_pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
