"""Messages cross a connection in pieces, so that no client fills the server's memory uncounted.

    piece = total u32 | at u32 | bytes    of a message of `total` bytes, those from `at` on
    pull  = at u32                        its sender has a reply up to there and wants the rest

libzmq buffers one frame before it knows whom it is from, and cannot say how much a client has yet
to read. So a frame is small, and of a long reply only WINDOW_PIECES go out before the client pulls.
All the rest waits here, where it is counted. Does no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .table import Answer
from .wire import MESSAGE_BYTES_MAX, Malformed

__all__ = [
    "FRAME_BYTES_MAX",
    "WINDOW_BYTES",
    "WINDOW_PIECES",
    "NoRoom",
    "ReplyPieces",
    "Traffic",
    "is_pull",
    "pieces",
    "pull",
]

PIECE_BYTES: Final = 16 << 10  # of a message, in one frame
WINDOW_PIECES: Final = 4
WINDOW_BYTES: Final = WINDOW_PIECES * PIECE_BYTES
_HEAD: Final = struct.Struct("!II")
_PULL: Final = struct.Struct("!I")
# What libzmq is told; CURVE adds 33 bytes to a frame, and its handshake's frames are shorter.
FRAME_BYTES_MAX: Final = PIECE_BYTES + _HEAD.size + 64
STALLED_S: Final = 30.0  # without the next piece or pull: its client is taken for gone


def pieces(message: bytes, first: int = 0, count: int | None = None) -> Iterator[bytes]:
    """Return the frames of a message, or of `count` pieces from its byte `first` on."""
    end = len(message) if count is None else min(len(message), first + count * PIECE_BYTES)
    for at in range(first, end, PIECE_BYTES):
        yield _HEAD.pack(len(message), at) + message[at : at + PIECE_BYTES]


def pull(at: int) -> bytes:
    """Return the frame that asks for the rest of a reply."""
    return _PULL.pack(at)


def is_pull(frame: bytes) -> bool:
    """Whether a client's frame is a pull; any other should be a piece."""
    return len(frame) == _PULL.size


def _decoded(frame: bytes) -> tuple[int, int, bytes]:
    if len(frame) <= _HEAD.size:
        raise Malformed(f"a piece of {len(frame)} bytes")
    total, at = _HEAD.unpack_from(frame)
    body = frame[_HEAD.size :]
    if total > MESSAGE_BYTES_MAX:
        raise Malformed(f"a message of {total:,} bytes, at most {MESSAGE_BYTES_MAX:,} may be")
    if at + len(body) > total or len(body) > PIECE_BYTES:
        raise Malformed(f"a piece of {len(body)} bytes at {at} of {total}")
    return total, at, body


class NoRoom(Exception):
    """As much is on its way as may be. Has the first bytes of the request, if that was so."""

    def __init__(self, head: bytes) -> None:
        super().__init__()
        self.head = head


class ReplyPieces:
    """A reply on its way in, at its client."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._total = 0

    def take(self, frame: bytes) -> bytes | None:
        """Take the next piece; returns the reply when it is whole. Raises Malformed."""
        total, at, body = _decoded(frame)
        if at != len(self._data) or (at > 0 and total != self._total):
            raise Malformed("a piece of another reply")
        self._total = total
        if len(body) == total:
            return body
        self._data += body
        return bytes(self._data) if len(self._data) == total else None

    @property
    def pull_due(self) -> bytes | None:
        """The pull to be sent now, if the server has sent all that it may without one."""
        is_due = len(self._data) % WINDOW_BYTES == 0 and 0 < len(self._data) < self._total
        return pull(len(self._data)) if is_due else None


@dataclass(slots=True)
class _Request:
    data: bytearray
    total: int
    """Bytes that the whole request has."""
    stalls_at: float
    """In the seconds that the caller counts."""


@dataclass(slots=True)
class _Reply:
    answer: Answer
    data: bytes
    sent: int
    """Bytes that went out; the client pulls from here."""
    stalls_at: float


class Traffic:
    """Requests that have not come whole and replies that were not taken whole, at the server.

    Both by client, those that stall first at the front. One thread only.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._requests: dict[bytes, _Request] = {}
        self._replies: dict[bytes, _Reply] = {}

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may be held."""
        return self._bytes + size <= self._bytes_max

    def receive(self, client: bytes, frame: bytes, now: float) -> bytes | None:
        """Take a piece of a request; returns the request when it is whole.

        Raises Malformed or NoRoom; the request is forgotten then.
        """
        request = self._requests.pop(client, None)
        if request is not None:
            self._bytes -= len(request.data)
        total, at, body = _decoded(frame)
        if at == 0:
            if len(body) == total:
                return body
            request = _Request(bytearray(), total, now)
        if request is None:
            return None  # the rest of one that was refused
        if at != len(request.data) or total != request.total:
            raise Malformed("a piece of another request")
        if not self.has_room(at + len(body)):
            raise NoRoom(bytes(request.data[:16]) or body[:16])
        request.data += body
        if len(request.data) == total:
            return bytes(request.data)
        request.stalls_at = now + STALLED_S
        self._requests[client] = request
        self._bytes += len(request.data)
        return None

    def hold(self, answer: Answer, data: bytes, now: float) -> list[bytes]:
        """Return the frames that go out at once; what is left is held until it is pulled."""
        self._hold(_Reply(answer, data, WINDOW_BYTES, now + STALLED_S))
        return list(pieces(data, 0, WINDOW_PIECES))

    def pull(self, client: bytes, frame: bytes, now: float) -> list[bytes]:
        """Return the next frames of a client's reply; none if there is no such reply."""
        (at,) = _PULL.unpack(frame)
        reply = self._replies.get(client)
        if reply is None or at != reply.sent:
            return []
        self.drop_reply(client)
        reply.sent += WINDOW_BYTES
        reply.stalls_at = now + STALLED_S
        self._hold(reply)
        return list(pieces(reply.data, at, WINDOW_PIECES))

    def drop_reply(self, client: bytes) -> Answer | None:
        """Forget what is left of a client's reply; returns the answer that it does not get."""
        reply = self._replies.pop(client, None)
        if reply is None:
            return None
        self._bytes -= len(reply.data)
        return reply.answer

    def expire(self, now: float) -> list[Answer]:
        """Forget those who stalled; returns the answers that they do not get."""
        for client, request in list(self._requests.items()):
            if request.stalls_at > now:
                break
            del self._requests[client]
            self._bytes -= len(request.data)
        lost = []
        for client, reply in list(self._replies.items()):
            if reply.stalls_at > now:
                break
            self.drop_reply(client)
            lost.append(reply.answer)
        return lost

    def _hold(self, reply: _Reply) -> None:
        if reply.sent < len(reply.data):
            self._replies[reply.answer.client] = reply
            self._bytes += len(reply.data)
