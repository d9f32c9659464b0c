"""A certificate authority for jobs that have none: two commands, files in one folder, no server.

    securefabric ca init DIR                          ca.pem, ca.key
    securefabric ca issue DIR --job JOB --ranks N     rank-0.pem, rank-0.key, ... beside them

Certificates live for days: there are no revocation lists. Whoever holds ca.key can be any rank of
any job, so it stays on the host that issues.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .identity import config_error, read_file, write_new_file

__all__ = ["TRUST_DOMAIN", "init", "issue"]

TRUST_DOMAIN: Final = "securefabric"
CA_DAYS: Final = 365.0
LEAF_DAYS: Final = 7.0
RANKS_MAX: Final = 1 << 20
_BACKDATE: Final = timedelta(minutes=5)  # hosts' clocks differ
_PUBLIC_MODE: Final = 0o644
_DAYS_MAX: Final = 3650


def init(folder: str, *, trust_domain: str = TRUST_DOMAIN, days: float = CA_DAYS) -> Path:
    """Make a CA in a new or empty folder and return the path of its certificate.

    Raises ConfigError when there is a CA already, or the folder cannot be used.
    """
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", trust_domain, re.ASCII):
        raise config_error(
            f"trust domain {trust_domain!r} is not usable: it has lower-case letters, digits, "
            "'.', '-' and '_'"
        )
    _check_days(days)
    path = Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise config_error(f"cannot make folder {folder}: {error.strerror}") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "securefabric"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"job CA of {trust_domain}"),
        ]
    )
    builder = _builder(name, name, key.public_key(), days)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    write_new_file(str(path / "ca.key"), _private_pem(key))
    try:
        write_new_file(str(path / "ca.pem"), certificate.public_bytes(Encoding.PEM), _PUBLIC_MODE)
    except Exception:
        (path / "ca.key").unlink()  # half a CA would be in the way of the next attempt
        raise
    return path / "ca.pem"


def _check_days(days: float) -> None:
    if not 0 < days <= _DAYS_MAX:  # also refuses nan
        raise config_error(f"{days:g} days are not usable: more than 0, at most {_DAYS_MAX}")


def issue(
    folder: str,
    *,
    job: str,
    ranks: range,
    out: str = "",
    days: float = LEAF_DAYS,
) -> Path:
    """Issue a certificate and a fresh key for each of the ranks; returns the folder they are in.

    ``out`` defaults to DIR/JOB. Certificates of an earlier call are replaced. Raises ConfigError.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", job, re.ASCII):
        raise config_error(f"job {job!r} is not usable: up to 64 letters, digits, '.', '-', '_'")
    if not ranks or ranks[0] < 0 or ranks[-1] >= RANKS_MAX:
        raise config_error(f"ranks are not usable: at least one, below {RANKS_MAX}")
    _check_days(days)
    authority, key, trust_domain = _load(folder)
    if authority.not_valid_after_utc < datetime.now(UTC) + timedelta(days=days):
        raise config_error(
            f"the CA in {folder} expires at {authority.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, "
            "before the certificates would; make a new one with `securefabric ca init`"
        )
    target = Path(out) if out else Path(folder) / job
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise config_error(f"cannot make folder {target}: {error.strerror}") from None
    for rank in ranks:
        name = f"spiffe://{trust_domain}/job/{job}/rank/{rank}"
        certificate, leaf_key = _issue_one(authority, key, name, days)
        _replace(target / f"rank-{rank}.key", _private_pem(leaf_key), 0o600)
        pem = certificate.public_bytes(Encoding.PEM)
        _replace(target / f"rank-{rank}.pem", pem, _PUBLIC_MODE)
    _replace(target / "ca.pem", authority.public_bytes(Encoding.PEM), _PUBLIC_MODE)
    return target


def _issue_one(
    authority: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, name: str, days: float
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(x509.Name([]), authority.subject, key.public_key(), days)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=True
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load(folder: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, str]:
    """Return certificate, key and trust domain of the CA in a folder."""
    fix = f"make a CA with `securefabric ca init {folder}`"
    pem = _read(folder, "ca.pem", "CA certificate", fix, is_secret=False)
    key_pem = _read(folder, "ca.key", "CA key", fix, is_secret=True)
    try:
        authority = x509.load_pem_x509_certificate(bytes(pem))
        key = load_pem_private_key(key_pem, password=None)
        names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        [uri] = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (TypeError, ValueError, x509.ExtensionNotFound):
        raise config_error(f"{folder} does not hold a CA of securefabric; {fix}") from None
    finally:
        key_pem[:] = bytes(len(key_pem))
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != authority.public_key()
    ):
        raise config_error(f"ca.key and ca.pem in {folder} do not belong together; {fix}")
    return authority, key, uri.removeprefix("spiffe://")


def _read(folder: str, name: str, what: str, fix: str, *, is_secret: bool) -> bytearray:
    return read_file(
        str(Path(folder) / name),
        what=what,
        bytes_max=1 << 16,
        is_secret=is_secret,
        absent=fix,
        useless=f"so it cannot be right; {fix}",
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place of an older one in one step."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_new_file(str(fresh), content, mode)
    fresh.replace(path)
