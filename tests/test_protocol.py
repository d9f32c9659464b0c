"""A second implementation of PROTOCOL.md against the core: keys, entries, packets, messages.

Rank 0 is a real fabric with its backend, rank 1 is second_implementation.py on one UDP socket. When
the two do not understand each other, one of page and core is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from meeting import Meeting, meeting_with, open_paths
from second_implementation import DATA, GENERATION_BITS, GRANT, LIVE_SUITES, SIGNATURE

from securefabric import _core

PAGE = (Path(__file__).resolve().parent.parent / "native/PROTOCOL.md").read_text()


@pytest.fixture(params=LIVE_SUITES)
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    refusal = {suite: refusal for suite, _, refusal in _core.suites()}[request.param]
    if refusal is not None:
        pytest.skip(refusal)
    with meeting_with(request.param) as made:
        yield made


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
    listed = dict(re.findall(r"^\| `(k[A-Z]\w+)` \| ([^|]+?) \|", PAGE, re.MULTILINE))
    local = {"kJoinTimeoutDefault", "kDeathTimeoutDefault", "kHeartbeatDefault"}
    assert listed == {name: value for name, value in declared.items() if name not in local}
    for name in set(re.findall(r"`(k[A-Z]\w+)`", PAGE)):
        assert name in listed, name
