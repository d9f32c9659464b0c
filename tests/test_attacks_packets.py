"""An attacker on the network plays against live jobs, row by row of docs/SECURITY.md §7.

He sees, holds, changes, copies and invents datagrams; he has no key. Every row ends with exact
results, the expected count and not one reply to him.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import FORKED
from ranks import run_ranks
from steady import SteadyJob, reduce_until_stopped, run_steady_job
from testbed.namespaces import Bed, why_not
from testbed.proxy import ChaosProxy, Datagram, Place, Weather, read_capture
from testbed.stages import Stages, wait_until

pytestmark = pytest.mark.usefixtures("clean_environment")

HEADER = struct.Struct("!BBHIQ")  # PROTOCOL.md §1
HEADER_BYTES, TAG_BYTES = 16, 16
SEGMENTS = 64  # datagrams that the kernel cuts one send into
UDP_SEGMENT = 103
FLOOD_DATAGRAMS = 1_000_000
GENERATION_BITS = 4
WINDOW = 8192  # kWindow of PROTOCOL.md §9
ATTEMPTS, ATTEMPT_S = 5, 6.0
LIVELY = {"SECUREFABRIC_DEATH_TIMEOUT_S": "3", "SECUREFABRIC_HEARTBEAT_S": "0.5"}


@dataclass(frozen=True)
class Header:
    """The part of a packet that everybody sees."""

    start: int
    flags: int
    path_id: int
    spi: int
    number: int

    @staticmethod
    def of(packet: bytes) -> Header:
        return Header(*HEADER.unpack_from(packet))

    def on(self, packet: bytes, **changes: int) -> bytes:
        """This header, with changes, in place of a packet's own."""
        fields = {**self.__dict__, **changes}
        return HEADER.pack(*fields.values()) + packet[HEADER_BYTES:]


class Attacker:
    """What he does to one job, and what came of it."""

    def __init__(self, proxy: ChaosProxy, job: SteadyJob, stack: ExitStack) -> None:
        self.proxy = proxy
        self.job = job
        self.strangers = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)
        ]
        for one, host in zip(self.strangers, ("127.0.0.1", "127.0.0.2"), strict=True):
            one.bind((host, 0))
            one.setblocking(False)

    def seen(self, source: int, destination: int, bytes_min: int = 1000) -> Datagram:
        """A recent datagram of this direction, of that size at least, that has arrived."""
        for _ in range(50):
            self.job.wait_for_rounds(1)
            found = [
                datagram
                for datagram in list(self.proxy.history)
                if (datagram.source.rank, datagram.destination.rank) == (source, destination)
                and len(datagram.payload) >= bytes_min
            ]
            if found:
                return found[len(found) // 2]
        raise AssertionError(f"no datagram of {bytes_min} bytes from {source} to {destination}")

    def expect(
        self, causes: str | Iterable[str], count: int, victim: int, attack: Callable[[], None]
    ) -> None:
        """Attack; the victim drops at least `count` datagrams more for these causes.

        An attacker's datagrams get lost like anybody's: he tries a few times.
        """
        names = [causes] if isinstance(causes, str) else list(causes)

        def dropped() -> int:
            return sum(self.job.drops(victim)[name] for name in names)

        before = dropped()
        for _ in range(ATTEMPTS):
            if dropped() >= before + count:
                break
            attack()
            until = time.monotonic() + ATTEMPT_S
            while dropped() < before + count and time.monotonic() < until:
                time.sleep(0.005)
        assert dropped() >= before + count, (
            f"{dropped() - before} of {count} drops as {names} on rank {victim}: "
            f"{self.job.drops(victim)}"
        )
        self.job.wait_for_rounds(1)

    def send_all(self, datagrams: Iterable[Datagram]) -> None:
        for datagram in datagrams:
            self.proxy.attack(datagram)

    def change_on_the_way(
        self, change: Callable[[Datagram, random.Random], list[Datagram]], count: int
    ) -> None:
        """Change so many datagrams with data from rank 0 to rank 1 on their way."""
        left = count

        def tamper(datagram: Datagram, draw: random.Random) -> list[Datagram]:
            nonlocal left
            is_wanted = (datagram.source.rank, datagram.destination.rank) == (0, 1)
            if left == 0 or not is_wanted or len(datagram.payload) < 1000:
                return [datagram]
            left -= 1
            return change(datagram, draw)

        self.proxy.tamper = tamper
        wait_until(lambda: left == 0, f"{count} datagrams to change")
        self.proxy.tamper = None

    def replies(self) -> int:
        """How often anybody answered somebody who is not of the job."""
        count = self.proxy.counters["strange"]
        for one in self.strangers:
            try:
                while True:
                    one.recv(65536)
                    count += 1
            except BlockingIOError:
                pass
        return count


ANY_CAUSE = (
    *("too_short", "bad_version", "unknown_spi", "path_mismatch", "stale_generation"),
    *("future_generation", "replay_duplicate", "replay_too_old", "auth_failed", "packet_limit"),
)


def row_1_header_bits(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)

    def flipped() -> Iterator[Datagram]:
        for bit in range(8 * HEADER_BYTES):
            turned = bytearray(packet.payload)
            turned[bit // 8] ^= 0x80 >> bit % 8
            yield packet.with_payload(bytes(turned))

    attacker.expect(ANY_CAUSE, 128, 1, lambda: attacker.send_all(flipped()))
    # Of the first two bytes all bits are fixed but the last, the parity of an epoch not begun.
    *fixed, parity = list(flipped())[:16]
    attacker.expect("bad_version", 15, 1, lambda: attacker.send_all(fixed))
    attacker.expect("unknown_spi", 1, 1, lambda: attacker.send_all([parity]))


def row_2_bits_of_ciphertext_and_tag(attacker: Attacker) -> None:
    def flip(datagram: Datagram, draw: random.Random) -> list[Datagram]:
        turned = bytearray(datagram.payload)
        is_tag = draw.random() < 0.5
        at = draw.randrange(*((-TAG_BYTES, 0) if is_tag else (HEADER_BYTES, len(turned))))
        turned[at] ^= 1 << draw.randrange(8)
        return [datagram.with_payload(bytes(turned))]

    attacker.expect("auth_failed", 64, 1, lambda: attacker.change_on_the_way(flip, 64))


def row_3_other_lengths(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)
    short = [packet.with_payload(packet.payload[:size]) for size in range(32)]
    attacker.expect("too_short", 32, 1, lambda: attacker.send_all(short))
    for change in (
        lambda d, _: [d.with_payload(d.payload[:-1])],
        lambda d, _: [d.with_payload(d.payload + b"\0")],
        lambda d, draw: [d.with_payload(d.payload[: draw.randrange(32, 48)])],
    ):
        attacker.expect(
            "auth_failed", 8, 1, lambda change=change: attacker.change_on_the_way(change, 8)
        )
    large = packet.with_payload(random.Random(1).randbytes(65_507))
    attacker.expect(ANY_CAUSE, 1, 1, lambda: attacker.send_all([large]))


def row_4_replay_at_once(attacker: Attacker) -> None:
    def replay() -> None:
        attacker.send_all([attacker.seen(0, 1)] * 10)

    attacker.expect("replay_duplicate", 10, 1, replay)


def row_6_replay_on_another_path(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)
    other = Place(1, 1 - packet.destination.socket)
    moved = Datagram(packet.source, other, packet.payload)
    attacker.expect("path_mismatch", 10, 1, lambda: attacker.send_all([moved] * 10))


def row_7_reflection(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)
    # Also with the SPI and path id that such a packet would have, which everybody can see.
    back = attacker.seen(1, 0, bytes_min=0)  # in a ring no data goes back
    mirrored = Datagram(packet.destination, packet.source, packet.payload)
    disguised = Datagram(
        back.source,
        back.destination,
        Header.of(back.payload).on(packet.payload, number=Header.of(back.payload).number + 3000),
    )
    attacker.expect(
        ("unknown_spi", "path_mismatch"), 10, 0, lambda: attacker.send_all([mirrored] * 10)
    )
    attacker.expect("auth_failed", 10, 0, lambda: attacker.send_all([disguised] * 10))


def row_8_splice(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)
    to_third = attacker.seen(0, 2, bytes_min=0)
    theirs = Header.of(to_third.payload)
    moved = Datagram(packet.source, to_third.destination, packet.payload)
    disguised = to_third.with_payload(theirs.on(packet.payload, number=theirs.number + 3000))
    attacker.expect(
        ("unknown_spi", "path_mismatch"), 10, 2, lambda: attacker.send_all([moved] * 10)
    )
    attacker.expect("auth_failed", 10, 2, lambda: attacker.send_all([disguised] * 10))


def row_9_payload_under_another_header(attacker: Attacker) -> None:
    held: list[Datagram] = []

    def swap(datagram: Datagram, _: random.Random) -> list[Datagram]:
        """Put each payload under the header of the next one; that one is lost."""
        held.append(datagram)
        if len(held) % 2:
            return [datagram]
        header = Header.of(datagram.payload)
        return [datagram.with_payload(header.on(held[-2].payload))]

    attacker.expect("auth_failed", 10, 1, lambda: attacker.change_on_the_way(swap, 20))


def row_12_packet_numbers_out_of_range(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)
    header = Header.of(packet.payload)
    last = packet.with_payload(header.on(packet.payload, number=2**64 - 1))
    jump = packet.with_payload(header.on(packet.payload, number=header.number + 2**40))
    attacker.expect("packet_limit", 10, 1, lambda: attacker.send_all([last] * 10))
    attacker.expect("future_generation", 10, 1, lambda: attacker.send_all([jump] * 10))


def row_13_forged_high_number(attacker: Attacker) -> None:
    before = attacker.job.drops(1)["replay_too_old"]
    packet = attacker.seen(0, 1)
    header = Header.of(packet.payload)
    forged = packet.with_payload(header.on(packet.payload, number=header.number + 2**20))
    attacker.expect("auth_failed", 10, 1, lambda: attacker.send_all([forged] * 10))
    # Had the window moved, everything that came since would have been too old.
    assert attacker.job.drops(1)["replay_too_old"] == before


def row_14_other_source_addresses(attacker: Attacker) -> None:
    def replay() -> None:
        packet = attacker.seen(0, 1)
        to = attacker.proxy.real_address_of(packet.destination)
        for _ in range(5):
            for one in attacker.strangers:
                one.sendto(packet.payload, to)

    attacker.expect("replay_duplicate", 10, 1, replay)

    # Authentic packets that come from a stranger's address count, and move nobody there.
    def deliver_myself(datagram: Datagram, _: random.Random) -> list[Datagram]:
        stranger = attacker.strangers[1]
        stranger.sendto(datagram.payload, attacker.proxy.real_address_of(datagram.destination))
        return []

    opened = attacker.job.report(1)["packets_opened"]
    attacker.change_on_the_way(deliver_myself, 100)
    attacker.job.wait_for_rounds(2)
    assert attacker.job.report(1)["packets_opened"] >= opened + 100


def row_17_valid_spi_and_random_bodies(attacker: Attacker) -> None:
    packet = attacker.seen(0, 1)
    header = Header.of(packet.payload)
    draw = random.Random(17)
    forged = [
        packet.with_payload(
            header.on(bytes(16) + draw.randbytes(200), number=header.number + 3000 + i)
        )
        for i in range(5000)
    ]
    attacker.expect("auth_failed", 4000, 1, lambda: attacker.send_all(forged))


ROWS = (
    row_1_header_bits,
    row_2_bits_of_ciphertext_and_tag,
    row_3_other_lengths,
    row_4_replay_at_once,
    row_6_replay_on_another_path,
    row_7_reflection,
    row_8_splice,
    row_9_payload_under_another_header,
    row_12_packet_numbers_out_of_range,
    row_13_forged_high_number,
    row_14_other_source_addresses,
    row_17_valid_spi_and_random_bodies,
)


def test_rows_against_one_job__exact_results_and_no_reply(key_file: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(ChaosProxy(3, seed=101))
        replies = []

        def attack(job: SteadyJob) -> None:
            attacker = Attacker(proxy, job, stack)
            for row in ROWS:
                row(attacker)
                replies.append((row.__name__, attacker.replies()))

        counted = run_steady_job(
            tmp_path,
            key_file,
            attack,
            world_size=3,
            numel=30_000,
            environment=proxy.environment,
        )
    assert replies == [(row.__name__, 0) for row in ROWS]
    for one in counted:
        assert one["drops"]["malformed"] == one["drops"]["unconfirmed"] == 0


def test_row_5_replay_from_behind_the_window(key_file: str, tmp_path: Path) -> None:
    with ChaosProxy(2, seed=105) as proxy, ExitStack() as stack:

        def attack(job: SteadyJob) -> None:
            attacker = Attacker(proxy, job, stack)
            old = attacker.seen(0, 1)
            number = Header.of(old.payload).number
            path = (old.source, old.destination)
            wait_until(
                lambda: any(
                    (newer.source, newer.destination) == path
                    and Header.of(newer.payload).number > number + WINDOW
                    for newer in list(proxy.history)[-200:]
                ),
                f"{WINDOW} more packets on the path",
            )
            attacker.expect("replay_too_old", 10, 1, lambda: attacker.send_all([old] * 10))
            assert attacker.replies() == 0

        one_path = {"SECUREFABRIC_PATHS_PER_PEER": "1"}
        run_steady_job(
            tmp_path,
            key_file,
            attack,
            numel=1_000_000,
            environment=lambda rank: {**proxy.environment(rank), **one_path},
        )


FOUL = Weather(
    loss=0.05, reorder=0.1, reorder_s=0.002, duplicate=0.05, corrupt=0.02, replay=0.05, trim=0.01
)


def test_rows_10_36_37_keys_change_in_foul_weather(key_file: str, tmp_path: Path) -> None:
    """Every 16 packets a new key, under loss, reordering, copies and damage: bit-exact, no nonce
    twice, and packets of generations that are past or too far ahead cost nothing but a look."""
    capture = tmp_path / "all.pcap"
    with ChaosProxy(2, seed=110, capture=capture) as proxy, ExitStack() as stack:

        def attack(job: SteadyJob) -> None:
            attacker = Attacker(proxy, job, stack)
            old = attacker.seen(0, 1)
            proxy.set_weather(FOUL)
            job.wait_for_rounds(15)
            proxy.clear_weather()
            attacker.expect("stale_generation", 10, 1, lambda: attacker.send_all([old] * 10))
            new = attacker.seen(0, 1)
            header = Header.of(new.payload)
            ahead = header.on(new.payload, number=header.number + 2 * WINDOW)
            attacker.expect(
                "future_generation",
                10,
                1,
                lambda: attacker.send_all([new.with_payload(ahead)] * 10),
            )
            assert attacker.replies() == 0

        short = {"SECUREFABRIC_TEST_GENERATION_BITS": str(GENERATION_BITS)}
        run_steady_job(
            tmp_path,
            key_file,
            attack,
            environment=lambda rank: {**proxy.environment(rank), **short},
        )
    numbers: dict[tuple[int, int], list[int]] = {}
    for _, _, payload in read_capture(capture):
        header = Header.of(payload)
        numbers.setdefault((header.spi, header.path_id), []).append(header.number)
    for sent in numbers.values():
        assert len(set(sent)) == len(sent)
    assert max(max(sent) for sent in numbers.values()) >> GENERATION_BITS >= 10


def flood(targets: list[tuple[str, int]], count: int, draw: random.Random) -> int:
    """Send so many junk datagrams as fast as the kernel takes them; the replies that came."""
    replies = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.bind(("127.0.0.1", 0))
        attacker.setblocking(False)
        sent = 0
        while sent < count:
            size = draw.choice([1, 15, 16, 47, 48, 100, 400])
            attacker.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            junk = bytearray(draw.randbytes(size * SEGMENTS))
            for at in range(0, len(junk), 3 * size):  # a third with a plausible start
                junk[at : at + 2] = b"\x11\x00"[:size]
            try:
                attacker.sendto(junk[: size * SEGMENTS], targets[sent // SEGMENTS % len(targets)])
                sent += SEGMENTS
            except BlockingIOError:
                pass
            try:
                attacker.recv(65536)
                replies += 1
            except BlockingIOError:
                pass
    return replies


def test_row_16_a_million_junk_datagrams(key_file: str, tmp_path: Path) -> None:
    with ChaosProxy(2, seed=116) as proxy:

        def attack(job: SteadyJob) -> None:
            fair_s = job.wait_for_rounds(20)
            before = job.report(0)["rounds"]
            targets = [proxy.real_address_of(Place(rank, s)) for rank in (0, 1) for s in (0, 1)]
            started = time.monotonic()
            assert flood(targets, FLOOD_DATAGRAMS, random.Random(16)) == 0
            flooded_s = time.monotonic() - started
            rounds = job.report(0)["rounds"] - before
            job.wait_for_rounds(5)
            print(
                f"{FLOOD_DATAGRAMS} junk datagrams in {flooded_s:.1f} s: {rounds} rounds, "
                f"{rounds / flooded_s:.1f}/s; without them {20 / fair_s:.1f}/s"
            )

        counted = run_steady_job(tmp_path, key_file, attack, environment=proxy.environment)
    assert proxy.counters["strange"] == 0
    dropped = sum(sum(one["drops"].values()) for one in counted)
    overrun = sum(one["kernel_drops"] for one in counted)
    print(f"{dropped} dropped by the ranks, {overrun} by their kernels' full buffers")
    assert dropped > FLOOD_DATAGRAMS // 100


def test_row_32_a_rank_is_killed_and_the_job_starts_again(key_file: str, tmp_path: Path) -> None:
    """With the same key: the survivor knows who is lost, and no key and nonce come back."""
    captures = [tmp_path / "first.pcap", tmp_path / "second.pcap"]

    def kill(processes: dict[int, Any]) -> None:
        stages = Stages(tmp_path)
        stages.wait("start", 2)
        stages.open("start")
        SteadyJob(tmp_path, processes).wait_for_rounds(3)
        processes[1].kill()

    with ChaosProxy(2, seed=132, capture=captures[0]) as proxy:
        survivor, _ = run_ranks(
            reduce_until_stopped,
            2,
            str(tmp_path),
            30_000,
            key_file=key_file,
            environment=lambda rank: {**proxy.environment(rank), **LIVELY},
            meanwhile=kill,
            context=FORKED,
        )
    assert survivor.error is not None
    assert "PeerLost" in survivor.error
    assert "rank 1" in survivor.error

    again = tmp_path / "again"
    again.mkdir()
    with ChaosProxy(2, seed=133, capture=captures[1]) as proxy:
        run_steady_job(
            again,
            key_file,
            lambda job: job.wait_for_rounds(3),
            numel=30_000,
            environment=proxy.environment,
        )

    packets = [payload for capture in captures for _, _, payload in read_capture(capture)]
    headers = [Header.of(packet) for packet in packets]
    assert len({(one.spi, one.path_id, one.number) for one in headers}) == len(packets)
    assert len({packet[HEADER_BYTES : HEADER_BYTES + 16] for packet in packets}) == len(packets)


ICMP_UNREACHABLE, PORT, FRAGMENTATION = 3, 3, 4


def icmp(code: int, mtu: int, quoted: bytes) -> bytes:
    """An ICMP "unreachable" that quotes the beginning of a packet."""
    head = struct.pack("!BBHHH", ICMP_UNREACHABLE, code, 0, 0, mtu)
    total = sum(struct.unpack(f"!{len(head + quoted) // 2}H", head + quoted))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", ICMP_UNREACHABLE, code, ~total & 0xFFFF, 0, mtu) + quoted


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_row_18_spoofed_icmp(key_file: str, tmp_path: Path) -> None:
    """Port unreachable, and "fragmentation needed" down to 68 bytes, for every flow of the job."""
    ports = {0: 21_000, 1: 21_100}
    with Bed(2, 1) as bed, bed.hosts[1].entered(), ExitStack() as stack:
        raw = stack.enter_context(
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )

        def attack(job: SteadyJob) -> None:
            lost = job.report(0)["paths_suspected"]
            victim, other = bed.hosts
            for _ in range(200):
                for own in (0, 1, 2):
                    for theirs in (0, 1, 2):
                        ip = struct.pack("!BBHHHBBH", 0x45, 0, 1400, 0, 0x4000, 64, 17, 0)
                        ip += socket.inet_aton(victim.address) + socket.inet_aton(other.address)
                        udp = struct.pack("!HHHH", ports[0] + own, ports[1] + theirs, 1380, 0)
                        raw.sendto(icmp(PORT, 0, ip + udp), (victim.address, 0))
                        raw.sendto(icmp(FRAGMENTATION, 68, ip + udp), (victim.address, 0))
            job.wait_for_rounds(10)
            assert job.report(0)["paths_suspected"] == lost

        run_steady_job(
            tmp_path,
            key_file,
            attack,
            environment=lambda rank: {
                "SECUREFABRIC_PORTS": f"{ports[rank]}-{ports[rank] + 2}",
            },
            bed=bed,
        )
