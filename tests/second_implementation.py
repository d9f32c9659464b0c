"""A second implementation of PROTOCOL.md, written from the page and from nothing else.

A job key, entries, link keys, packets and frames; a rank on one UDP socket; and a reader that opens
recorded packets, given the secrets of their links. Nothing here uses the package.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import cbor2
import slow_aegis
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

SECONDS_MAX = 20.0
GENERATION_BITS = 4  # keys change every 16 packets
# Number, AEAD, bytes of the nonce.
SUITES: dict[str, tuple[int, Any, int]] = {
    "aes-256-gcm": (1, AESGCM, 12),
    "aegis-256x2": (2, slow_aegis.Aegis256X2, 32),
    "chacha20-poly1305": (3, ChaCha20Poly1305, 12),
}
LIVE_SUITES = ["aes-256-gcm", "chacha20-poly1305"]  # the other takes milliseconds for a packet

# §3.1 and §3.3


def label(secret: bytes, name: str, context: bytes, length: int = 32) -> bytes:
    full = b"sf1 " + name.encode()
    info = struct.pack("!HB", length, len(full)) + full + bytes([len(context)]) + context
    output, block = b"", b""
    while len(output) < length:
        block = hmac.digest(secret, block + info + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return output[:length]


@dataclass
class Job:
    """The job key, from its file's text."""

    suite: str
    key_id: bytes
    key: bytes

    def secret(self, name: str) -> bytes:
        root = hmac.digest(b"securefabric job key v1", self.key, "sha256")
        return label(root, name, bytes([SUITES[self.suite][0]]) + self.key_id)

    def entry(self, body: dict[str, object]) -> bytes:
        encoded = cbor2.dumps(body, canonical=True)
        evidence = hmac.digest(self.secret("evidence"), b"sf1 roster entry\0" + encoded, "sha256")
        return cbor2.dumps(["psk", self.key_id.hex(), encoded, evidence], canonical=True)


class EngineOfPeer(Protocol):
    """What is needed of a peer's entry to link with one of its engines."""

    public_key: bytes
    spi_base: int
    addresses: list[str]


def link_secret(
    private: X25519PrivateKey,
    peer_public: bytes,
    low_entry: bytes,
    high_entry: bytes,
    job_secret: bytes,
    kem_secret: bytes = b"",
    engine: int = 0,
) -> bytes:
    salt = b"sf1 link"
    for entry in (low_entry, high_entry):
        salt += struct.pack("!Q", len(entry)) + entry
    salt += struct.pack("!I", engine)
    shared = private.exchange(X25519PublicKey.from_public_bytes(peer_public))
    return hmac.digest(hashlib.sha256(salt).digest(), shared + job_secret + kem_secret, "sha256")


def epoch_link_secret(
    previous: bytes, private: X25519PrivateKey, peer_public: bytes, *, is_low: bool, epoch: int
) -> bytes:
    """§4: the link's secret in this epoch, from that of the epoch before."""
    own_public = private.public_key().public_bytes_raw()
    low, high = (own_public, peer_public) if is_low else (peer_public, own_public)
    halves = hashlib.sha256(b"sf1 epoch" + low + high).digest()
    salt = label(previous, "epoch", halves + struct.pack("!I", epoch))
    shared = private.exchange(X25519PublicKey.from_public_bytes(peer_public))
    return hmac.digest(salt, shared, "sha256")


def path_secret(link: bytes, sender: int, receiver: int, path_id: int, epoch: int = 0) -> bytes:
    direction = label(link, "dir", struct.pack("!III", sender, receiver, epoch))
    return label(direction, "path", struct.pack("!H", path_id))


@dataclass
class Direction:
    """Keys of one path in one direction, and its numbers."""

    suite: str
    path_id: int
    secret: bytes
    """Of the newest epoch."""
    generation_bits: int
    epoch: int = 0
    older: bytes = b""
    """Of the epoch before."""
    next_number: int = 0
    arrived: set[int] = field(default_factory=set)

    def begin_epoch(self, secret: bytes) -> None:
        self.epoch, self.older, self.secret = self.epoch + 1, self.secret, secret

    def key_and_nonce(self, number: int, parity: int) -> tuple[bytes, bytes]:
        secret = self.secret if parity == self.epoch % 2 else self.older
        generation = struct.pack("!Q", number >> self.generation_bits)
        nonce_bytes = SUITES[self.suite][2]
        iv = label(secret, "iv", generation, nonce_bytes)
        counter = struct.pack("!IQ", self.path_id, number).rjust(nonce_bytes, b"\0")
        nonce = bytes(a ^ b for a, b in zip(iv, counter, strict=True))
        return label(secret, "key", generation), nonce

    def aead(self, number: int, parity: int) -> tuple[Any, bytes]:
        key, nonce = self.key_and_nonce(number, parity)
        return SUITES[self.suite][1](key), nonce

    def seal(
        self, spi: int, plaintext: bytes, start: int = 0x11, flags: int | None = None
    ) -> bytes:
        """In the newest epoch, unless flags are given, whose first bit is the epoch's parity."""
        number = self.next_number
        self.next_number += 1
        if flags is None:
            flags = self.epoch % 2
        header = struct.pack("!BBHIQ", start, flags, self.path_id, spi, number)
        aead, nonce = self.aead(number, flags & 1)
        return header + bytes(aead.encrypt(nonce, plaintext, header))

    def open(self, number: int, datagram: bytes) -> bytes:
        aead, nonce = self.aead(number, datagram[1])
        plaintext: bytes = aead.decrypt(nonce, datagram[16:], datagram[:16])
        self.arrived.add(number)
        return plaintext


# §5

SIGNATURE = struct.Struct("!BBBBIQ24s8x")
DATA = struct.Struct("!BBHIQQQQQ")
GRANT = struct.Struct("!BBIQQQQ")
ACK = struct.Struct("!BBHQII")
BITMAP_BYTES_MAX = 128
STATUS = struct.Struct("!BBQQBBBBIQ24s8x")
ABORT = struct.Struct("!BBHQ24s")
EPOCH = struct.Struct("!BI32s")


@dataclass(frozen=True)
class Group:
    """§7.1: what a group is called on the wire."""

    id: int
    tail: bytes

    @classmethod
    def of(cls, identity: str, number: int = 0) -> Group:
        numbered = struct.pack("!Q", number) + identity.encode()
        digest = hashlib.sha256(b"sf1 group\0" + numbered).digest()
        return cls(int.from_bytes(digest[:8], "big"), digest[8:])


@dataclass(frozen=True)
class Data:
    flags: int
    slot: int
    message_id: int
    group: int
    operation: int
    message_length: int
    offset: int
    signature: tuple[Any, ...]
    fragment: bytes


def decode(plaintext: bytes) -> Iterator[tuple[int, Any]]:
    """(type, content) of every frame."""
    at = 0
    while at < len(plaintext):
        kind = plaintext[at]
        if kind == 0:
            assert not any(plaintext[at:])
            return
        if kind == 1:
            _, flags, length, slot, *numbers = DATA.unpack_from(plaintext, at)
            at += DATA.size
            signature: tuple[Any, ...] = ()
            if flags & 1:
                signature = SIGNATURE.unpack_from(plaintext, at)
                at += SIGNATURE.size
            message_id, group, operation, message_length, offset = numbers
            assert bool(flags & 1) == (offset == 0)
            yield (
                kind,
                Data(
                    *(flags, slot, message_id, group, operation, message_length, offset, signature),
                    plaintext[at : at + length],
                ),
            )
            at += length
            continue
        size = {2: ACK.size, 3: 29, 4: GRANT.size, 5: 9, 6: 9, 7: 1, 8: STATUS.size, 9: ABORT.size}
        size |= {10: 1, 11: EPOCH.size}
        if kind == 2:
            fields = ACK.unpack_from(plaintext, at)
            bitmap = plaintext[at + ACK.size : at + ACK.size + fields[1]]
            yield kind, (fields, bitmap)
            at += fields[1]
        elif kind == 8:
            yield kind, STATUS.unpack_from(plaintext, at)
        elif kind == 9:
            yield kind, ABORT.unpack_from(plaintext, at)
            at += ABORT.unpack_from(plaintext, at)[2]
        elif kind == 4:
            yield kind, GRANT.unpack_from(plaintext, at)
        elif kind == 11:
            yield kind, EPOCH.unpack_from(plaintext, at)[1:]
        elif kind in {5, 6}:
            yield kind, plaintext[at + 1 : at + 9]
        else:
            yield kind, plaintext[at : at + size[kind]]
        at += size[kind]


class Peer:
    """Rank 1 of 2: one socket, two paths to the two sockets of rank 0."""

    rank = 1

    def __init__(self, job: Job) -> None:
        self.job = job
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.private = X25519PrivateKey.generate()
        self.spi_base = int.from_bytes(os.urandom(4), "big")
        policy = {
            "version": 1,
            "identity": "psk",
            "kem": "none",
            "suite": job.suite,
            "padding": "none",
            "generation_bits": GENERATION_BITS,
            "tuning": b"",
        }
        self.body: dict[str, object] = {
            "version": 1,
            "job": "second implementation",
            "rank": self.rank,
            "world_size": 2,
            "boot_id": os.urandom(16),
            "engines": [
                {
                    "public_key": self.private.public_key().public_bytes_raw(),
                    "spi_base": self.spi_base,
                    "addresses": [f"127.0.0.1:{self.socket.getsockname()[1]}"],
                }
            ],
            "max_datagram": 1472,
            "suite": job.suite,
            "kem_key": b"",
            "policy": hashlib.sha256(cbor2.dumps(policy, canonical=True)).digest(),
        }
        self.entry = job.entry(self.body)
        self.active: set[int] = set()
        self.acked: dict[int, set[int]] = {}
        self.messages: dict[int, bytearray] = {}
        self.missing: dict[int, set[int]] = {}
        """Of each message the bytes that have not come."""
        self.data: list[Data] = []
        self.grants: list[tuple[int, ...]] = []
        self.statuses: list[tuple[Any, ...]] = []
        self.aborts: list[tuple[Any, ...]] = []
        self.closed = False
        self.recording: list[tuple[int, int, bytes]] = []
        """Sender, receiver and bytes of all that was sealed for this link and came to us."""
        self.lose_next = 0
        """Sealed, numbered and never sent: that many of the next packets."""
        self.epoch = 0
        self.half: X25519PrivateKey | None = None
        """Our half of the next epoch, while the other has not come."""
        self.half_sent = (0, 0)
        """Path and number of the packet with our last half."""
        self.halves: dict[bytes, X25519PrivateKey] = {}
        """All of ours, by public key."""

    def meet(self, other: EngineOfPeer, other_entry: bytes) -> None:
        """§3.3 and §3.4; rank 0 is the low end."""
        self.link = link_secret(
            self.private, other.public_key, other_entry, self.entry, self.job.secret("job secret")
        )
        self.first_link = self.link
        self.spi = (other.spi_base + self.rank) % 2**32
        self.to = []
        for address in other.addresses:
            host, _, port = address.rpartition(":")
            self.to.append((host, int(port)))
        # Pairs (low i, high 0); path ids have the sender's socket first.
        self.sending = {i: self._direction(1, 0, i) for i in range(len(self.to))}
        self.receiving = {i << 8: self._direction(0, 1, i << 8) for i in range(len(self.to))}

    def _direction(self, sender: int, receiver: int, path_id: int) -> Direction:
        path = path_secret(self.link, sender, receiver, path_id)
        return Direction(self.job.suite, path_id, path, GENERATION_BITS)

    def send(self, path_id: int, *frames: bytes) -> int:
        direction = self.sending[path_id]
        datagram = direction.seal(self.spi, b"".join(frames))
        self.recording.append((1, 0, datagram))
        if self.lose_next > 0:
            self.lose_next -= 1
        else:
            self.socket.sendto(datagram, self.to[path_id & 0xFF])
        return direction.next_number - 1

    def offer_epoch(self) -> None:
        """§4: our half of the next epoch."""
        self.half = X25519PrivateKey.generate()
        public = self.half.public_key().public_bytes_raw()
        self.halves[public] = self.half
        self.half_sent = (0, self.send(0, EPOCH.pack(11, self.epoch + 1, public)))

    def take_half(self, epoch: int, public: bytes) -> None:
        if epoch <= self.epoch:
            return
        assert epoch == self.epoch + 1
        assert not self.is_moving()
        if self.half is None:
            self.offer_epoch()
        assert self.half is not None
        self.link = epoch_link_secret(self.link, self.half, public, is_low=False, epoch=epoch)
        self.epoch, self.half = epoch, None
        for path_id, direction in self.receiving.items():
            direction.begin_epoch(path_secret(self.link, 0, 1, path_id, epoch))

    def is_moving(self) -> bool:
        """Whether the other's half has come, and we still send in the epoch before."""
        return self.sending[0].epoch < self.epoch

    def move_if_ready(self, parity: int) -> None:
        """The other has our half: it says so, or seals with what it is good for."""
        path_id, number = self.half_sent
        is_ready = number in self.acked.get(path_id, ()) or parity == self.epoch % 2
        if self.is_moving() and is_ready:
            for path_id, direction in self.sending.items():
                direction.begin_epoch(path_secret(self.link, 1, 0, path_id, self.epoch))

    def confirm(self) -> None:
        self.challenges = {path_id: os.urandom(8) for path_id in self.sending}
        for path_id, challenge in self.challenges.items():
            self.send(path_id, b"\x05" + challenge)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Take and answer what comes, until something has happened."""
        until = time.monotonic() + SECONDS_MAX
        while not done():
            assert time.monotonic() < until, "rank 0 does not answer as the page says"
            if select.select([self.socket], [], [], 0.01)[0]:
                self.take(self.socket.recv(65_535))

    def run_until_acked(self, path_id: int, number: int) -> None:
        self.run_until(lambda: number in self.acked.get(path_id, ()))

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() > end)

    def data_of(self, operation: int) -> Data:
        """The first fragment of an operation, waited for."""
        self.run_until(lambda: operation in {data.operation for data in self.data})
        return next(data for data in self.data if data.operation == operation)

    def take(self, datagram: bytes) -> None:
        self.recording.append((0, 1, datagram))
        start, flags, path_id, spi, number = struct.unpack_from("!BBHIQ", datagram)
        assert (start, flags & ~1, spi) == (0x11, 0, self.spi_base % 2**32)
        assert len(datagram) <= 1472
        direction = self.receiving[path_id]
        assert number not in direction.arrived
        back = path_id >> 8
        eliciting = False
        for kind, content in decode(direction.open(number, datagram)):
            eliciting = eliciting or kind not in {0, 2, 5, 6}
            if kind == 1:
                self.place(content)
            elif kind == 2:
                self.note_ack(*content)
            elif kind == 4:
                self.grants.append(content)
            elif kind == 5:
                self.send(back, b"\x06" + content)
            elif kind == 6:
                self.active |= {p for p, sent in self.challenges.items() if sent == content}
            elif kind == 8:
                self.statuses.append(content)
            elif kind == 9:
                self.aborts.append(content)
            elif kind == 10:
                self.closed = True
            elif kind == 11:
                self.take_half(*content)
        self.move_if_ready(flags)
        if eliciting:
            self.send(back, self.ack(direction))

    def place(self, data: Data) -> None:
        self.data.append(data)
        length = data.message_length
        message = self.messages.setdefault(data.message_id, bytearray(length))
        missing = self.missing.setdefault(data.message_id, set(range(length)))
        end = data.offset + len(data.fragment)
        message[data.offset : end] = data.fragment
        missing.difference_update(range(data.offset, end))

    def note_ack(self, fields: tuple[int, ...], bitmap: bytes) -> None:
        _, _, path_id, largest, _, _ = fields
        numbers = self.acked.setdefault(path_id, set())
        numbers.add(largest)
        bitmap = bitmap.ljust(BITMAP_BYTES_MAX, b"\xff")
        for i in range(min(8 * BITMAP_BYTES_MAX, largest)):
            if bitmap[i // 8] >> (i % 8) & 1:
                numbers.add(largest - 1 - i)

    def ack(self, direction: Direction) -> bytes:
        largest = max(direction.arrived)
        bitmap = bytearray(BITMAP_BYTES_MAX)
        for i in range(8 * len(bitmap)):
            if i >= largest or largest - 1 - i in direction.arrived:
                bitmap[i // 8] |= 1 << (i % 8)
        bitmap = bitmap.rstrip(b"\xff")
        fields = ACK.pack(2, len(bitmap), direction.path_id, largest, 0, 0)
        return fields + bytes(bitmap)

    def reduce_data(self, group: Group, operation: int, message_id: int, values: bytes) -> bytes:
        """An eager message of a SUM over two ranks: recursive doubling, round 0 in slot 2."""
        signature = SIGNATURE.pack(1, 12, 1, 0, 0, len(values) // 4, group.tail)
        numbers = (message_id, group.id, operation, len(values), 0)
        return DATA.pack(1, 1 | 4, len(values), 2, *numbers) + signature + values


# A reader of recordings


@dataclass(frozen=True)
class KeyLog:
    """The secrets of the links of a job, and which SPI means which sender to whom."""

    suite: str
    generation_bits: int
    links: dict[frozenset[int], bytes]
    spis: dict[tuple[int, int], int]
    """By sender and receiver."""
    halves: dict[bytes, X25519PrivateKey]
    """Private keys of later epochs, at least one end's of each, by public key."""


@dataclass(frozen=True)
class Opened:
    """A recorded packet, opened."""

    sender: int
    receiver: int
    path_id: int
    number: int
    epoch: int
    key: bytes
    nonce: bytes
    frames: list[tuple[int, Any]]


@dataclass
class _Link:
    """What a recording has shown of a link."""

    secrets: list[bytes]
    """By epoch."""
    halves: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """Public keys by epoch and sender."""
    sending: dict[int, int] = field(default_factory=dict)
    """The newest epoch that each end has sealed in."""

    def epoch_of(self, sender: int, parity: int) -> int:
        """Packets of a sender are recorded in order, but for some of the epoch before."""
        newest = self.sending.setdefault(sender, 0)
        if newest % 2 != parity:
            newest += 1 if newest + 1 < len(self.secrets) else -1
        self.sending[sender] = max(newest, self.sending[sender])
        return newest

    def take_half(self, log: KeyLog, ends: tuple[int, int], epoch: int, public: bytes) -> None:
        """One end's half of an epoch; with the other end's it gives the secret."""
        sender, other = ends
        assert self.halves.setdefault((epoch, sender), public) == public
        theirs = self.halves.get((epoch, other))
        if epoch < len(self.secrets) or theirs is None:
            return
        if public not in log.halves:
            sender, other, public, theirs = other, sender, theirs, public
        self.secrets.append(
            epoch_link_secret(
                self.secrets[-1], log.halves[public], theirs, is_low=sender < other, epoch=epoch
            )
        )


def open_recording(log: KeyLog, recording: Iterable[tuple[int, int, bytes]]) -> Iterator[Opened]:
    """Open every packet; fails on the first that the page does not explain."""
    links = {ends: _Link([secret]) for ends, secret in log.links.items()}
    directions: dict[tuple[int, int, int, int], Direction] = {}
    for sender, receiver, datagram in recording:
        start, flags, path_id, spi, number = struct.unpack_from("!BBHIQ", datagram)
        assert (start, flags & ~1, spi) == (0x11, 0, log.spis[sender, receiver])
        link = links[frozenset((sender, receiver))]
        epoch = link.epoch_of(sender, flags)
        direction = directions.get((sender, receiver, path_id, epoch))
        if direction is None:
            secret = path_secret(link.secrets[epoch], sender, receiver, path_id, epoch)
            direction = Direction(log.suite, path_id, secret, log.generation_bits, epoch)
            directions[sender, receiver, path_id, epoch] = direction
        frames = list(decode(direction.open(number, datagram)))
        key, nonce = direction.key_and_nonce(number, flags)
        yield Opened(sender, receiver, path_id, number, epoch, key, nonce, frames)
        for kind, content in frames:
            if kind == 11:
                link.take_half(log, (sender, receiver), *content)
