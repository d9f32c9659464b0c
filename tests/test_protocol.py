"""A second implementation of PROTOCOL.md, against the core: keys, entries, packets, messages.

Rank 0 is a real fabric with its backend. Rank 1 is a few hundred lines of Python on one UDP socket,
written from the page and from nothing else. When the two do not understand each other, one of page
and core is wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from torch._C._distributed_c10d import HashStore

from securefabric import _C, _core
from securefabric.roster import EntryBody, Roster, policy_digest

PAGE = (Path(__file__).resolve().parent.parent / "native/PROTOCOL.md").read_text()
SECONDS_MAX = 20.0
GENERATION_BITS = 4  # keys change every 16 packets
SUITES: dict[str, tuple[int, Any]] = {
    "aes-256-gcm": (1, AESGCM),
    "chacha20-poly1305": (3, ChaCha20Poly1305),
}

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


@dataclass
class Direction:
    """Keys of one path in one direction, and its numbers."""

    suite: str
    path_id: int
    secret: bytes
    next_number: int = 0
    arrived: set[int] = field(default_factory=set)

    def aead(self, number: int) -> tuple[Any, bytes]:
        generation = struct.pack("!Q", number >> GENERATION_BITS)
        iv = label(self.secret, "iv", generation, 12)
        counter = struct.pack("!IQ", self.path_id, number)
        nonce = bytes(a ^ b for a, b in zip(iv, counter, strict=True))
        return SUITES[self.suite][1](label(self.secret, "key", generation)), nonce

    def seal(self, spi: int, plaintext: bytes) -> bytes:
        number = self.next_number
        self.next_number += 1
        header = struct.pack("!BBHIQ", 0x11, 0, self.path_id, spi, number)
        aead, nonce = self.aead(number)
        return header + bytes(aead.encrypt(nonce, plaintext, header))

    def open(self, number: int, datagram: bytes) -> bytes:
        aead, nonce = self.aead(number)
        plaintext: bytes = aead.decrypt(nonce, datagram[16:], datagram[:16])
        self.arrived.add(number)
        return plaintext


# §5

SIGNATURE = struct.Struct("!BBBBIQ")
DATA = struct.Struct("!BBHIQQQQQ")
GRANT = struct.Struct("!BBIQQQQ")
ACK = struct.Struct("!BBHQII")


@dataclass(frozen=True)
class Data:
    flags: int
    slot: int
    message_id: int
    group: int
    operation: int
    message_length: int
    offset: int
    signature: tuple[int, ...]
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
            signature: tuple[int, ...] = ()
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
        size = {2: ACK.size, 3: 9, 4: GRANT.size, 5: 9, 6: 9, 7: 1, 8: 34, 10: 1}
        if kind == 2:
            fields = ACK.unpack_from(plaintext, at)
            bitmap = plaintext[at + ACK.size : at + ACK.size + fields[1]]
            yield kind, (fields, bitmap)
            at += fields[1]
        elif kind == 4:
            yield kind, GRANT.unpack_from(plaintext, at)
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
            "suite": job.suite,
            "padding": "none",
            "generation_bits": GENERATION_BITS,
        }
        self.body: dict[str, object] = {
            "version": 1,
            "job": "second implementation",
            "rank": self.rank,
            "world_size": 2,
            "boot_id": os.urandom(16),
            "public_key": self.private.public_key().public_bytes_raw(),
            "spi_base": self.spi_base,
            "addresses": [f"127.0.0.1:{self.socket.getsockname()[1]}"],
            "max_datagram": 1472,
            "suite": job.suite,
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
        self.closed = False
        self.lose_next = 0
        """Sealed, numbered and never sent: that many of the next packets."""

    def meet(self, other: EntryBody, other_entry: bytes) -> None:
        """§3.3 and §3.4; rank 0 is the low end."""
        salt = b"sf1 link"
        for entry in (other_entry, self.entry):
            salt += struct.pack("!Q", len(entry)) + entry
        shared = self.private.exchange(X25519PublicKey.from_public_bytes(other.public_key))
        self.link = hmac.digest(
            hashlib.sha256(salt).digest(), shared + self.job.secret("job secret"), "sha256"
        )
        self.spi = (other.spi_base + self.rank) % 2**32
        self.to = []
        for address in other.addresses:
            host, _, port = address.rpartition(":")
            self.to.append((host, int(port)))
        # Pairs (low i, high 0); path ids have the sender's socket first.
        self.sending = {i: self._direction(1, 0, i) for i in range(len(self.to))}
        self.receiving = {i << 8: self._direction(0, 1, i << 8) for i in range(len(self.to))}

    def _direction(self, sender: int, receiver: int, path_id: int) -> Direction:
        secret = label(self.link, "dir", struct.pack("!III", sender, receiver, 0))
        path = label(secret, "path", struct.pack("!H", path_id))
        return Direction(self.job.suite, path_id, path)

    def send(self, path_id: int, *frames: bytes) -> int:
        direction = self.sending[path_id]
        datagram = direction.seal(self.spi, b"".join(frames))
        if self.lose_next > 0:
            self.lose_next -= 1
        else:
            self.socket.sendto(datagram, self.to[path_id & 0xFF])
        return direction.next_number - 1

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
        start, flags, path_id, spi, number = struct.unpack_from("!BBHIQ", datagram)
        assert (start, flags, spi) == (0x11, 0, self.spi_base % 2**32)
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
            elif kind == 10:
                self.closed = True
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
        for i in range(8 * len(bitmap)):
            if bitmap[i // 8] >> (i % 8) & 1:
                numbers.add(largest - 1 - i)

    def ack(self, direction: Direction) -> bytes:
        largest = max(direction.arrived)
        bitmap = bytearray(16)
        for i in range(8 * len(bitmap)):
            if largest - 1 - i in direction.arrived:
                bitmap[i // 8] |= 1 << (i % 8)
        fields = ACK.pack(2, len(bitmap), direction.path_id, largest, 0, 0)
        return fields + bytes(bitmap)

    def reduce_data(self, group: int, operation: int, message_id: int, values: bytes) -> bytes:
        """An eager message of a SUM over two ranks: recursive doubling, round 0 in slot 2."""
        signature = SIGNATURE.pack(1, 12, 1, 0, 0, len(values) // 4)
        numbers = (message_id, group, operation, len(values), 0)
        return DATA.pack(1, 1 | 4, len(values), 2, *numbers) + signature + values


class Meeting:
    """A fabric and its backend as rank 0, and the peer, introduced to each other."""

    def __init__(self, suite: str) -> None:
        text = _core.JobKey.format(suite, bytearray(os.urandom(32)))
        lines = dict(line.split(": ") for line in text.decode().splitlines()[1:])
        key = bytes.fromhex(lines["key"])
        job = Job(suite, bytes.fromhex(lines["id"]), key)
        assert job.key_id == label(key, "key id", b"", 8)
        self.peer = Peer(job)
        credential = _core.JobKey(bytearray(text))
        self.fabric = _C.Fabric(
            rank=0,
            world_size=2,
            local_world_size=2,
            job_key_text=text,
            addresses=["127.0.0.1"],
            interfaces="",
            sockets_per_interface=2,
            paths_per_peer=2,
            join_timeout_s=SECONDS_MAX,
            death_timeout_s=SECONDS_MAX,
            heartbeat_s=1.0,
            gso=True,
            gro=True,
            spin="never",
            eager_connect=False,
            generation_bits=GENERATION_BITS,
            resolve=lambda _group_key, rank: self.roster.verify(rank, self.peer.entry),
        )
        body = EntryBody(
            version=1,
            job="second implementation",
            rank=0,
            world_size=2,
            boot_id=self.fabric.boot_id,
            public_key=self.fabric.public_key,
            spi_base=self.fabric.spi_base,
            addresses=self.fabric.addresses,
            max_datagram=self.fabric.max_datagram,
            suite=suite,
            policy=policy_digest(suite=suite, generation_bits=GENERATION_BITS),
        )
        self.roster = Roster(credential, body)
        self.fabric.set_entry(self.roster.own_entry)
        key_text = "world:0123456789abcdef"
        self.group = int.from_bytes(hashlib.sha256(key_text.encode()).digest()[:8], "big")
        self.backend: Any = _C.Backend(
            fabric=self.fabric,
            store=HashStore(),
            group_rank=0,
            group_size=2,
            group_name="world",
            group_key=key_text,
            global_ranks=[0, 1],
            timeout=timedelta(seconds=SECONDS_MAX),
        )
        self.peer.meet(body, self.roster.own_entry)


@pytest.fixture(params=list(SUITES))
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    refusal = {suite: refusal for suite, _, refusal in _core.suites()}[request.param]
    if refusal is not None:
        pytest.skip(refusal)
    made = Meeting(request.param)
    yield made
    made.peer.socket.close()
    made.fabric.shutdown()


def open_paths(meeting: Meeting) -> None:
    peer = meeting.peer
    peer.confirm()  # makes the fabric look us up (§3.4); this one is dropped
    until = time.monotonic() + SECONDS_MAX
    while len(peer.active) < 2 and time.monotonic() < until:
        peer.confirm()
        for _ in range(20):
            if select.select([peer.socket], [], [], 0.005)[0]:
                peer.take(peer.socket.recv(65_535))
    assert peer.active == {0, 1}


def test_all_reduce__with_the_core(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    for operation in range(40):  # several generations of keys on each path
        ours = torch.arange(5, dtype=torch.float32) * (operation + 1)
        theirs = torch.ones(5)
        work = meeting.backend.allreduce([ours])
        values = theirs.numpy().tobytes()
        path_id = operation % 2
        frame = peer.reduce_data(meeting.group, operation, operation, values)
        number = peer.send(path_id, frame)
        peer.run_until_acked(path_id, number)
        work.wait()
        assert torch.equal(ours, torch.arange(5, dtype=torch.float32) * (operation + 1) + 1)
        received = peer.data_of(operation)
        assert received.group == meeting.group
        assert (received.slot, received.flags & 0xC) == (2, 4)
        assert received.signature == (1, 12, 1, 0, 0, 5)
        expected = torch.arange(5, dtype=torch.float32) * (operation + 1)
        assert received.fragment == expected.numpy().tobytes()
    assert peer.sending[0].next_number >> GENERATION_BITS > 0
    drops = meeting.fabric.stats()["drops"]
    assert isinstance(drops, dict)
    assert {cause for cause, count in drops.items() if count} <= {"unknown_spi"}


def test_long_message_to_the_core__is_announced_granted_and_repaired(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    expected = torch.randint(0, 255, (200_000,), dtype=torch.uint8)
    target = torch.zeros_like(expected)
    work = meeting.backend.recv([target], 1, 7)
    whole = expected.numpy().tobytes()
    signature = SIGNATURE.pack(10, 1, 0, 0, 0, len(whole))
    name = (0, meeting.group, 0, len(whole))
    peer.send(0, DATA.pack(1, 1 | 8, 0, 7, *name, 0) + signature)
    peer.run_until(lambda: bool(peer.grants))
    [(_, channel, slot, group, operation, granted, _)] = peer.grants
    assert (channel, slot, group, operation, granted) == (1, 7, meeting.group, 0, len(whole))

    pending = list(range(0, len(whole), 1360))
    peer.lose_next = 3
    while pending:
        sent: dict[tuple[int, int], int] = {}
        for offset in pending:
            fragment = whole[offset : offset + 1360]
            flags = 8 | (1 if offset == 0 else 0) | (2 if offset == pending[-1] else 0)
            head = DATA.pack(1, flags, len(fragment), 7, *name, offset)
            path_id = offset // 1360 % 2
            number = peer.send(path_id, head + (signature if offset == 0 else b"") + fragment)
            sent[path_id, number] = offset
        peer.run_until_acked(path_id, number)  # of the last one, which asks for it at once
        peer.run_for(0.05)
        pending = [o for (p, n), o in sent.items() if n not in peer.acked.get(p, ())]
    work.wait()
    assert torch.equal(target, expected)


def test_long_message_from_the_core__waits_for_our_grant(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    source = torch.randint(0, 255, (150_001,), dtype=torch.uint8)
    work = meeting.backend.send([source], 1, 3)
    peer.run_until(lambda: bool(peer.data))
    request = peer.data[0]
    assert (request.flags & 0xD, request.slot, request.fragment) == (9, 3, b"")
    assert request.message_length == 150_001
    peer.send(1, GRANT.pack(4, 1, 3, meeting.group, 0, 150_001, 0))
    peer.run_until(lambda: not peer.missing[request.message_id])
    work.wait()
    assert bytes(peer.messages[request.message_id]) == source.numpy().tobytes()
    assert all(data.offset % 16 == 0 for data in peer.data)


def test_goodbye__ends_the_connection_on_both_sides(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    meeting.fabric.shutdown()
    peer.run_until(lambda: peer.closed)


# The page itself


def value_of(expression: str, known: dict[str, str]) -> str:
    """A constant of limits.h in the notation of the page's table."""
    if match := re.fullmatch(r"base::Duration::(millis|seconds)\((\d+)\)", expression):
        return f"{match[2]} {'ms' if match[1] == 'millis' else 's'}"
    text = expression.replace("'", "")
    for name, value in known.items():
        text = re.sub(rf"\b{name}\b", value.replace(",", ""), text)
    assert re.fullmatch(r"[\d *+<]+", text), expression
    return f"{eval(text):,}"


def test_constants__of_the_page_are_those_of_the_code() -> None:
    native = Path(__file__).resolve().parent.parent / "native"
    source = (native / "transport/limits.h").read_text()
    source += (native / "crypto/replay_window.h").read_text()
    declared: dict[str, str] = {}
    for name, expression in re.findall(r"constexpr [\w:]+ (k\w+) =\s*([^;]+);", source):
        if "word" not in name.lower():
            declared[name] = value_of(expression, declared)
    listed = dict(re.findall(r"^\| `(k\w+)` \| ([^|]+?) \|", PAGE, re.MULTILINE))
    local = {"kJoinTimeoutDefault", "kDeathTimeoutDefault", "kHeartbeatDefault"}
    assert listed == {name: value for name, value in declared.items() if name not in local}
    for name in set(re.findall(r"`(k[A-Z]\w+)`", PAGE)):
        assert name in listed, name
