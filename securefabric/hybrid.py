"""ML-KEM-768 beside X25519: what one end of a link encapsulates to the other, through the store.

The lower rank of a link encapsulates to the key in the higher rank's entry and leaves a *record* on
the board; the higher rank takes it from there. The shared secret goes into the keys of the link, so
that whoever records the traffic must break X25519 and ML-KEM-768 to read it. PROTOCOL.md §3.5.

`cryptography` gives the shared secret as ``bytes``, which Python cannot wipe; what is passed on is
a ``bytearray``, which the core wipes.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from . import _cbor
from .errors import MalformedEntry

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["KEM", "PUBLIC_KEY_BYTES", "RECORD_BYTES_MAX", "HybridKeys", "knock"]

KEM: Final = "ml-kem-768"
PUBLIC_KEY_BYTES: Final = 1184
CIPHERTEXT_BYTES: Final = 1088
RECORD_BYTES_MAX: Final = 16 * 1024  # a ciphertext, and evidence with a chain of certificates
_CONTEXT: Final = b"sf1 kem record\0"
_REQUEST_CONTEXT: Final = b"sf1 kem request\0"
_LINK_BYTES: Final = 64
_NO_PACKET_NUMBER: Final = (1 << 64) - 1


class HybridKeys:
    """The ML-KEM key pair of this incarnation, and what was encapsulated to peers with it.

    Only while its owner, a roster, holds its lock.
    """

    def __init__(self, identity: Identity) -> None:
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

        self._identity = identity
        self._private = MLKEM768PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw()
        # By the two entries: encapsulating again would give the two ends two secrets.
        self._records: dict[bytes, bytes] = {}
        self._requests: dict[bytes, bytes] = {}  # likewise; each is proved once

    def encapsulate(
        self, own_entry: bytes, peer_entry: bytes, peer_public: bytes
    ) -> tuple[bytes, bytearray]:
        """Return the record for a peer of higher rank, and the secret.

        The secret is given once; for the same entries the record is the same again, and there is
        no secret with it.
        """
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

        link = _digests(own_entry, peer_entry)
        if link in self._records:
            return self._records[link], bytearray()
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(peer_public).encapsulate()
        evidence = self._identity.evidence(_CONTEXT + link + ciphertext)
        record = _cbor.encode([link, ciphertext, self._identity.key_id, evidence])
        self._records[link] = record
        return record, bytearray(secret)

    def decapsulate(
        self, rank: int, own_entry: bytes, peer_entry: bytes, record: bytes
    ) -> bytearray | None:
        """Return the secret in the record of a lower rank; None for one of other incarnations.

        Raises an IdentityError for a record that ``rank`` did not write.
        """
        kinds = (bytes, bytes, str, bytes)
        link, ciphertext, key_id, evidence = _split(rank, "record", record, kinds)
        if len(ciphertext) != CIPHERTEXT_BYTES:
            raise MalformedEntry(
                f"the store's ML-KEM record of rank {rank} is unusable: parts of a wrong size"
            )
        if link != _digests(peer_entry, own_entry):
            return None
        self._identity.check_evidence(rank, key_id, _CONTEXT + link + ciphertext, evidence)
        return bytearray(self._private.decapsulate(ciphertext))

    def request(self, own_entry: bytes, peer_entry: bytes) -> bytes:
        """Return what asks a peer of lower rank for a record."""
        link = _digests(peer_entry, own_entry)
        if link not in self._requests:
            evidence = self._identity.evidence(_REQUEST_CONTEXT + link)
            self._requests[link] = _cbor.encode([link, self._identity.key_id, evidence])
        return self._requests[link]

    def is_request(self, rank: int, own_entry: bytes, peer_entry: bytes, request: bytes) -> bool:
        """Whether the higher ``rank`` asks for a record of these two entries.

        Raises an IdentityError for a request that ``rank`` did not write.
        """
        link, key_id, evidence = _split(rank, "request", request, (bytes, str, bytes))
        if link != _digests(own_entry, peer_entry):
            return False
        self._identity.check_evidence(rank, key_id, _REQUEST_CONTEXT + link, evidence)
        return True


def knock(*, own_rank: int, spi_base: int, addresses: list[str]) -> None:
    """Make a peer look this rank up: one datagram to each address, which it drops as it must.

    A higher rank has no keys before the lower one knows of it, so nothing that it sends could be
    opened. An SPI that the peer keeps for this rank is hint enough (PROTOCOL.md §3.4), and a packet
    number that no packet may have keeps the datagram from ever being taken for one.
    """
    spi = (spi_base + own_rank) % (1 << 32)
    for index, text in enumerate(addresses):
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        header = struct.pack("!BBHIQ", 0x11, 0, index, spi, _NO_PACKET_NUMBER)
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(header + os.urandom(16), (host, int(port)))
        except OSError:
            continue  # as if it were lost: the next look-up knocks again


def _digests(low_entry: bytes, high_entry: bytes) -> bytes:
    return hashlib.sha256(low_entry).digest() + hashlib.sha256(high_entry).digest()


def _split(rank: int, name: str, encoded: bytes, kinds: tuple[type, ...]) -> list[Any]:
    """Decode a record or a request: the link first, key id and evidence last."""
    what = f"the store's ML-KEM {name} of rank {rank} is unusable: "
    if len(encoded) > RECORD_BYTES_MAX:
        raise MalformedEntry(f"{what}{len(encoded)} bytes, at most {RECORD_BYTES_MAX} are allowed")
    try:
        parts = _cbor.decode(encoded)
    except ValueError as error:
        raise MalformedEntry(f"{what}{error}") from None
    if type(parts) is not list or tuple(type(part) for part in parts) != kinds:
        raise MalformedEntry(f"{what}not the {len(kinds)} parts of a {name}")
    if len(parts[0]) != _LINK_BYTES:
        raise MalformedEntry(f"{what}parts of a wrong size")
    if len(parts[-2]) > 16 or not set(parts[-2]) <= set("0123456789abcdef"):
        raise MalformedEntry(f"{what}no key id")
    return parts
