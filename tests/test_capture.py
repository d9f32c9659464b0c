"""What an eavesdropper sees: a recording of the wire while tensors cross it.

A packet socket on loopback sees what tcpdump would, in a network namespace of its own where that
is allowed, so that nobody else's traffic is in the way. The same job over gloo is the control: its
recording holds the tensors, so the search would find them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from securefabric.identity import write_key_file

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
CLONE_NEWNET = 0x40000000
OUTGOING = 4  # loopback shows every packet twice: as it leaves and as it arrives
TCP, UDP = 6, 17

HEADER = struct.Struct("!BBHIQ")
HEADER_BYTES = HEADER.size
DATAGRAM_BYTES_MIN = 1200
TAG_BYTES = 16
BLOCK_BYTES = 16
RECORDED_BYTES_MAX = 64 << 20
TENSOR_BYTES = 1 << 20

PHRASE = b"The quick brown fox jumps over the lazy dog. "
CANARIES = {"byte 0x42": b"\x42" * 16, "a phrase": PHRASE, "zeros": bytes(16)}


def can_record() -> bool:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except (AttributeError, OSError):
        return False
    return True


pytestmark = pytest.mark.skipif(
    not can_record(), reason="recording the wire needs root (CAP_NET_RAW) on Linux"
)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Move this thread, and whom it starts, to a network namespace with nothing but loopback.

    Stays where it is when the kernel refuses (in a container without CAP_SYS_ADMIN).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            yield
            return
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                request = struct.pack("16sh22x", b"lo", IFF_UP)
                assert libc.ioctl(any_socket.fileno(), SIOCSIFFLAGS, request) == 0
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)


@dataclass(frozen=True)
class Packet:
    """The payload of a UDP datagram, of a burst of them (see datagrams), or of a TCP segment."""

    protocol: int
    source: int
    destination: int
    payload: bytes


@dataclass
class Recorder:
    """Records loopback in a thread of its own, bounded in bytes."""

    packets: list[Packet] = field(default_factory=list)
    missed: int = 0
    """Packets that the kernel had no room to show us."""

    def __enter__(self) -> Recorder:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECORDED_BYTES_MAX)
        self._socket.bind(("lo", ETH_P_ALL))
        self._socket.settimeout(0.05)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        counted = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.missed = struct.unpack("II", counted)[1]
        self._socket.close()

    def _record(self) -> None:
        recorded = 0
        while recorded < RECORDED_BYTES_MAX:
            try:
                frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if self._is_over.is_set():
                    return
                continue
            packet = parse(frame) if kind != OUTGOING else None
            if packet is not None:
                recorded += len(frame)
                self.packets.append(packet)


def parse(frame: bytes) -> Packet | None:
    """An IPv4 packet's transport payload; None for anything else."""
    if len(frame) < 20 or frame[0] >> 4 != 4 or frame[9] not in (TCP, UDP):
        return None
    segment = frame[(frame[0] & 15) * 4 :]
    source, destination = struct.unpack_from("!HH", segment)
    start = 8 if frame[9] == UDP else (segment[12] >> 4) * 4
    return Packet(frame[9], source, destination, segment[start:])


@dataclass(frozen=True)
class Fabric:
    """What a rank tells about its fabric."""

    ports: set[int]
    max_datagram: int


def _reduce_canaries(_rank: int, backend: str) -> Fabric | None:
    """MAX of equal tensors, small and large, so that every byte of every message is a canary's."""
    dist.init_process_group(backend)
    fabric = None
    for canary in CANARIES.values():
        text = (canary * (TENSOR_BYTES // len(canary) + 1))[:TENSOR_BYTES]
        expected = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        for numel in (100, 4096, TENSOR_BYTES):
            tensor = expected[:numel].clone()
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
            assert torch.equal(tensor, expected[:numel])
    if backend == "securefabric":
        from securefabric._fabric import current_fabric

        current = current_fabric()
        assert current is not None
        ports = {int(address.rpartition(":")[2]) for address in current.roster.own.addresses}
        fabric = Fabric(ports, current.native.max_datagram)
    dist.destroy_process_group()
    return fabric


@dataclass(frozen=True)
class Recording:
    """A job of two ranks, recorded."""

    engines: int
    """Of each rank."""
    packets: list[Packet]
    datagrams: list[bytes]
    """Those between the sockets of the fabrics."""

    @property
    def sealed(self) -> list[bytes]:
        """Of each datagram what follows the clear header."""
        return [datagram[HEADER_BYTES:] for datagram in self.datagrams]

    def blocks(self) -> list[bytes]:
        """Return every whole cipher block of every sealed part."""
        return [
            part[at : at + BLOCK_BYTES]
            for part in self.sealed
            for at in range(0, len(part) - BLOCK_BYTES + 1, BLOCK_BYTES)
        ]


def record(backend: str, key_file: str, engines: int = 1) -> Recording:
    with own_network(), Recorder() as recorder:
        outcomes = run_ranks(
            _reduce_canaries,
            2,
            backend,
            key_file=key_file,
            environment={"GLOO_SOCKET_IFNAME": "lo", "SECUREFABRIC_ENGINES": str(engines)},
            timeout_s=60,
        )
    assert [outcome.error for outcome in outcomes] == [None, None], outcomes
    assert recorder.missed == 0
    fabrics = [outcome.value for outcome in outcomes if outcome.value is not None]
    return Recording(engines, recorder.packets, list(datagrams(recorder.packets, fabrics)))


def datagrams(packets: list[Packet], fabrics: list[Fabric]) -> Iterator[bytes]:
    """Cut what went between the fabrics into datagrams.

    On loopback a burst is never cut by the kernel (GSO, GRO). All its datagrams but the last are of
    one size: what every path carries, until a larger one has been found to pass. The header of the
    second tells.
    """
    if not fabrics:
        return
    ports = set.union(*(fabric.ports for fabric in fabrics))
    size = min(fabric.max_datagram for fabric in fabrics)
    for packet in packets:
        if packet.protocol == UDP and {packet.source, packet.destination} <= ports:
            is_small = follows(packet.payload, packet.payload[DATAGRAM_BYTES_MIN:])
            step = DATAGRAM_BYTES_MIN if is_small else size
            for at in range(0, len(packet.payload), step):
                yield packet.payload[at : at + step]


def follows(first: bytes, second: bytes) -> bool:
    """Whether one packet begins with the header that comes after the other's."""
    if len(second) < HEADER_BYTES:
        return False
    *place, number = HEADER.unpack_from(first)
    return HEADER.unpack_from(second) == (*place, number + 1)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("capture") / "job.key"
    write_key_file(str(path))
    return str(path)


# The large tensors are just large enough for two engines.
@pytest.fixture(scope="module", params=[1, 2], ids=["one_engine", "two_engines"])
def recording(key_file: str, request: pytest.FixtureRequest) -> Recording:
    return record("securefabric", key_file, request.param)


@pytest.mark.parametrize("canary", CANARIES)
def test_wire__holds_no_plaintext(recording: Recording, canary: str) -> None:
    text = CANARIES[canary]
    # Two ranks: each sends half of a large tensor twice.
    assert sum(map(len, recording.datagrams)) > 2 * len(CANARIES) * TENSOR_BYTES
    assert not [part for part in recording.sealed if text in part]
    # Nor does the store's traffic, which is not encrypted, hold any of a tensor; zeros are in
    # every protocol.
    if canary != "zeros":
        assert not [packet for packet in recording.packets if text in packet.payload]


def test_wire__repeats_no_block(recording: Recording) -> None:
    blocks = recording.blocks()
    assert len(blocks) > 2 * len(CANARIES) * TENSOR_BYTES // BLOCK_BYTES
    assert len(set(blocks)) == len(blocks)


def test_wire__does_not_compress(recording: Recording) -> None:
    whole = b"".join(recording.sealed)
    assert len(zlib.compress(whole, 9)) >= 0.999 * len(whole)


def test_wire__never_uses_a_packet_number_twice(recording: Recording) -> None:
    seen: dict[tuple[int, int], list[int]] = {}
    for datagram in recording.datagrams:
        assert len(datagram) >= HEADER_BYTES + TAG_BYTES
        version_and_class, flags, path_id, spi, number = HEADER.unpack_from(datagram)
        assert (version_and_class, flags) == (0x11, 0)
        seen.setdefault((spi, path_id), []).append(number)
    # No gap either: loopback loses nothing, and the recorder has missed nothing.
    for numbers in seen.values():
        assert sorted(numbers) == list(range(len(numbers)))
    assert len({spi for spi, _ in seen}) == 2 * recording.engines  # one for each direction
    paths = {path_id for _, path_id in seen}
    assert paths == {own << 8 | other for own in range(3) for other in range(3)}


def test_wire__two_runs_with_one_key_share_no_block(recording: Recording, key_file: str) -> None:
    again = record("securefabric", key_file, recording.engines)
    assert not set(recording.blocks()) & set(again.blocks())


def test_wire__under_gloo_holds_every_canary(key_file: str) -> None:
    payloads = [packet.payload for packet in record("gloo", key_file).packets]
    for text in CANARIES.values():
        assert any(text * 4 in payload for payload in payloads)
