"""Messages between a store's clients and its server: encoded explicitly, decoded strictly.

Messages travel in pieces (pieces.py), sealed by CURVE. All numbers are big-endian:

    request = version u8 | op u8 | id u64 | wait_ms u32 | number i64 | item...
    reply   = version u8 | outcome u8 | id u64 | number i64 | item...
    item    = length u32 | bytes

A connection has one request under way; its reply carries the same id. Nothing here is ever
unpickled, evaluated or handed to a parser of more than this format.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

__all__ = [
    "BUSY_S",
    "ITEMS_MAX",
    "KEY_BYTES_MAX",
    "MESSAGE_BYTES_MAX",
    "SLICE_MS",
    "VALUE_BYTES_MAX",
    "Compared",
    "Malformed",
    "Op",
    "Outcome",
    "Reply",
    "Request",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
    "reply_bytes",
]

VERSION: Final = 1

# The first three are those of torch's TCPStore, so that what fits there fits here.
KEY_BYTES_MAX: Final = 8 << 10
VALUE_BYTES_MAX: Final = 8 << 20
ITEMS_MAX: Final = 128 << 10
# A multi_set of several large values.
MESSAGE_BYTES_MAX: Final = 64 << 20
# A server holds a request that waits for at most this long and then answers PENDING; the client
# asks again. So a client that vanished is forgotten soon, and one whose server vanished notices.
SLICE_MS: Final = 5_000
BUSY_S: Final = 0.02

_REQUEST: Final = struct.Struct("!BBQIq")
_REPLY: Final = struct.Struct("!BBQq")
_LENGTH: Final = struct.Struct("!I")


class Op(IntEnum):
    """What a client may ask; comments say what number and items mean."""

    SET = 1  # key, value
    GET = 2  # key; waits until it is there -> value
    ADD = 3  # number: the summand; key -> number: the sum
    COMPARE_SET = 4  # key, expected, desired -> a Compared as number, what differs
    DELETE = 5  # key -> number: whether there was one; queues stay
    CHECK = 6  # keys or queues -> number: whether all are there
    WAIT = 7  # keys; waits until all are there
    NUM_KEYS = 8  # -> number
    APPEND = 9  # key, value
    MULTI_GET = 10  # keys; waits until all are there -> values
    MULTI_SET = 11  # key, value, key, value, ...
    QUEUE_PUSH = 12  # queue, value
    QUEUE_POP = 13  # queue; number: whether to wait -> value
    QUEUE_LEN = 14  # queue -> number
    LIST_KEYS = 15  # -> keys
    COUNTERS = 16  # -> names and decimal numbers, alternating: what the server has counted
    BARRIER = 17  # number, key; waits until the integer there is at least number


class Outcome(IntEnum):
    """How a request ended."""

    OK = 0
    PENDING = 1  # not yet; ask again
    EMPTY = 2  # the queue is empty, and the client did not want to wait
    LIMIT = 3  # a bound of the store; the item says which
    INVALID = 4  # the value that is there does not allow it, or the request is malformed
    BUSY = 5  # no room for it at this moment, and nothing was done; ask again in BUSY_S


class Compared(IntEnum):
    """What a compare_set found. The value comes along only where it differs from what was sent."""

    DIFFERENT = 0
    EQUAL = 1  # or no key where none was expected: the desired value is there now
    ABSENT = 2


class Malformed(ValueError):
    """Bytes that are no message of this version."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    op: Op
    id: int
    """Chosen by the client; the reply repeats it."""
    wait_ms: int = 0
    """How long the server may hold the request; it takes no more than SLICE_MS."""
    number: int = 0
    items: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answers."""

    outcome: Outcome
    id: int
    number: int = 0
    items: list[bytes] = field(default_factory=list)


# How many items a request has: exactly so many; ANY and PAIRS have their own rules.
_ANY: Final = -1
_PAIRS: Final = -2
_ITEMS: Final = {
    Op.SET: 2,
    Op.GET: 1,
    Op.ADD: 1,
    Op.COMPARE_SET: 3,
    Op.DELETE: 1,
    Op.CHECK: _ANY,
    Op.WAIT: _ANY,
    Op.NUM_KEYS: 0,
    Op.APPEND: 2,
    Op.MULTI_GET: _ANY,
    Op.MULTI_SET: _PAIRS,
    Op.QUEUE_PUSH: 2,
    Op.QUEUE_POP: 1,
    Op.QUEUE_LEN: 1,
    Op.LIST_KEYS: 0,
    Op.COUNTERS: 0,
    Op.BARRIER: 1,
}


def encode_request(request: Request) -> bytes:
    """Return the bytes of a request; raises Malformed, naming the bound, for one that is none."""
    _check_request(request.op, request.items)
    head = _REQUEST.pack(
        VERSION, request.op, request.id, min(request.wait_ms, SLICE_MS), request.number
    )
    return _joined(head, request.items)


def decode_request(data: bytes) -> Request:
    """Return the request that the bytes are; raises Malformed for anything else."""
    if len(data) < _REQUEST.size:
        raise Malformed(f"a request of {len(data)} bytes")
    version, op_number, request_id, wait_ms, number = _REQUEST.unpack_from(data)
    _check_version(version)
    try:
        op = Op(op_number)
    except ValueError:
        raise Malformed(f"operation {op_number}") from None
    items = _items(data, _REQUEST.size)
    _check_request(op, items)
    return Request(op, request_id, min(wait_ms, SLICE_MS), number, items)


def encode_reply(reply: Reply) -> bytes:
    """Return the bytes of a reply."""
    return _joined(_REPLY.pack(VERSION, reply.outcome, reply.id, reply.number), reply.items)


def reply_bytes(reply: Reply) -> int:
    """Return how long encode_reply()'s result would be, without making it."""
    return _joined_bytes(_REPLY.size, reply.items)


def decode_reply(data: bytes) -> Reply:
    """Return the reply that the bytes are; raises Malformed for anything else."""
    if len(data) < _REPLY.size:
        raise Malformed(f"a reply of {len(data)} bytes")
    version, outcome_number, request_id, number = _REPLY.unpack_from(data)
    _check_version(version)
    try:
        outcome = Outcome(outcome_number)
    except ValueError:
        raise Malformed(f"outcome {outcome_number}") from None
    return Reply(outcome, request_id, number, _items(data, _REPLY.size))


def _joined_bytes(head_bytes: int, items: list[bytes]) -> int:
    return head_bytes + len(items) * _LENGTH.size + sum(map(len, items))


def _joined(head: bytes, items: list[bytes]) -> bytes:
    size = _joined_bytes(len(head), items)
    if size > MESSAGE_BYTES_MAX:
        raise Malformed(f"a message has {size:,} bytes, at most {MESSAGE_BYTES_MAX:,} may be")
    parts = [head]
    for item in items:
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)


def _items(data: bytes, at: int) -> list[bytes]:
    items: list[bytes] = []
    while at < len(data):
        if len(data) - at < _LENGTH.size:
            raise Malformed("an item's length is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise Malformed(f"an item of {length} bytes where {len(data) - at} are left")
        items.append(data[at : at + length])
        at += length
        if len(items) > 2 * ITEMS_MAX:
            raise Malformed(f"more than {2 * ITEMS_MAX} items")
    return items


def _check_version(version: int) -> None:
    if version != VERSION:
        raise Malformed(
            f"version {version} of the store's protocol, this is version {VERSION}: "
            "all processes of a job must run the same securefabric"
        )


def _check_request(op: Op, items: list[bytes]) -> None:
    wanted = _ITEMS[op]
    is_right = len(items) % 2 == 0 if wanted == _PAIRS else wanted == _ANY or len(items) == wanted
    if not is_right:
        raise Malformed(f"{op.name.lower()} with {len(items)} items")
    keys, values = _keys_and_values(op, items)
    if len(keys) > ITEMS_MAX:
        raise Malformed(f"{len(keys):,} keys at once, at most {ITEMS_MAX:,} may be")
    for key in keys:
        if len(key) > KEY_BYTES_MAX:
            raise Malformed(f"a key has {len(key):,} bytes, at most {KEY_BYTES_MAX:,} may be")
    for value in values:
        if len(value) > VALUE_BYTES_MAX:
            raise Malformed(f"a value has {len(value):,} bytes, at most {VALUE_BYTES_MAX:,} may be")


def _keys_and_values(op: Op, items: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    if op == Op.MULTI_SET:
        return items[::2], items[1::2]
    if _ITEMS[op] == _ANY:
        return items, []
    return items[:1], items[1:]
