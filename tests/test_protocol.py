"""A second implementation of PROTOCOL.md against the core: keys, entries, packets, messages.

Rank 0 is a real fabric with its backend, rank 1 is second_implementation.py on one UDP socket. When
the two do not understand each other, one of page and core is wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from meeting import Meeting, meeting_with, open_paths
from second_implementation import (
    ABORT,
    DATA,
    EPOCH,
    GENERATION_BITS,
    GRANT,
    LIVE_SUITES,
    SECONDS_MAX,
    SIGNATURE,
    STATUS,
    Group,
)

from securefabric import _core

PAGE = (Path(__file__).resolve().parent.parent / "native/PROTOCOL.md").read_text()


def runs_here(suite: str) -> bool:
    return {name: refusal for name, _, refusal in _core.suites()}[suite] is None


@pytest.fixture(params=LIVE_SUITES)
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    if not runs_here(request.param):
        pytest.skip("this CPU does not run the suite")
    with meeting_with(request.param) as made:
        yield made


def reduce_once(meeting: Meeting, operation: int) -> None:
    """One all_reduce of the core with the peer, looked at from both sides."""
    peer = meeting.peer
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
    assert received.group == meeting.group.id
    assert (received.slot, received.flags & 0xC) == (2, 4)
    assert received.signature == (1, 12, 1, 0, 0, 5, meeting.group.tail)
    expected = torch.arange(5, dtype=torch.float32) * (operation + 1)
    assert received.fragment == expected.numpy().tobytes()


def drops_of(meeting: Meeting) -> dict[str, int]:
    drops = meeting.fabric.stats()["drops"]
    assert isinstance(drops, dict)
    return drops


def test_all_reduce__with_the_core(meeting: Meeting) -> None:
    open_paths(meeting)
    for operation in range(40):  # several generations of keys on each path
        reduce_once(meeting, operation)
    assert meeting.peer.sending[0].next_number >> GENERATION_BITS > 0
    assert {cause for cause, count in drops_of(meeting).items() if count} <= {"unknown_spi"}


def test_epochs__begun_by_the_peer(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    for epoch in range(1, 4):
        reduce_once(meeting, 2 * epoch - 2)
        peer.offer_epoch()
        peer.run_until(lambda: peer.half is None and not peer.is_moving())
        reduce_once(meeting, 2 * epoch - 1)
        assert peer.epoch == meeting.fabric.stats()["epochs_begun"] == epoch
        assert {path["epoch"] for path in meeting.fabric.paths()} == {epoch}
        peer.run_for(0.2)  # what was sealed in the epoch before has come
    assert {cause for cause, count in drops_of(meeting).items() if count} <= {"unknown_spi"}


@pytest.mark.parametrize("suite", LIVE_SUITES)
def test_epochs__begun_by_the_core(suite: str) -> None:
    if not runs_here(suite):
        pytest.skip("this CPU does not run the suite")
    with meeting_with(suite, epoch_age_s=0.1) as meeting:
        open_paths(meeting)
        operation = 0
        until = time.monotonic() + SECONDS_MAX
        while meeting.peer.epoch < 3:
            assert time.monotonic() < until
            reduce_once(meeting, operation)
            operation += 1
        assert {cause for cause, count in drops_of(meeting).items() if count} <= {"unknown_spi"}


def test_row_11__who_learns_an_old_key_is_not_heard(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    reduce_once(meeting, 0)
    peer.offer_epoch()
    peer.run_until(lambda: peer.half is None and not peer.is_moving())
    reduce_once(meeting, 1)
    replayed = [datagram for sender, _, datagram in peer.recording if sender == 1]
    # The old receive keys go within three probe timeouts after our first packet of the new epoch.
    until = time.monotonic() + SECONDS_MAX
    known = drops_of(meeting)["unknown_spi"]
    while drops_of(meeting)["unknown_spi"] == known:
        assert time.monotonic() < until
        number = peer.sending[0].next_number
        peer.socket.sendto(peer.sending[0].seal(peer.spi, b"\x07", flags=0), peer.to[0])
        peer.run_for(0.05)
    assert number not in peer.acked[0]
    # Everything from before, the EPOCH frame among it, once more, with a number that was not used.
    before = drops_of(meeting)
    forged = EPOCH.pack(11, 2, X25519PrivateKey.generate().public_key().public_bytes_raw())
    for datagram in (*replayed, peer.sending[0].seal(peer.spi, forged, flags=0)):
        path_id = int.from_bytes(datagram[2:4], "big")
        peer.socket.sendto(datagram, peer.to[path_id & 0xFF])
    old = 1 + sum(datagram[1] == 0 for datagram in replayed)
    peer.run_until(lambda: drops_of(meeting)["unknown_spi"] >= before["unknown_spi"] + old)
    reduce_once(meeting, 2)
    assert peer.epoch == meeting.fabric.stats()["epochs_begun"] == 1
    assert drops_of(meeting)["auth_failed"] == 0


def test_long_message_to_the_core__is_announced_granted_and_repaired(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    expected = torch.randint(0, 255, (200_000,), dtype=torch.uint8)
    target = torch.zeros_like(expected)
    work = meeting.backend.recv([target], 1, 7)
    whole = expected.numpy().tobytes()
    signature = SIGNATURE.pack(10, 1, 0, 0, 0, len(whole), meeting.group.tail)
    name = (0, meeting.group.id, 0, len(whole))
    peer.send(0, DATA.pack(1, 1 | 8 | 0x10, 0, 7, *name, 0) + signature)
    peer.run_until(lambda: bool(peer.grants))
    [(_, channel, slot, group, operation, granted, _)] = peer.grants
    assert (channel, slot, group, operation, granted) == (1, 7, meeting.group.id, 0, len(whole))

    pending = list(range(0, len(whole), 1360))
    peer.lose_next = 3
    while pending:
        sent: dict[tuple[int, int], int] = {}
        for offset in pending:
            fragment = whole[offset : offset + 1360]
            flags = 8 | 0x10 | (1 if offset == 0 else 0) | (2 if offset == pending[-1] else 0)
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
    assert (request.flags & 0x1D, request.slot, request.fragment) == (0x19, 3, b"")
    assert request.message_length == 150_001
    peer.send(1, GRANT.pack(4, 1, 3, meeting.group.id, 0, 150_001, 0))
    peer.run_until(lambda: not peer.missing[request.message_id])
    work.wait()
    assert bytes(peer.messages[request.message_id]) == source.numpy().tobytes()
    assert all(data.offset % 16 == 0 for data in peer.data)


def test_status__tells_what_is_known_of_group_and_operation(meeting: Meeting) -> None:
    peer, group = meeting.peer, meeting.group
    open_paths(meeting)
    reduce_once(meeting, 0)
    for name, tail, operation, expected in (
        (group.id, group.tail, 0, (0, 1, 12, 1, 0, 0, 5, group.tail)),
        (group.id, group.tail, 1, (0, 0, 0, 0, 0, 0, 0, group.tail)),
        (group.id ^ 1, bytes(24), 0, (2, 0, 0, 0, 0, 0, 0, bytes(24))),
    ):
        peer.statuses.clear()
        peer.send(0, STATUS.pack(8, 1, name, operation, 0, 0, 0, 0, 0, 0, tail))
        peer.run_until(lambda: bool(peer.statuses))
        flags, *signature = expected
        assert peer.statuses == [(8, flags, name, operation, *signature)]
    reduce_once(meeting, 1)


@pytest.mark.parametrize("frame", ["collective", "message", "status", "abort"])
def test_group__another_one_with_its_id_is_named_and_never_met(
    meeting: Meeting, frame: str
) -> None:
    peer, group = meeting.peer, meeting.group
    open_paths(meeting)
    reduce_once(meeting, 0)
    other = Group(group.id, group.tail[:-1] + bytes([group.tail[-1] ^ 1]))
    ours = torch.ones(5)
    work = (
        meeting.backend.recv([ours], 1, 7)
        if frame == "message"
        else meeting.backend.allreduce([ours])
    )
    signature = SIGNATURE.pack(10, 1, 0, 0, 0, 20, other.tail)
    frames = {
        "collective": peer.reduce_data(other, 1, 1, bytes(20)),
        "message": DATA.pack(1, 1 | 4 | 8, 20, 7, 1, group.id, 0, 20, 0) + signature + bytes(20),
        "status": STATUS.pack(8, 0, group.id, 1, 0, 0, 0, 0, 0, 0, other.tail),
        "abort": ABORT.pack(9, 5, 0, group.id, other.tail),
    }
    peer.send(0, frames[frame])
    peer.run_until(work.is_completed)
    with pytest.raises(RuntimeError, match=r"which group this is: what rank 1 sends.*of rank 0"):
        work.wait()
    assert torch.equal(ours, torch.ones(5))
    peer.run_until(lambda: bool(peer.aborts))
    assert peer.aborts[0][3:] == (group.id, group.tail)


def test_goodbye__ends_the_connection_on_both_sides(meeting: Meeting) -> None:
    peer = meeting.peer
    open_paths(meeting)
    meeting.fabric.shutdown()
    peer.run_until(lambda: peer.closed)


def test_reserved_bits__of_the_header_are_refused_under_valid_keys(meeting: Meeting) -> None:
    """Row 15: also from a member, so that they can get a meaning one day."""
    peer = meeting.peer
    open_paths(meeting)
    heads = [(0x11 ^ 1 << bit, 0) for bit in range(8)] + [(0x11, 1 << bit) for bit in range(1, 8)]
    before = meeting.fabric.stats()["drops"]["bad_version"]
    for start, flags in heads:
        peer.socket.sendto(peer.sending[0].seal(peer.spi, b"\x07", start, flags), peer.to[0])
    peer.run_until_acked(0, peer.send(0, b"\x07"))  # a PING that is as it should be
    assert meeting.fabric.stats()["drops"]["bad_version"] == before + len(heads)
    last = peer.sending[0].next_number - 1
    assert not peer.acked[0] & set(range(last - len(heads), last))


# The page itself


UNITS = {"micros": "µs", "millis": "ms", "seconds": "s"}


def value_of(expression: str, known: dict[str, str]) -> str:
    """A constant of limits.h in the notation of the page's table."""
    if match := re.fullmatch(r"base::Duration::(micros|millis|seconds)\((\d+)\)", expression):
        return f"{match[2]} {UNITS[match[1]]}"
    text = expression.replace("'", "")
    for name, value in known.items():
        text = re.sub(rf"\b{name}\b", value.replace(",", ""), text)
    assert re.fullmatch(r"[\d *+</]+", text), expression
    return f"{eval(text.replace('/', '//')):,}"


def test_constants__of_the_page_are_those_of_the_code() -> None:
    native = Path(__file__).resolve().parent.parent / "native"
    source = (native / "transport/limits.h").read_text()
    source += (native / "crypto/replay_window.h").read_text()
    declared: dict[str, str] = {}
    for name, expression in re.findall(r"constexpr [\w:]+ (k\w+) =\s*([^;]+);", source):
        if "word" not in name.lower():
            declared[name] = value_of(expression, declared)
    listed = dict(re.findall(r"^\| `(k[A-Z]\w+)` \| ([^|]+?) \|", PAGE, re.MULTILINE))
    local = {"kJoinTimeoutDefault", "kDeathTimeoutDefault", "kHeartbeatDefault"}
    assert listed == {name: value for name, value in declared.items() if name not in local}
    for name in set(re.findall(r"`(k[A-Z]\w+)`", PAGE)):
        assert name in listed, name
