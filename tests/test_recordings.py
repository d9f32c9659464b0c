"""Recorded packets of live and of simulated jobs, opened by the second implementation.

The key log of a live job comes from its second rank, which is second_implementation.py: a process
of the product has no way to write one. That of a simulated job comes from its seed.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter

import pytest
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from meeting import meeting_with, open_paths
from second_implementation import (
    GENERATION_BITS,
    LIVE_SUITES,
    SUITES,
    Direction,
    KeyLog,
    Opened,
    Peer,
    link_secret,
    open_recording,
)

from securefabric import _core

DATA_FRAME = 1
BLOCK_BYTES = 16
SIMULATED_BITS = 5


def check_nonces(opened: list[Opened]) -> None:
    """No key and nonce twice, and every nonce is what path, generation and number make it."""
    repeated = [
        pair for pair, n in Counter((one.key, one.nonce) for one in opened).items() if n > 1
    ]
    assert not repeated
    named = Counter((one.sender, one.receiver, one.path_id, one.number) for one in opened)
    assert max(named.values()) == 1


def generations(opened: list[Opened], bits: int) -> set[tuple[int, int, int, int]]:
    return {(one.sender, one.receiver, one.path_id, one.number >> bits) for one in opened}


# Live


def runs_here(suite: str) -> bool:
    return {name: refusal for name, _, refusal in _core.suites()}[suite] is None


def log_of(peer: Peer) -> KeyLog:
    return KeyLog(
        suite=peer.job.suite,
        generation_bits=GENERATION_BITS,
        links={frozenset((0, 1)): peer.first_link},
        spis={(1, 0): peer.spi, (0, 1): peer.spi_base},
        halves=peer.halves,
    )


def run_job(suite: str, key_text: bytes | None = None) -> tuple[Peer, bytes]:
    """Forty reductions, of which the peer loses some packets, in three epochs; its recording."""
    with meeting_with(suite, key_text) as meeting:
        peer = meeting.peer
        open_paths(meeting)
        for operation in range(40):
            work = meeting.backend.allreduce([torch.full((5,), float(operation))])
            frame = peer.reduce_data(meeting.group, operation, operation, bytes(20))
            if operation % 5 == 0:
                peer.lose_next = 1
                peer.send(operation % 2, frame)
            number = peer.send(operation % 2, frame)
            peer.run_until_acked(operation % 2, number)
            work.wait()
            peer.data_of(operation)
            if operation in (15, 30):
                peer.offer_epoch()
                peer.run_until(lambda: peer.half is None and not peer.is_moving())
                peer.run_for(0.2)  # what was sealed in the epoch before has come
        assert peer.epoch == 2
        return peer, meeting.key_text


@pytest.mark.parametrize("suite", LIVE_SUITES)
def test_live__every_packet_opens_and_no_nonce_repeats_over_a_restart(suite: str) -> None:
    if not runs_here(suite):
        pytest.skip("this CPU does not run the suite")
    first, key_text = run_job(suite)
    second, _ = run_job(suite, key_text)
    opened = []
    for peer in (first, second):
        ours = list(open_recording(log_of(peer), peer.recording))
        check_nonces(ours)
        assert {(one.sender, one.receiver) for one in ours} == {(0, 1), (1, 0)}
        assert len(generations(ours, GENERATION_BITS)) > 4
        assert {(one.sender, one.epoch) for one in ours} == {
            (s, e) for s in (0, 1) for e in range(3)
        }
        opened += ours
    repeated = [pair for pair, n in Counter((o.key, o.nonce) for o in opened).items() if n > 1]
    assert not repeated
    assert not {one.key for one in opened[: len(opened) // 8]} & {
        one.key for one in opened[-len(opened) // 8 :]
    }
    with pytest.raises(InvalidTag):
        list(open_recording(log_of(first), restamped(second.recording, log_of(first))))


def restamped(recording: list[tuple[int, int, bytes]], log: KeyLog) -> list[tuple[int, int, bytes]]:
    """The same packets with the SPIs of another job."""
    return [
        (sender, receiver, data[:4] + struct.pack("!I", log.spis[sender, receiver]) + data[8:])
        for sender, receiver, data in recording
    ]


# Simulated


@pytest.fixture(scope="module")
def simulated() -> _core.ScenarioReport:
    scenario = _core.Scenario()
    scenario.is_recorded = True
    scenario.op = "all_reduce"
    scenario.dtype = "float32"
    scenario.reduce_op = "SUM"
    scenario["ranks"] = 2
    scenario["paths"] = 2
    scenario["count"] = 60_000
    scenario["operations"] = 6
    scenario.seed = 7
    scenario["datagram_bytes"] = 1472
    scenario["generation_bits"] = SIMULATED_BITS
    scenario["epoch_bytes"] = 100_000
    scenario["rate_mbit"] = 30
    scenario["loss"] = 0.05
    scenario["reorder"] = 0.1
    scenario["duplicate"] = 0.05
    scenario["corrupt"] = 0.01
    report = _core.simulate(scenario)
    assert report.ok, report.failures
    if report.suite not in LIVE_SUITES:
        pytest.skip(f"no second implementation of {report.suite}")
    return report


@pytest.fixture(scope="module")
def opened(simulated: _core.ScenarioReport) -> list[Opened]:
    keys = simulated.key_log
    links = {}
    for low, high in itertools.combinations(range(len(keys)), 2):
        public = X25519PrivateKey.from_private_bytes(keys[high][0]).public_key()
        links[frozenset((low, high))] = link_secret(
            X25519PrivateKey.from_private_bytes(keys[low][0]),
            public.public_bytes_raw(),
            *(keys[low][1], keys[high][1], keys[low][2]),
        )
    spis = {
        (sender, receiver): (keys[receiver][3] + sender) % 2**32
        for sender, receiver in itertools.permutations(range(len(keys)), 2)
    }
    halves = {}
    for private in itertools.chain.from_iterable(rank[4] for rank in keys):
        half = X25519PrivateKey.from_private_bytes(private)
        halves[half.public_key().public_bytes_raw()] = half
    log = KeyLog(simulated.suite, SIMULATED_BITS, links, spis, halves)
    return list(open_recording(log, simulated.recording))


def test_simulated__every_packet_opens_and_no_nonce_repeats(
    simulated: _core.ScenarioReport, opened: list[Opened]
) -> None:
    assert len(opened) == simulated.traffic["packets_sealed"]
    check_nonces(opened)
    by_path = Counter((s, r, p) for s, r, p, _ in generations(opened, SIMULATED_BITS))
    assert max(by_path.values()) > 10  # generations on one path
    newest = Counter[int]()
    for one in opened:
        newest[one.sender] = max(newest[one.sender], one.epoch)
    assert min(newest.values()) >= 2
    # Who moved last may have had nothing to say any more.
    assert newest.total() <= simulated.traffic["epochs_begun"] <= newest.total() + 1


def test_simulated__what_is_sent_again_is_sealed_again(
    simulated: _core.ScenarioReport, opened: list[Opened]
) -> None:
    copies: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}
    for one in opened:
        for kind, content in one.frames:
            if kind == DATA_FRAME and content.fragment:
                name = (one.sender, one.receiver, content.message_id, content.offset)
                copies.setdefault(name, []).append((one.path_id, one.number))
    again = [packets for packets in copies.values() if len(packets) > 1]
    assert len(again) > 50
    assert all(len(set(packets)) == len(packets) for packets in again)
    assert simulated.traffic["fragments_resent"] > 50


def test_simulated__no_block_of_ciphertext_repeats(simulated: _core.ScenarioReport) -> None:
    blocks = [
        data[at : at + BLOCK_BYTES]
        for _, _, data in simulated.recording
        for at in range(16, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES)
    ]
    assert len(blocks) > 100_000
    assert len(set(blocks)) == len(blocks)


# Both ways, without a network


@pytest.mark.parametrize("suite", SUITES)
def test_packets__of_each_are_opened_by_the_other(suite: str) -> None:
    if not runs_here(suite):
        pytest.skip("this CPU does not run the suite")
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    randomness = random.Random(seed)
    packets = 200 if suite in LIVE_SUITES else 20
    for bits in (4, 7, 22):
        secret, path_id = randomness.randbytes(32), randomness.randrange(1 << 16)
        sealer = _core.PathSealer(suite, secret, path_id, bits)
        opener = _core.PathOpener(suite, secret, path_id, bits)
        ours = Direction(suite, path_id, secret, bits)
        for number in range(packets):
            text = randomness.randbytes(randomness.randrange(300 if packets > 20 else 50))
            header = struct.pack("!BBHIQ", 0x11, 0, path_id, 7, number)
            theirs = sealer.seal(header, [text[:10], text[10:]])
            assert ours.open(number, header + theirs) == text
            datagram = ours.seal(7, text)
            assert datagram == header + theirs
            assert opener.open(number, header, datagram[16:]) == ("ok", text)
            assert opener.open(number, header, datagram[16:])[0] == "replay_duplicate"
