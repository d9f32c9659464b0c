"""What Python decodes of a hostile store: entries, bodies, evidence, certificates, KEM records.

    check(data)                            one input, as the tests do
    python tests/fuzz/run_entries_fuzz.py  guided by coverage, as `make fuzz` does
    python tests/fuzz/entries_fuzz.py      writes the corpus anew

The first byte of an input picks the decoder. Whatever comes, the outcome is acceptance or an
IdentityError whose message is short and printable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from securefabric import _cbor
from securefabric.certificates import CertificateIdentity, TrustBundle, name_of_rank
from securefabric.errors import AuthError, IdentityError
from securefabric.hybrid import CIPHERTEXT_BYTES, HybridKeys
from securefabric.roster import (
    EngineEntry,
    EntryBody,
    Roster,
    decode_body,
    encode_body,
    policy_digest,
    split_entry,
)

CORPUS = Path(__file__).parent / "corpus" / "entries_fuzz"
MESSAGE_CHARACTERS_MAX = 1000


class _Key:
    """A job key that everybody knows, so that inputs can be made whose evidence verifies."""

    mode = "psk"
    key_id = "00112233445566ff"

    def evidence(self, message: bytes) -> bytes:
        return hmac.digest(b"k" * 32, message, "sha256")

    def check_evidence(self, rank: int, key_id: str, message: bytes, evidence: bytes) -> None:
        if not hmac.compare_digest(self.evidence(message), evidence):
            raise AuthError(f"rank {rank} holds another key than {key_id}")


KEY = _Key()


def engine(rank: int, number: int) -> EngineEntry:
    return EngineEntry(
        public_key=hashlib.sha256(b"public %d %d" % (rank, number)).digest(),
        spi_base=1 << 20,
        addresses=[f"10.0.{number}.{rank + 1}:4000", f"[fd00::{number + 1}:{rank + 1}]:4001"],
    )


def body(rank: int, **changes: object) -> EntryBody:
    made = EntryBody(
        version=1,
        job="default",
        rank=rank,
        world_size=4,
        boot_id=hashlib.sha256(b"boot %d" % rank).digest()[:16],
        engines=[engine(rank, 0), engine(rank, 1)],
        max_datagram=8960,
        suite="aes-256-gcm",
        kem_key=b"",
        policy=policy_digest(
            identity="psk", suite="aes-256-gcm", generation_bits=22, has_kem=False
        ),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def entry_of(encoded: bytes) -> bytes:
    """An entry with this body, whose evidence verifies."""
    evidence = KEY.evidence(b"sf1 roster entry\0" + encoded)
    return _cbor.encode([KEY.mode, KEY.key_id, encoded, evidence])


@cache
def hybrid() -> HybridKeys:
    return HybridKeys(KEY)


@cache
def certified() -> CertificateIdentity:
    """Rank 0 of a job with certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fuzz CA")])
    now = datetime.now(UTC)

    def issue(subject: str, *, is_ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1 + is_ca)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(
                x509.KeyUsage(*(not is_ca, False, False, False, False, is_ca, False, False, False)),
                critical=True,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject)]),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
        )
        return builder.sign(key, hashes.SHA256())

    with TemporaryDirectory() as folder:
        path = Path(folder) / "ca.pem"
        path.write_bytes(issue("spiffe://fuzz", is_ca=True).public_bytes(Encoding.PEM))
        own = issue(name_of_rank("fuzz", "default", 0), is_ca=False)
        trust = TrustBundle(str(path))
    return CertificateIdentity(rank=0, chain=[own], private_key=key, trust=trust)


def _verify(data: bytes) -> None:
    Roster(KEY, body(0)).verify(1, data)


def _verify_body(data: bytes) -> None:
    Roster(KEY, body(0)).verify(1, entry_of(data))


def _decode_again(data: bytes) -> None:
    decoded = decode_body(1, data)
    assert encode_body(decoded) == data
    assert split_entry(1, entry_of(data)).body == data


def _check_evidence(data: bytes) -> None:
    certified().check_evidence(1, "", b"message", data)
    raise AssertionError("accepted without a key")


def _check_certificate(data: bytes) -> None:
    certified().check_evidence(1, "", b"message", _cbor.encode([[data[:3072]], b"", b""]))
    raise AssertionError("accepted without a key")


def _decapsulate(data: bytes) -> None:
    hybrid().decapsulate(0, b"own", b"peer", data)


def _decapsulate_authentic(data: bytes) -> None:
    """A record whose evidence verifies: the ciphertext is hostile."""
    link = hashlib.sha256(b"peer").digest() + hashlib.sha256(b"own").digest()
    ciphertext = (data + bytes(CIPHERTEXT_BYTES))[:CIPHERTEXT_BYTES]
    evidence = KEY.evidence(b"sf1 kem record\0" + link + ciphertext)
    record = _cbor.encode([link, ciphertext, KEY.key_id, evidence])
    secret = hybrid().decapsulate(0, b"own", b"peer", record)
    assert secret is not None
    assert len(secret) == 32


DECODERS: tuple[Callable[[bytes], None], ...] = (
    _verify,
    _verify_body,
    _decode_again,
    _check_evidence,
    _check_certificate,
    _decapsulate,
    _decapsulate_authentic,
)


def check(data: bytes) -> None:
    """Give one input to the decoder that it picks."""
    if not data:
        return
    message = ""
    try:
        DECODERS[data[0] % len(DECODERS)](data[1:])
    except IdentityError as error:
        message = str(error)
    assert message.isprintable(), message
    assert len(message) < MESSAGE_CHARACTERS_MAX, message


def seeds() -> dict[str, bytes]:
    """The corpus: an honest input for every decoder, and what has been hostile before."""
    honest = encode_body(body(1))
    leaf = certified()._chain[0]
    record, _ = HybridKeys(KEY).encapsulate(b"peer", b"own", hybrid().public_key)
    hostile = {
        "empty": b"",
        "array_of_2_62": b"\x9b\x40" + bytes(7),
        "map_of_2_32": b"\xbb\0\0\0\1\0\0\0\0",
        "deep": b"\x81" * 4000 + b"\0",
        "indefinite": b"\x9f" + entry_of(honest)[1:] + b"\xff",
        "duplicate_keys": b"\xa2\x61a\1\x61a\2",
        "shared_reference": b"\xd8\x1c\x84\xd8\x1d\0\x60\x40\x40",
        "regular_expression": b"\xd8\x23\x63a+a",
        "bignum": b"\xc2\x58\x20" + b"\xff" * 32,
        "bad_utf8": b"\x84\x61\xff\x60\x40\x40",
    }
    made = {
        "entry": b"\0" + entry_of(honest),
        "body": b"\1" + honest,
        "body_again": b"\2" + honest,
        "evidence": b"\3" + certified().evidence(b"message"),
        "certificate": b"\4" + leaf,
        "record": b"\5" + record,
        "ciphertext": b"\6" + record[70 : 70 + CIPHERTEXT_BYTES],
    }
    for number in range(len(DECODERS)):
        for name, data in hostile.items():
            made[f"{name}_{number}"] = bytes([number]) + data
    return made


if __name__ == "__main__":
    CORPUS.mkdir(parents=True, exist_ok=True)
    for seed_name, seed in seeds().items():
        (CORPUS / seed_name).write_bytes(seed)
