from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefabric.store import wire
from securefabric.store.wire import (
    Malformed,
    Op,
    Outcome,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

CORPUS = sorted((Path(__file__).parent / "fuzz/corpus/store_fuzz").iterdir())


def test_request__golden_bytes() -> None:
    data = encode_request(Request(Op.ADD, 0x0102, 300, -2, [b"key"]))
    assert data.hex() == "010300000000000001020000012cfffffffffffffffe000000036b6579"
    assert decode_request(data) == Request(Op.ADD, 0x0102, 300, -2, [b"key"])


def test_reply__golden_bytes() -> None:
    data = encode_reply(Reply(Outcome.OK, 7, 5, [b"", b"v"]))
    assert data.hex() == "010000000000000000070000000000000005000000000000000176"
    assert decode_reply(data) == Reply(Outcome.OK, 7, 5, [b"", b"v"])


U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
ITEMS = st.lists(st.binary(max_size=20), max_size=6)


@given(U64, st.integers(0, wire.SLICE_MS), I64, ITEMS)
def test_request__comes_back_as_it_went(number: int, wait_ms: int, value: int, keys: list) -> None:
    request = Request(Op.MULTI_GET, number, wait_ms, value, keys)
    assert decode_request(encode_request(request)) == request


@given(st.sampled_from(Outcome), U64, I64, ITEMS)
def test_reply__comes_back_as_it_went(
    outcome: Outcome, number: int, value: int, items: list
) -> None:
    reply = Reply(outcome, number, value, items)
    assert decode_reply(encode_reply(reply)) == reply


def decoded(data: bytes) -> Request | None:
    """What a server makes of bytes: a request whose bytes these are, or nothing."""
    try:
        request = decode_request(data)
    except Malformed:
        return None
    again = encode_request(request)
    assert again[:10] + again[14:] == data[:10] + data[14:]  # wait_ms may have been cut to a slice
    return request


@given(st.binary(max_size=200))
def test_decode__any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    decoded(data)
    decoded(b"\x01" + data)
    for candidate in (data, b"\x01\x00" + data):
        with contextlib.suppress(Malformed):
            assert encode_reply(decode_reply(candidate)) == candidate


@given(st.sampled_from(Op), ITEMS, st.data())
def test_decode__a_changed_message_is_another_message_or_malformed(
    op: Op, items: list, data: st.DataObject
) -> None:
    good = Request(op, 1, 2, 3, items)
    try:
        encoded = bytearray(encode_request(good))
    except Malformed:
        return
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    assert decoded(bytes(encoded)) != good or 10 <= at < 14
    for length in range(len(encoded)):
        shorter = decoded(bytes(encoded[:length]))
        assert shorter is None or len(shorter.items) < len(items)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_decode__corpus_is_survived(path: Path) -> None:
    decoded(path.read_bytes())


def test_decode__a_pickle_is_no_message() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert decoded(pickle.dumps({"key": "value"}, protocol)) is None


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request(Op.SET, 1, items=[b"k" * (wire.KEY_BYTES_MAX + 1), b""]), "a key has 8,193 bytes"),
        (
            Request(Op.SET, 1, items=[b"k", bytes(wire.VALUE_BYTES_MAX + 1)]),
            "a value has 8,388,609 bytes",
        ),
        (Request(Op.CHECK, 1, items=[b""] * (wire.ITEMS_MAX + 1)), "131,073 keys at once"),
        (Request(Op.SET, 1, items=[b"k"]), "set with 1 items"),
        (Request(Op.MULTI_SET, 1, items=[b"k"]), "multi_set with 1 items"),
        (
            Request(Op.MULTI_SET, 1, items=[b"k", bytes(wire.VALUE_BYTES_MAX)] * 8),
            "a message has 67,",
        ),
    ],
    ids=["key", "value", "keys", "too few", "odd", "message"],
)
def test_encode__names_the_bound(request_: Request, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        encode_request(request_)


def test_decode__bounds_hold_for_the_reader_too(monkeypatch: pytest.MonkeyPatch) -> None:
    long_key = Request(Op.GET, 1, items=[b"k" * 100])
    data = encode_request(long_key)
    monkeypatch.setattr(wire, "KEY_BYTES_MAX", 99)
    with pytest.raises(Malformed, match="a key has 100 bytes, at most 99"):
        decode_request(data)


def test_decode__another_version_is_named() -> None:
    data = b"\x02" + encode_request(Request(Op.NUM_KEYS, 1))[1:]
    with pytest.raises(Malformed, match=r"version 2 .* must run the same securefabric"):
        decode_request(data)


def test_decode__nobody_waits_longer_than_a_slice() -> None:
    data = bytearray(encode_request(Request(Op.GET, 1, 10, 0, [b"k"])))
    data[10:14] = b"\xff" * 4
    assert decode_request(bytes(data)).wait_ms == wire.SLICE_MS
