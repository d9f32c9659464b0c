from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefabric.store import pieces as module
from securefabric.store.pieces import (
    PIECE_BYTES,
    STALLED_S,
    WINDOW_BYTES,
    NoRoom,
    ReplyPieces,
    Traffic,
    is_pull,
    pieces,
)
from securefabric.store.table import Answer
from securefabric.store.wire import MESSAGE_BYTES_MAX, Malformed, Outcome, Reply

A, B = b"client a", b"client b"
ANSWER = Answer(A, Reply(Outcome.OK, 1))
SIZES = [1, PIECE_BYTES, PIECE_BYTES + 1, WINDOW_BYTES, WINDOW_BYTES + 1, 3 * WINDOW_BYTES + 5]


def message_of(size: int) -> bytes:
    return (b"0123456789" * (size // 10 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
def test_request__arrives_whole(size: int) -> None:
    traffic = Traffic(1 << 20)
    *first, last = pieces(message_of(size))
    for piece in first:
        assert traffic.receive(A, piece, 0.0) is None
    assert traffic.receive(A, last, 0.0) == message_of(size)
    assert traffic._bytes == 0
    assert all(len(piece) <= module.FRAME_BYTES_MAX - 33 for piece in (*first, last))


@pytest.mark.parametrize("size", SIZES)
def test_reply__is_pulled_window_by_window(size: int) -> None:
    traffic, client = Traffic(1 << 20), ReplyPieces()
    frames = traffic.hold(ANSWER, message_of(size), 0.0)
    reply = None
    while frames:
        assert len(frames) <= module.WINDOW_PIECES
        assert reply is None
        for frame in frames:
            reply = client.take(frame)
        due = client.pull_due
        assert (due is None) == (reply is not None)
        frames = traffic.pull(A, due, 0.0) if due is not None else []
        assert due is None or is_pull(due)
    assert reply == message_of(size)
    assert traffic._bytes == 0


def test_request__beyond_the_room_is_forgotten() -> None:
    traffic = Traffic(3 * PIECE_BYTES)
    for client in (A, B):
        first, second, third = pieces(message_of(3 * PIECE_BYTES))
        assert traffic.receive(client, first, 0.0) is None
    assert traffic.receive(A, second, 0.0) is None
    with pytest.raises(NoRoom) as caught:
        traffic.receive(B, second, 0.0)
    assert caught.value.head == message_of(16)
    assert traffic.receive(B, third, 0.0) is None  # the rest of it is nothing
    assert traffic.receive(A, third, 0.0) == message_of(3 * PIECE_BYTES)
    assert traffic._bytes == 0


def test_request__a_new_one_takes_the_place_of_one_that_is_not_whole() -> None:
    traffic = Traffic(1 << 20)
    traffic.receive(A, next(pieces(message_of(2 * PIECE_BYTES))), 0.0)
    (new,) = pieces(b"new")
    assert traffic.receive(A, new, 0.0) == b"new"
    assert traffic._bytes == 0


def test_stalled__are_forgotten_and_their_answers_told() -> None:
    traffic = Traffic(1 << 20)
    traffic.receive(A, next(pieces(message_of(2 * PIECE_BYTES))), 0.0)
    traffic.hold(ANSWER, message_of(2 * WINDOW_BYTES), 1.0)
    traffic.hold(ANSWER._replace(client=B), message_of(3 * WINDOW_BYTES), 1.0)
    traffic.pull(B, module.pull(WINDOW_BYTES), 2.0)
    assert traffic.expire(STALLED_S) == []
    assert traffic.expire(STALLED_S + 1) == [ANSWER]
    assert traffic.pull(A, module.pull(WINDOW_BYTES), STALLED_S + 1) == []
    assert traffic.expire(STALLED_S + 2) == [ANSWER._replace(client=B)]
    assert traffic._bytes == 0


def test_pull__of_another_place_is_nothing() -> None:
    traffic = Traffic(1 << 20)
    traffic.hold(ANSWER, message_of(3 * WINDOW_BYTES), 0.0)
    for at in (0, 1, WINDOW_BYTES - 1, 2 * WINDOW_BYTES):
        assert traffic.pull(A, module.pull(at), 0.0) == []
    assert len(traffic.pull(A, module.pull(WINDOW_BYTES), 0.0)) == module.WINDOW_PIECES


def test_reply__that_is_another_or_too_long_is_malformed() -> None:
    head = module._HEAD
    for first, second in (
        (head.pack(MESSAGE_BYTES_MAX + 1, 0) + b"x", None),
        (head.pack(9, 1) + b"x", None),
        (head.pack(9, 0) + b"x", head.pack(8, 1) + b"x"),
        (head.pack(9, 0) + b"x", head.pack(9, 2) + b"x"),
        (head.pack(1, 0), None),
        (b"", None),
    ):
        client = ReplyPieces()
        if second is not None:
            assert client.take(first) is None
        with pytest.raises(Malformed):
            client.take(second or first)


FRAMES = st.builds(
    lambda total, at, body: module._HEAD.pack(total, at) + body,
    st.integers(0, 12),
    st.integers(0, 12),
    st.binary(max_size=12),
)


@given(st.lists(st.tuples(st.sampled_from([A, B]), FRAMES), max_size=30))
def test_request__whatever_comes_the_books_balance(frames: list[tuple[bytes, bytes]]) -> None:
    traffic = Traffic(8)
    for client, frame in frames:
        try:
            traffic.receive(client, frame, 0.0)
        except (Malformed, NoRoom):
            assert client not in traffic._requests
        held = sum(len(request.data) for request in traffic._requests.values())
        assert traffic._bytes == held <= 8
