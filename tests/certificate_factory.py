"""Certificates for tests, good and bad: each bad one differs from a good one in one thing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from securefabric.certificates import CertificateIdentity, TrustBundle, name_of_rank

DOMAIN, JOB = "tests", "default"
Issued = tuple[x509.Certificate, Any]


def certificate(
    *,
    issuer: Issued | None,
    uris: tuple[str, ...] = (),
    is_ca: bool = False,
    starts: timedelta = timedelta(hours=-1),
    ends: timedelta = timedelta(hours=1),
    usage: frozenset[str] | None = None,
    common_name: str = "",
    key: Any = None,
    path_length: int | None = None,
    more: tuple[x509.ExtensionType, ...] = (),
) -> Issued:
    """A certificate and its private key; issuer None means self-signed."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    usage = (
        usage
        if usage is not None
        else frozenset({"key_cert_sign" if is_ca else "digital_signature"})
    )
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    subject = x509.Name(names)
    now = datetime.now(UTC)
    flags = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "key_agreement"),
            *("data_encipherment", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if usage:
        named = x509.KeyUsage(**{**flags, **dict.fromkeys(usage, True)})
        builder = builder.add_extension(named, critical=True)
    if uris:
        identifiers = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(identifiers), critical=True)
    for extension in more:
        builder = builder.add_extension(extension, critical=True)
    signer = key if issuer is None else issuer[1]
    if issuer is not None:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, critical=False)
    is_ed25519 = isinstance(signer, ed25519.Ed25519PrivateKey)
    return builder.sign(signer, None if is_ed25519 else hashes.SHA256()), key


@cache
def authority(name: str = "job CA") -> Issued:
    return certificate(issuer=None, is_ca=True, common_name=name, ends=timedelta(days=1))


def leaf(rank: int, **changes: Any) -> Issued:
    """A good certificate of a rank, but for the changes."""
    settings: dict[str, Any] = {
        "issuer": authority(),
        "uris": (name_of_rank(DOMAIN, JOB, rank),),
        **changes,
    }
    return certificate(**settings)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def key_pem(key: Any) -> bytes:
    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return encoded


def bundle(folder: Path, *authorities: Issued) -> TrustBundle:
    path = folder / "ca.pem"
    path.write_bytes(pem(*(one[0] for one in authorities or (authority(),))))
    return TrustBundle(str(path))


def identity(folder: Path, rank: int, **settings: Any) -> CertificateIdentity:
    """An honest rank."""
    own, key = leaf(rank)
    return CertificateIdentity(
        rank=rank, chain=[own], private_key=key, trust=bundle(folder), **settings
    )


class Liar(CertificateIdentity):
    """A rank that uses a certificate which an honest one would refuse to start with."""

    def __init__(self, issued: Issued, *, chain: tuple[x509.Certificate, ...] = ()) -> None:
        self._chain = [one.public_bytes(Encoding.DER) for one in (issued[0], *chain)]
        self._private_key = issued[1]
        self._psk = None
        self.mode = "x509"
