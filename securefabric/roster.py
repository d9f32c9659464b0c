"""Roster entries: what a rank tells the others about itself, and what they believe of it.

    own:   EntryBody -> encode_body -> evidence over it -> encode_entry -> the store
    peer:  the store -> split_entry -> evidence verified -> decode_body -> checks -> PeerEntry
    link:  where the job has a KEM: the store -> HybridKeys -> PeerEntry.kem_secret

The store is not trusted: it can deny service and nothing more. An entry is cut into its parts by a
strict decoder first; its body is decoded only after the evidence over it verified. All encoding is
canonical CBOR, and what does not encode to the same bytes again is refused, so that an entry has
one form. PROTOCOL.md §3.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from . import _cbor
from .errors import (
    BadRank,
    ConfigError,
    DuplicateRank,
    JobMismatch,
    MalformedEntry,
    PolicyMismatch,
)
from .hybrid import KEM, HybridKeys
from .hybrid import PUBLIC_KEY_BYTES as KEM_KEY_BYTES
from .identity import Identity

__all__ = ["EngineEntry", "EntryBody", "PeerEntry", "Roster", "policy_digest"]

PROTOCOL_VERSION: Final = 1
IDENTITY_MODES: Final = frozenset({"psk", "x509", "x509+psk"})
PADDING: Final = "none"

# A body has about 150 bytes, 80 per engine, 25 per address and 1.2 KB with a KEM; a certificate 0.5
# to 2 KB.
ENTRY_BYTES_MAX: Final = 16 * 1024
ENGINES_MAX: Final = 16
ADDRESSES_MAX: Final = 128  # of one engine
JOB_ID_BYTES_MAX: Final = 64
WORLD_SIZE_MAX: Final = 1 << 20
BOOT_ID_BYTES: Final = 16
PUBLIC_KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
DATAGRAM_BYTES_MIN: Final = 1200  # transport/limits.h
DATAGRAM_BYTES_MAX: Final = 65_507  # the largest UDP payload there is

# Evidence is over this and the body: it can never pass for evidence of anything else.
_EVIDENCE_CONTEXT: Final = b"sf1 roster entry\0"


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """What an entry says of one engine; the field names are the keys of a CBOR map."""

    public_key: bytes
    """X25519, 32 bytes, drawn for this engine and never for another."""
    spi_base: int
    """The receiver's first SPI; peers add their rank to it (32 bits)."""
    addresses: list[str]
    """One "ip:port" for each socket, in the order of the sockets' numbers in a path id."""


@dataclass(frozen=True, kw_only=True)
class EntryBody:
    """The signed part of an entry; the field names are the keys of the CBOR map."""

    version: int
    """Of the protocol."""
    job: str
    """The job's id, at most 64 bytes of UTF-8."""
    rank: int
    """The rank that the process claims."""
    world_size: int
    """Of the job."""
    boot_id: bytes
    """16 random bytes that name this incarnation of the process."""
    engines: list[EngineEntry]
    """As many as every other rank has; those of equal numbers talk to each other."""
    max_datagram: int
    """The largest UDP payload that the process takes, in bytes."""
    suite: str
    """The cipher suite."""
    kem_key: bytes
    """ML-KEM-768, 1184 bytes, drawn by this incarnation; empty where the job has no KEM."""
    policy: bytes
    """The digest of everything else that all ranks must have in common (policy_digest)."""

    @property
    def addresses(self) -> list[str]:
        """Those of all engines."""
        return [address for engine in self.engines for address in engine.addresses]


@dataclass(frozen=True, kw_only=True)
class PeerEntry:
    """A verified entry, as the native core takes it."""

    rank: int
    boot_id: bytes
    engines: list[EngineEntry]
    max_datagram: int
    entry_bytes: bytes
    """The whole entry as published: both ends hash it into the keys of their links."""
    kem_key: bytes = b""
    """ML-KEM-768; empty where the job has no KEM."""
    kem_secret: bytearray = dataclasses.field(default_factory=bytearray, repr=False)
    """What both ends share by ML-KEM; the core takes and wipes it. Empty where there is no KEM."""


@dataclass(frozen=True, kw_only=True)
class _SplitEntry:
    """An entry cut into its parts; nothing in it is verified."""

    identity: str
    key_id: str
    body: bytes
    evidence: bytes


def policy_digest(
    *, identity: str, suite: str, generation_bits: int, has_kem: bool, tuning: bytes = b""
) -> bytes:
    """Return the digest of what must be equal on all ranks, so that nothing is negotiated.

    tuning is the digest of the tuning rows, empty without any.
    """
    policy = {
        "identity": identity,
        "kem": KEM if has_kem else "none",
        "version": PROTOCOL_VERSION,
        "suite": suite,
        "padding": PADDING,
        "generation_bits": generation_bits,
        "tuning": tuning,
    }
    return hashlib.sha256(_cbor.encode(policy)).digest()


class Roster:
    """This process's view of its job: its own entry, and the peers it has accepted.

    Calls may come from several threads.
    """

    def __init__(
        self, identity: Identity, own: EntryBody, hybrid: HybridKeys | None = None
    ) -> None:
        self.own = own
        self.own_entry = encode_entry(identity, own)
        self.has_kem = hybrid is not None
        self._identity = identity
        self._hybrid = hybrid
        self._lock = threading.Lock()

    def verify(self, rank: int, entry: bytes) -> PeerEntry:
        """Return the peer of this rank after all checks; raises an IdentityError that names it.

        ``entry`` is what the store holds for the rank.
        """
        split = split_entry(rank, entry)
        self._check_evidence(rank, split)
        body = decode_body(rank, split.body)
        self._check_membership(rank, body)
        self._check_no_mirror(body)
        return PeerEntry(
            rank=body.rank,
            boot_id=body.boot_id,
            engines=body.engines,
            max_datagram=body.max_datagram,
            entry_bytes=entry,
            kem_key=body.kem_key,
        )

    def encapsulate(self, peer: PeerEntry) -> tuple[bytes, bytearray]:
        """Return the record for a verified peer of higher rank, and the secret that it shares.

        The secret is empty when it has been given out before.
        """
        assert self._hybrid is not None
        with self._lock:
            return self._hybrid.encapsulate(self.own_entry, peer.entry_bytes, peer.kem_key)

    def decapsulate(self, peer: PeerEntry, record: bytes) -> bytearray | None:
        """Return the secret that a verified peer of lower rank shares by this record.

        None when the record is of another incarnation. Raises an IdentityError for a record that
        the peer did not write.
        """
        assert self._hybrid is not None
        with self._lock:
            return self._hybrid.decapsulate(peer.rank, self.own_entry, peer.entry_bytes, record)

    def kem_request(self, peer: PeerEntry) -> bytes:
        """Return what asks a verified peer of lower rank for a record."""
        assert self._hybrid is not None
        with self._lock:
            return self._hybrid.request(self.own_entry, peer.entry_bytes)

    def is_kem_request(self, peer: PeerEntry, request: bytes) -> bool:
        """Whether a verified peer of higher rank asks this incarnation for a record.

        Raises an IdentityError for a request that the peer did not write.
        """
        assert self._hybrid is not None
        return self._hybrid.is_request(peer.rank, self.own_entry, peer.entry_bytes, request)

    def check_not_replaced(self, entry: bytes) -> None:
        """Raise DuplicateRank when ``entry``, stored for our own rank, is another process's.

        An entry that does not verify is no process of this job, and peers refuse it by themselves.
        """
        if entry == self.own_entry:
            return
        split = split_entry(self.own.rank, entry)
        self._check_evidence(self.own.rank, split)
        other = decode_body(self.own.rank, split.body)
        # Not the boot id, which that process may have copied.
        if other.rank == self.own.rank and other != self.own:
            raise DuplicateRank(
                f"two processes claim rank {self.own.rank}: this one at {_at(self.own)}, and one "
                f"at {_at(other)} that joined later; give every process its own RANK"
            )

    def _check_evidence(self, rank: int, split: _SplitEntry) -> None:
        if split.identity != self._identity.mode:
            raise PolicyMismatch(
                f"rank {rank} proves its identity by {split.identity!r}, this rank (rank "
                f"{self.own.rank}) by {self._identity.mode!r}; set SECUREFABRIC_KEY_FILE and "
                "SECUREFABRIC_CERT_FILE on all ranks or on none"
            )
        self._identity.check_evidence(
            rank, split.key_id, _EVIDENCE_CONTEXT + split.body, split.evidence
        )

    def _check_membership(self, rank: int, body: EntryBody) -> None:
        own = self.own
        if body.job != own.job:
            raise JobMismatch(
                f"rank {rank} at {_at(body)} belongs to job {body.job!r}, this rank to "
                f"{own.job!r}: two jobs share one store address, or SECUREFABRIC_JOB_ID differs"
            )
        if body.suite != own.suite:
            raise PolicyMismatch(
                f"rank {rank} at {_at(body)} uses suite {body.suite!r}, this rank {own.suite!r}; "
                "give both the same key file"
            )
        if len(body.engines) != len(own.engines):
            raise PolicyMismatch(
                f"rank {rank} at {_at(body)} runs {len(body.engines)} engines, this rank (rank "
                f"{own.rank}) {len(own.engines)}; set SECUREFABRIC_ENGINES to one number on all "
                "ranks"
            )
        if body.policy != own.policy:
            raise PolicyMismatch(
                f"rank {rank} at {_at(body)} has another packet policy (padding {PADDING!r} and "
                f"the packets per key are ours): start all ranks with the same version and the "
                "same SECUREFABRIC_POST_QUANTUM, SECUREFABRIC_TEST_GENERATION_BITS and rows in "
                "SECUREFABRIC_TUNING_FILE"
            )
        if bool(body.kem_key) != self.has_kem:
            raise _malformed(rank, "its kem_key is not what its policy says")
        if body.rank >= body.world_size or body.rank != rank:
            raise BadRank(
                f"the store's entry for rank {rank} claims rank {body.rank} of {body.world_size}, "
                f"from {_at(body)}"
            )
        if body.world_size != own.world_size:
            raise JobMismatch(
                f"rank {rank} at {_at(body)} is in a world of {body.world_size}, this rank in one "
                f"of {own.world_size}; start all ranks with the same WORLD_SIZE"
            )

    def _check_no_mirror(self, body: EntryBody) -> None:
        """Refuse an entry with what this rank alone can have drawn.

        What two others have in common is not looked at: who copied it cannot use it, and which of
        the two did is not to be seen here. It is the one that never confirms. PROTOCOL.md §3.2.
        """
        if not _drawn(self.own).isdisjoint(_drawn(body)):
            raise DuplicateRank(
                f"rank {body.rank} at {_at(body)} brings a boot id or key of rank {self.own.rank}, "
                f"which is this rank and drew it: the process of rank {body.rank} has copied it. "
                "Find out who runs that process"
            )


def encode_entry(identity: Identity, body: EntryBody) -> bytes:
    """Return the entry to publish: identity mode, key id, body and evidence over the body."""
    encoded = encode_body(body)
    evidence = identity.evidence(_EVIDENCE_CONTEXT + encoded)
    entry = _cbor.encode([identity.mode, identity.key_id, encoded, evidence])
    if len(entry) > ENTRY_BYTES_MAX:
        raise ConfigError(
            f"this rank's entry has {len(entry)} bytes, more than {ENTRY_BYTES_MAX}: it has "
            f"{len(body.addresses)} sockets; choose fewer interfaces (SECUREFABRIC_SOCKET_IFNAME) "
            "or engines (SECUREFABRIC_ENGINES), or a shorter chain of certificates "
            "(SECUREFABRIC_CERT_FILE)"
        )
    return entry


def encode_body(body: EntryBody) -> bytes:
    """Return the canonical CBOR map of the fields."""
    return _cbor.encode(dataclasses.asdict(body))


def split_entry(rank: int, entry: bytes) -> _SplitEntry:
    """Cut an entry into its parts, whoever wrote it. Raises MalformedEntry."""
    if len(entry) > ENTRY_BYTES_MAX:
        raise _malformed(rank, f"{len(entry)} bytes, at most {ENTRY_BYTES_MAX} are allowed")
    parts = _decode(rank, entry)
    if type(parts) is not list or [type(part) for part in parts] != [str, str, bytes, bytes]:
        raise _malformed(rank, "not the four parts of an entry")
    split = _SplitEntry(identity=parts[0], key_id=parts[1], body=parts[2], evidence=parts[3])
    # Both texts end up in messages; neither is verified.
    if split.identity not in IDENTITY_MODES:
        raise _malformed(rank, "no name of an identity mode")
    if len(split.key_id) not in (0, 16) or not set(split.key_id) <= set("0123456789abcdef"):
        raise _malformed(rank, "no key id")
    return split


def decode_body(rank: int, encoded: bytes) -> EntryBody:
    """Decode a body whose evidence verified. Raises PolicyMismatch or MalformedEntry."""
    fields = _decode(rank, encoded)
    if type(fields) is not dict:
        raise _malformed(rank, "its body is not a map")
    version = fields.get("version")
    if type(version) is int and version != PROTOCOL_VERSION:  # whose fields may differ, too
        raise PolicyMismatch(
            f"rank {rank} speaks protocol version {version}, this rank {PROTOCOL_VERSION}; "
            "install the same securefabric on all hosts"
        )
    _check_fields(rank, "its body", fields, _RULES)
    for engine in fields["engines"]:
        if type(engine) is not dict:
            raise _malformed(rank, "one of its engines is not a map")
        _check_fields(rank, "one of its engines", engine, _ENGINE_RULES)
    body = EntryBody(**{**fields, "engines": [EngineEntry(**one) for one in fields["engines"]]})
    for name, values in (
        ("public keys", [engine.public_key for engine in body.engines]),
        ("addresses", body.addresses),
    ):
        if len(set(values)) != len(values):
            raise _malformed(rank, f"its {name} are not all different")
    return body


_Rules = Mapping[str, tuple[type, Callable[..., bool]]]


def _check_fields(rank: int, what: str, fields: dict[str, object], rules: _Rules) -> None:
    """Raise MalformedEntry unless a map has exactly the fields of its rules, and in range."""
    if set(fields) != set(rules):
        raise _malformed(rank, f"{what} has other fields than it must")
    for name, (kind, is_valid) in rules.items():
        if type(fields[name]) is not kind or not is_valid(fields[name]):
            raise _malformed(rank, f"its {name} is out of range")


def _is_between(least: int, most: int) -> Callable[[int], bool]:
    return lambda value: least <= value <= most


def _has_bytes(size: int) -> Callable[[bytes], bool]:
    return lambda value: len(value) == size and any(value)


def _is_label(size_max: int) -> Callable[[str], bool]:
    return lambda value: 0 < len(value.encode()) <= size_max and value.isprintable()


def _are_addresses(values: list[object]) -> bool:
    return 0 < len(values) <= ADDRESSES_MAX and all(
        type(value) is str and _is_address(value) for value in values
    )


def _is_address(text: str) -> bool:
    """Whether this is "ip:port" or "[ipv6]:port", in the one form that the core writes."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        return False
    is_usable = not (address.is_unspecified or address.is_multicast) and 0 < number < 1 << 16
    only_form = f"{address}:{number}" if address.version == 4 else f"[{address}]:{number}"
    return is_usable and text == only_form


# What each field must be: its type, and a test of its value.
_ENGINE_RULES: Final[_Rules] = {
    "public_key": (bytes, _has_bytes(PUBLIC_KEY_BYTES)),
    "spi_base": (int, _is_between(0, (1 << 32) - 1)),
    "addresses": (list, _are_addresses),
}
_RULES: Final[_Rules] = {
    "version": (int, _is_between(PROTOCOL_VERSION, PROTOCOL_VERSION)),
    "job": (str, _is_label(JOB_ID_BYTES_MAX)),
    "rank": (int, _is_between(0, WORLD_SIZE_MAX - 1)),
    "world_size": (int, _is_between(1, WORLD_SIZE_MAX)),
    "boot_id": (bytes, _has_bytes(BOOT_ID_BYTES)),
    "engines": (list, lambda values: 0 < len(values) <= ENGINES_MAX),
    "max_datagram": (int, _is_between(DATAGRAM_BYTES_MIN, DATAGRAM_BYTES_MAX)),
    "suite": (str, _is_label(32)),
    "kem_key": (bytes, lambda value: len(value) in (0, KEM_KEY_BYTES)),
    "policy": (bytes, _has_bytes(DIGEST_BYTES)),
}


def _decode(rank: int, encoded: bytes) -> object:
    try:
        return _cbor.decode(encoded)
    except ValueError as error:
        raise _malformed(rank, str(error)) from None


def _malformed(rank: int, what: str) -> MalformedEntry:
    return MalformedEntry(
        f"the store's entry for rank {rank} is unusable: {what}; "
        "something that is not securefabric writes to this store, or it was altered"
    )


def _drawn(body: EntryBody) -> set[bytes]:
    """Return what an honest process draws for itself, and no other will ever draw."""
    keys = {engine.public_key for engine in body.engines}
    return keys | {body.boot_id} | ({body.kem_key} if body.kem_key else set())


def _at(body: EntryBody) -> str:
    return f"{body.addresses[0]} (boot {body.boot_id.hex()[:8]})"
