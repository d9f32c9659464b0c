"""Identity ``x509``: certificates that bind a rank, and what is believed of those of others.

    evidence = canonical CBOR [ [leaf, intermediate, ...], signature, mac ]

The leaf names its rank by one URI, ``spiffe://<trust domain>/job/<job>/rank/<rank>``; a SPIFFE
agent issues such documents, and so does ``securefabric ca``. This process's own certificate says
which trust domain and job are meant, so that the peer of rank r is believed under exactly one name.
With a job key besides, ``mac`` proves that it is held, too. PROTOCOL.md §3.2.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from . import _cbor
from .errors import (
    AuthError,
    CertificateError,
    CertificateExpired,
    CertificateMismatch,
    CertificateUntrusted,
    ConfigError,
    MalformedEntry,
)
from .identity import PskIdentity, read_file

if TYPE_CHECKING:
    from ._core import JobKey
    from .options import Options

__all__ = ["CertificateIdentity", "TrustBundle", "name_of_rank", "own_certificate_paths"]

E = TypeVar("E", bound=x509.ExtensionType)
X = TypeVar("X")

CHAIN_LENGTH_MAX: Final = 4  # a leaf and three intermediates
CERTIFICATE_BYTES_MAX: Final = 3072
FILE_BYTES_MAX: Final = 1 << 20  # bundles of a large organization included
_CONTEXT: Final = b"sf1 x509 evidence\0"
_NAME: Final = re.compile(
    r"spiffe://([a-z0-9._-]{1,255})/job/([A-Za-z0-9._-]{1,64})/rank/(0|[1-9][0-9]{0,6})", re.ASCII
)
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_FIX_FILES: Final = (
    "name the files with SECUREFABRIC_CERT_FILE, SECUREFABRIC_CERT_KEY_FILE and "
    "SECUREFABRIC_CA_FILE, or make them with `securefabric ca init` and `securefabric ca issue`"
)


def name_of_rank(trust_domain: str, job: str, rank: int) -> str:
    """Return the one name under which a rank of a job is believed."""
    return f"spiffe://{trust_domain}/job/{job}/rank/{rank}"


class TrustBundle:
    """The CAs of a job, and the rules for certificates under them."""

    def __init__(self, path: str) -> None:
        self.path = path
        pem = _read(path, "CA file", is_secret=False)
        try:
            self._store = verification.Store(x509.load_pem_x509_certificates(bytes(pem)))
        except ValueError:
            raise ConfigError(f"CA file {path} holds no certificate in PEM; {_FIX_FILES}") from None

    def verify(self, whose: str, chain: Sequence[x509.Certificate], name: str) -> None:
        """Raise a CertificateError unless the first of the chain is good for ``name`` now.

        ``whose`` begins messages: "rank 3".
        """
        try:
            self._judge(whose, chain, name)
        except CertificateError:
            raise
        except Exception as error:  # of a parser that hostile bytes have reached
            raise CertificateError(
                f"{whose} brought a certificate that cannot be read ({type(error).__name__}); "
                "issue another one"
            ) from None

    def _judge(self, whose: str, chain: Sequence[x509.Certificate], name: str) -> None:
        # What can be said of a certificate alone comes first: a chain that fails says less.
        leaf = chain[0]
        now = datetime.now(UTC)
        for certificate in chain:
            _check_dates(whose, certificate, now)
        _check_use(whose, leaf)
        _check_name(whose, leaf, name)
        verifier = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(now)
            .max_chain_depth(CHAIN_LENGTH_MAX - 1)
            .extension_policies(ca_policy=_CA_RULES, ee_policy=_LEAF_RULES)
            .build_client_verifier()
        )
        try:
            verifier.verify(leaf, list(chain[1:]))
        except verification.VerificationError as error:
            if "unsupported name constraint" in str(error):
                raise CertificateUntrusted(
                    f"{whose} brought a certificate under a CA that limits URIs by name "
                    "constraints, which the X.509 verifier in use cannot check, so nobody may "
                    "believe it; issue certificates of ranks from a CA whose chain has no name "
                    "constraints on URIs"
                ) from None
            raise CertificateUntrusted(
                f"{whose} brought a certificate that no CA of {self.path} vouches for "
                f"({_reason(error)}); give all ranks certificates of one CA, and the same "
                "SECUREFABRIC_CA_FILE"
            ) from None


class CertificateIdentity:
    """Proves a rank by a certificate and, where the job has a key, membership by that as well."""

    def __init__(
        self,
        *,
        rank: int,
        chain: Sequence[x509.Certificate],
        private_key: ec.EllipticCurvePrivateKey,
        trust: TrustBundle,
        job_key: JobKey | None = None,
    ) -> None:
        match = _NAME.fullmatch(_uri_of(f"rank {rank} (this rank)", chain[0]))
        if match is None:
            raise CertificateMismatch(
                f"the certificate of rank {rank} (this rank) has the name {_uri_of('', chain[0])!r}"
                ", not spiffe://<trust domain>/job/<job>/rank/<rank>; issue one with that name"
            )
        self.job = match[2]
        """The job's id: what the certificate says it is."""
        self.expires = chain[0].not_valid_after_utc
        self._trust_domain = match[1]
        self._trust = trust
        self._chain = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        self._private_key = private_key
        self._psk = None if job_key is None else PskIdentity(job_key, rank)
        self.mode = "x509" if job_key is None else "x509+psk"
        if private_key.public_key() != chain[0].public_key():
            raise ConfigError(
                f"the private key of rank {rank} (this rank) is not that of its certificate; "
                f"{_FIX_FILES}"
            )
        trust.verify(f"rank {rank} (this rank)", chain, self._name_of(rank))
        _warn_of_expiry(chain[0])

    @classmethod
    def load(cls, options: Options, rank: int, job_key: JobKey | None) -> CertificateIdentity:
        """Read the files that the options name.

        Raises ConfigError for files that cannot be used, and a CertificateError for a certificate
        that peers would refuse.
        """
        cert_path, key_path = own_certificate_paths(options, rank)
        pem = _read(cert_path, "certificate file", is_secret=False)
        key_pem = _read(key_path, "certificate key file", is_secret=True)
        try:
            chain = x509.load_pem_x509_certificates(bytes(pem))
        except ValueError:
            raise ConfigError(
                f"certificate file {cert_path} holds no certificate in PEM; {_FIX_FILES}"
            ) from None
        if len(chain) > CHAIN_LENGTH_MAX or any(
            len(one.public_bytes(Encoding.DER)) > CERTIFICATE_BYTES_MAX for one in chain
        ):
            raise ConfigError(
                f"certificate file {cert_path} holds more than {CHAIN_LENGTH_MAX} certificates, or "
                f"one of more than {CERTIFICATE_BYTES_MAX} bytes, which peers would refuse; leave "
                "the rank's own in it, and the intermediates that lead to the CA"
            )
        try:
            private_key = load_pem_private_key(key_pem, password=None)
        except (TypeError, ValueError):  # TypeError: it is encrypted
            raise ConfigError(
                f"certificate key file {key_path} holds no unencrypted private key in PEM; "
                f"{_FIX_FILES}"
            ) from None
        finally:
            key_pem[:] = bytes(len(key_pem))
        if not isinstance(private_key, ec.EllipticCurvePrivateKey):
            raise ConfigError(
                f"certificate key file {key_path} holds a key that is not ECDSA (P-256, P-384 or "
                "P-521), which is what ranks sign with; issue another certificate"
            )
        identity = cls(
            rank=rank,
            chain=chain,
            private_key=private_key,
            trust=TrustBundle(options.ca_file),
            job_key=job_key,
        )
        if options.job_id and options.job_id != identity.job:
            raise CertificateMismatch(
                f"the certificate {cert_path} is for job {identity.job!r}, but this rank was told "
                f"job {options.job_id!r} (SECUREFABRIC_JOB_ID); issue one for that job"
            )
        return identity

    @property
    def key_id(self) -> str:
        """Name of the job key; empty where there is none."""
        return "" if self._psk is None else self._psk.key_id

    def evidence(self, message: bytes) -> bytes:
        """Return chain, signature and, with a job key, its HMAC over the message."""
        whole = _bound(self._chain[0], message)
        algorithm = _HASHES[self._private_key.curve.name]
        signature = self._private_key.sign(whole, ec.ECDSA(algorithm))
        mac = b"" if self._psk is None else self._psk.evidence(whole)
        return _cbor.encode([self._chain, signature, mac])

    def check_evidence(self, rank: int, key_id: str, message: bytes, evidence: bytes) -> None:
        """Raise an IdentityError unless the holder of rank's certificate wrote the message."""
        chain, signature, mac = _split(rank, evidence)
        whole = _bound(chain[0], message)
        if self._psk is not None:
            self._psk.check_evidence(rank, key_id, whole, mac)
        elif mac:
            raise _malformed(rank, "proves possession of a job key that nobody asked for")
        try:
            certificates = [x509.load_der_x509_certificate(der) for der in chain]
            public_key = certificates[0].public_key()
        except Exception as error:  # of a parser that hostile bytes have reached
            raise _malformed(rank, f"holds no certificate ({type(error).__name__})") from None
        self._trust.verify(f"rank {rank}", certificates, self._name_of(rank))
        assert isinstance(public_key, ec.EllipticCurvePublicKey)  # or verify() had refused it
        try:
            public_key.verify(signature, whole, ec.ECDSA(_HASHES[public_key.curve.name]))
        except InvalidSignature:
            raise AuthError(
                f"the entry of rank {rank} in the store is not signed by the holder of rank "
                f"{rank}'s certificate: it was altered on its way, or the certificate was stolen "
                "without its key; restart that rank on a store that nobody else writes to"
            ) from None

    def _name_of(self, rank: int) -> str:
        return name_of_rank(self._trust_domain, self.job, rank)


def own_certificate_paths(options: Options, rank: int) -> tuple[str, str]:
    """Return the files of this rank's certificate and private key.

    "{rank}" in a setting stands for the rank; the key's file defaults to the certificate's with the
    suffix ".key". Raises ConfigError when a setting is missing.
    """
    for setting in ("cert_file", "ca_file"):
        if not getattr(options, setting):
            raise ConfigError(
                f"identity by certificate needs {setting} (SECUREFABRIC_{setting.upper()}) as "
                f"well; {_FIX_FILES}"
            )
    cert = options.cert_file.replace("{rank}", str(rank))
    key = options.cert_key_file.replace("{rank}", str(rank))
    return cert, key or f"{cert.removesuffix('.pem')}.key"


def _read(path: str, what: str, *, is_secret: bool) -> bytearray:
    return read_file(
        path,
        what=what,
        bytes_max=FILE_BYTES_MAX,
        is_secret=is_secret,
        absent=_FIX_FILES,
        useless=f"so it cannot be right; {_FIX_FILES}",
    )


def _bound(leaf: bytes, message: bytes) -> bytes:
    """Return what is signed: the message, and under which certificate."""
    return _CONTEXT + hashlib.sha256(leaf).digest() + message


def _split(rank: int, evidence: bytes) -> tuple[list[bytes], bytes, bytes]:
    try:
        parts = _cbor.decode(evidence)
    except ValueError as error:
        raise _malformed(rank, f"is {error}") from None
    if type(parts) is not list or [type(part) for part in parts] != [list, bytes, bytes]:
        raise _malformed(rank, "has not the three parts of x509")
    chain = parts[0]
    if not 0 < len(chain) <= CHAIN_LENGTH_MAX or any(
        type(der) is not bytes or len(der) > CERTIFICATE_BYTES_MAX for der in chain
    ):
        raise _malformed(rank, "has no chain of certificates")
    return chain, parts[1], parts[2]


def _malformed(rank: int, what: str) -> MalformedEntry:
    return MalformedEntry(f"the evidence in the store's entry for rank {rank} {what}")


def _check_dates(whose: str, certificate: x509.Certificate, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        what = f"expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; renew it"
    elif now < certificate.not_valid_before_utc:
        what = (
            f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC; "
            "compare the hosts' clocks"
        )
    else:
        return
    raise CertificateExpired(
        f"{whose} brought a certificate that {what} (it is {now:%Y-%m-%d %H:%M:%S} UTC here)"
    )


def _check_use(whose: str, leaf: x509.Certificate) -> None:
    """Whether a leaf may sign for a rank: not a CA, allowed to sign, with ECDSA."""
    what = None
    constraints = _extension(leaf, x509.BasicConstraints)
    usage = _extension(leaf, x509.KeyUsage)
    if constraints is not None and constraints.ca:
        what = "is a CA's own, which must never leave the CA"
    elif usage is None or not usage.digital_signature:
        what = "may not sign (key usage lacks digitalSignature)"
    elif usage.key_cert_sign or usage.crl_sign:
        what = "may issue certificates (key usage has keyCertSign or cRLSign)"
    elif not _may_authenticate(_extension(leaf, x509.ExtendedKeyUsage)):
        what = "is for other purposes (extended key usage lacks clientAuth)"
    else:
        public_key = leaf.public_key()
        curve = public_key.curve.name if isinstance(public_key, ec.EllipticCurvePublicKey) else ""
        if curve not in _HASHES:
            what = "has a key that is not ECDSA on P-256, P-384 or P-521"
    if what is not None:
        raise CertificateError(f"{whose} brought a certificate that {what}; issue another one")


def _check_name(whose: str, leaf: x509.Certificate, name: str) -> None:
    found = _uri_of(whose, leaf)
    if found != name:
        raise CertificateMismatch(
            f"{whose} brought the certificate of {found[:300]!r}, but has to be {name!r}; give "
            "every rank its own (SECUREFABRIC_CERT_FILE may contain {rank})"
        )


def _uri_of(whose: str, leaf: x509.Certificate) -> str:
    """Return the only URI among the names of a certificate."""
    names = _extension(leaf, x509.SubjectAlternativeName)
    uris = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise CertificateMismatch(
            f"{whose} brought a certificate with {len(uris)} URIs among its names, where exactly "
            "one has to name its rank; issue another one"
        )
    return str(uris[0])


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _reason(error: Exception) -> str:
    """What a verifier says, without what it quotes from the certificate."""
    text = re.sub(r"\(encountered processing.*", "", str(error), flags=re.DOTALL)
    return re.sub(r"[^ -~]", "?", text).strip()[:200]


def _warn_of_expiry(leaf: x509.Certificate) -> None:
    """Warn when less than a tenth of a certificate's life is left."""
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    if left < life / 10:
        rounded = timedelta(seconds=int(left.total_seconds()))
        warnings.warn(
            f"the certificate of this rank expires in {rounded}: links that exist go on, but ranks "
            "that start later are refused; renew it",
            stacklevel=3,
        )


def _may_authenticate(usage: x509.ExtendedKeyUsage | None) -> bool:
    """Whether a certificate, or what a CA issues, may prove who somebody is: by default it may."""
    return (
        usage is None
        or ExtendedKeyUsageOID.CLIENT_AUTH in usage
        or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage
    )


def _must(
    rule: Callable[[X], bool], why: str
) -> Callable[[verification.Policy, x509.Certificate, X], None]:
    def check(_policy: verification.Policy, _certificate: x509.Certificate, extension: X) -> None:
        if not rule(extension):
            raise ValueError(why)

    return check


_AGNOSTIC: Final = verification.Criticality.AGNOSTIC
# permit_all() alone is refused for CAs: the constraint that makes one has to be required.
_CA_RULES: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)
    .require_present(
        x509.KeyUsage,
        _AGNOSTIC,
        _must(lambda usage: usage.key_cert_sign, "a CA whose key usage lacks keyCertSign"),
    )
    .may_be_present(
        x509.ExtendedKeyUsage,
        _AGNOSTIC,
        _must(
            _may_authenticate,
            "a CA for other purposes: its extended key usage lacks clientAuth",
        ),
    )
)
_LEAF_RULES: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, _AGNOSTIC, None)
    .require_present(
        x509.KeyUsage,
        _AGNOSTIC,
        _must(lambda usage: usage.digital_signature, "key usage lacks digitalSignature"),
    )
)
