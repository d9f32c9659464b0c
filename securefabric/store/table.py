"""What a store holds and who waits for it. Does no I/O: requests and time are arguments.

Every bound of the server stands in ``Limits``. A client (one connection) has at most one request
that waits: a new one takes its place. Each ends after a slice of time (wire.py), whether or not its
client still lives.

Where torch documents nothing, torch's TCPStore is the model; tests/store_contract.py compares them.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from .wire import VALUE_BYTES_MAX, Compared, Op, Outcome, Reply, Request

__all__ = ["Answer", "Limits", "Table"]


class Answer(NamedTuple):
    """A reply and the client that it goes to."""

    client: bytes
    reply: Reply
    queue: bytes | None = None
    """Where the value was taken from, to be put back when the client turns out to be gone."""


_INT64: Final = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server. What would pass one gets Outcome.LIMIT and changes nothing."""

    keys: int = 1 << 20
    """Keys and queues together."""
    bytes: int = 1 << 30
    """Of all keys, values and queued values, each with ENTRY_BYTES on top."""
    queue_values: int = 64 << 10
    """In one queue."""
    waiting_bytes: int = 256 << 20
    """Of the keys that clients wait for, each with ENTRY_BYTES on top."""
    moving_bytes: int = 256 << 20
    """Of requests that have not come whole and replies that were not taken whole (pieces.py)."""
    connections: int = 16 << 10
    """Of members and of strangers that have not been found out yet."""


ENTRY_BYTES: Final = 128  # roughly what Python's own objects take for a key or a queued value


class _Refused(Exception):
    """A request that cannot be served; becomes its reply."""

    def __init__(self, outcome: Outcome, why: str = "") -> None:
        super().__init__(why)
        self.outcome = outcome


@dataclass(slots=True)
class _Waiter:
    request: Request
    missing: set[bytes]
    """Keys that were not there yet."""
    deadline: float
    """In the seconds that the caller counts; the waiter is answered PENDING then."""
    bytes: int
    """As Limits.waiting_bytes counts."""


class Table:
    """Keys, queues and waiters. One thread only."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._values: dict[bytes, bytes] = {}
        self._queues: dict[bytes, deque[bytes]] = {}  # none of them is empty
        self._bytes = 0  # as Limits.bytes counts
        self._waiting_bytes = 0  # as Limits.waiting_bytes counts
        self._waiters: dict[bytes, _Waiter] = {}  # by client
        self._waiting: dict[bytes, dict[bytes, None]] = {}  # by key: clients, first come first
        self._deadlines: list[tuple[float, bytes]] = []  # a heap; entries of the answered remain

    @property
    def waiting(self) -> int:
        """How many clients wait."""
        return len(self._waiters)

    def handle(self, client: bytes, request: Request, now: float) -> list[Answer]:
        """Serve a request; returns the replies that are due now, to this client and others.

        now is in seconds and never decreases.
        """
        self.forget(client)
        answers: list[Answer] = []
        reply = self._serve(request, answers) or self._wait(client, request, now)
        if reply is not None:
            answers.insert(0, _answer(client, request, reply))
        return answers

    def expire(self, now: float) -> list[Answer]:
        """Return the replies to those who have waited for a slice."""
        answers: list[Answer] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, client = heapq.heappop(self._deadlines)
            waiter = self._waiters.get(client)
            if waiter is not None and waiter.deadline == deadline:
                answers.append(Answer(client, Reply(Outcome.PENDING, waiter.request.id)))
                self.forget(client)
        return answers

    def next_deadline(self) -> float | None:
        """Return when expire() has something to do; None while nobody waits."""
        return self._deadlines[0][0] if self._deadlines else None

    def forget(self, client: bytes) -> None:
        """Drop what a client waits for."""
        waiter = self._waiters.pop(client, None)
        if waiter is None:
            return
        self._waiting_bytes -= waiter.bytes
        for key in waiter.missing:
            self._leave(key, client)

    def put_back(self, answer: Answer) -> list[Answer]:
        """Take note that an answer's client is gone; a value popped for it goes to the next."""
        if answer.queue is None:
            return []
        (value,) = answer.reply.items
        self._queues.setdefault(answer.queue, deque()).appendleft(value)
        self._bytes += len(value) + ENTRY_BYTES
        return list(self._announce(answer.queue))

    def _serve(self, request: Request, answers: list[Answer]) -> Reply | None:
        try:
            return _SERVE[request.op](self, request, answers)
        except _Refused as refused:
            text = [str(refused).encode()] if str(refused) else []
            return Reply(refused.outcome, request.id, 0, text)

    # Waiting

    def _wait(self, client: bytes, request: Request, now: float) -> Reply | None:
        """Let a request wait; returns its reply when there is no room for that."""
        cost = sum(map(len, request.items)) + ENTRY_BYTES * len(request.items)
        if self._waiting_bytes + cost > self._limits.waiting_bytes:
            why = f"keys that clients wait for may have {self._limits.waiting_bytes:,} bytes"
            return Reply(Outcome.LIMIT, request.id, 0, [why.encode()])
        self._waiting_bytes += cost
        deadline = now + request.wait_ms / 1000
        self._waiters[client] = waiter = _Waiter(request, set(), deadline, cost)
        self._wait_for_missing(client, waiter)
        heapq.heappush(self._deadlines, (deadline, client))
        return None

    def _wait_for_missing(self, client: bytes, waiter: _Waiter) -> None:
        keys = waiter.request.items
        # A barrier's key is there before its count is.
        is_barrier = waiter.request.op == Op.BARRIER
        waiter.missing = {key for key in keys if is_barrier or not self._has(key)}
        for key in waiter.missing:
            self._waiting.setdefault(key, {})[client] = None

    def _announce(self, key: bytes) -> Iterator[Answer]:
        """Answer those, first come first served, whom a change of this key or queue satisfies."""
        for client in list(self._waiting.get(key, ())):
            waiter = self._waiters[client]
            if len(waiter.missing) > 1:
                waiter.missing.discard(key)
                self._leave(key, client)
                continue
            request = waiter.request
            reply = self._serve(request, [])
            if reply is not None:
                self.forget(client)
                yield _answer(client, request, reply)
            elif not self._has(key) or request.op == Op.BARRIER:
                continue  # a queue that another one has emptied, or a count that is too low
            else:  # another key has gone since
                self._leave(key, client)
                self._wait_for_missing(client, waiter)

    def _leave(self, key: bytes, client: bytes) -> None:
        clients = self._waiting[key]
        del clients[client]
        if not clients:
            del self._waiting[key]

    # Operations: each returns its reply, or None to wait, and adds replies to others to `answers`

    def _collect(self, request: Request, answers: list[Answer]) -> Reply | None:
        del answers
        if not all(map(self._has, request.items)):
            return None
        wants_values = request.op != Op.WAIT
        # As TCPStore: a queue counts as there, and reads as nothing.
        items = [self._values.get(key, b"") for key in request.items] if wants_values else []
        return Reply(Outcome.OK, request.id, 0, items)

    def _barrier(self, request: Request, answers: list[Answer]) -> Reply | None:
        del answers
        arrived = self._number(request.items[0])
        return Reply(Outcome.OK, request.id, arrived) if arrived >= request.number else None

    def _set(self, request: Request, answers: list[Answer]) -> Reply:
        key, value = request.items
        self._store([(key, value)], answers)
        return Reply(Outcome.OK, request.id)

    def _multi_set(self, request: Request, answers: list[Answer]) -> Reply:
        self._store(list(zip(request.items[::2], request.items[1::2], strict=True)), answers)
        return Reply(Outcome.OK, request.id)

    def _add(self, request: Request, answers: list[Answer]) -> Reply:
        (key,) = request.items
        number = self._number(key)
        # Wraps around, as 64-bit integers do elsewhere.
        total = (number + request.number + _INT64) % (2 * _INT64) - _INT64
        self._store([(key, b"%d" % total)], answers)
        return Reply(Outcome.OK, request.id, total)

    def _compare_set(self, request: Request, answers: list[Answer]) -> Reply:
        key, expected, desired = request.items
        present = self._values.get(key)
        if present == expected or (present is None and not expected):
            self._store([(key, desired)], answers)
            return Reply(Outcome.OK, request.id, Compared.EQUAL)
        if present is None:
            return Reply(Outcome.OK, request.id, Compared.ABSENT)
        return Reply(Outcome.OK, request.id, Compared.DIFFERENT, [present])

    def _append(self, request: Request, answers: list[Answer]) -> Reply:
        key, value = request.items
        present = self._values.get(key, b"")
        if len(present) + len(value) > VALUE_BYTES_MAX:
            raise _Refused(Outcome.LIMIT, f"a value may have at most {VALUE_BYTES_MAX:,} bytes")
        self._store([(key, present + value)], answers)
        return Reply(Outcome.OK, request.id)

    def _delete(self, request: Request, answers: list[Answer]) -> Reply:
        del answers
        (key,) = request.items
        value = self._values.pop(key, None)
        if value is not None:
            self._bytes -= len(key) + len(value) + ENTRY_BYTES
        return Reply(Outcome.OK, request.id, int(value is not None))

    def _check(self, request: Request, answers: list[Answer]) -> Reply:
        del answers
        return Reply(Outcome.OK, request.id, int(all(map(self._has, request.items))))

    def _num_keys(self, request: Request, answers: list[Answer]) -> Reply:
        del answers
        return Reply(Outcome.OK, request.id, len(self._values))

    def _list_keys(self, request: Request, answers: list[Answer]) -> Reply:
        del answers
        return Reply(Outcome.OK, request.id, 0, list(self._values))

    def _queue_push(self, request: Request, answers: list[Answer]) -> Reply:
        queue, value = request.items
        length = len(self._queues.get(queue, ()))
        if length >= self._limits.queue_values:
            raise _Refused(Outcome.LIMIT, f"a queue may hold at most {length:,} values")
        self._check_room(len(value) + ENTRY_BYTES, int(length == 0))
        self._queues.setdefault(queue, deque()).append(value)
        self._bytes += len(value) + ENTRY_BYTES
        answers.extend(self._announce(queue))
        return Reply(Outcome.OK, request.id)

    def _queue_pop(self, request: Request, answers: list[Answer]) -> Reply | None:
        del answers
        (queue,) = request.items
        if queue in self._queues:
            return Reply(Outcome.OK, request.id, 0, [self._take(queue)])
        return None if request.number else Reply(Outcome.EMPTY, request.id)

    def _queue_len(self, request: Request, answers: list[Answer]) -> Reply:
        del answers
        return Reply(Outcome.OK, request.id, len(self._queues.get(request.items[0], ())))

    # Storage

    def _has(self, key: bytes) -> bool:
        return key in self._values or key in self._queues

    def _number(self, key: bytes) -> int:
        """Return the integer that a value begins with, as C's strtoll reads it; 0 without one."""
        found = re.match(rb"\s*([+-]?\d{1,19})(?!\d)", self._values.get(key, b"0"))
        number = int(found.group(1)) if found else _INT64
        if not -_INT64 <= number < _INT64:
            raise _Refused(Outcome.INVALID, f"the value of {_shown(key)} is no 64-bit integer")
        return number

    def _store(self, pairs: Iterable[tuple[bytes, bytes]], answers: list[Answer]) -> None:
        wanted = dict(pairs)
        grown = 0
        new_keys = 0
        for key, value in wanted.items():
            present = self._values.get(key)
            if present is None:
                new_keys += 1
                grown += len(key) + len(value) + ENTRY_BYTES
            else:
                grown += len(value) - len(present)
        self._check_room(grown, new_keys)
        self._bytes += grown
        self._values.update(wanted)
        for key in wanted:
            answers.extend(self._announce(key))

    def _check_room(self, grown: int, new_keys: int) -> None:
        limits = self._limits
        if grown > 0 and self._bytes + grown > limits.bytes:
            raise _Refused(Outcome.LIMIT, f"the store may hold at most {limits.bytes:,} bytes")
        if new_keys and len(self._values) + len(self._queues) + new_keys > limits.keys:
            raise _Refused(Outcome.LIMIT, f"the store may hold at most {limits.keys:,} keys")

    def _take(self, queue: bytes) -> bytes:
        values = self._queues[queue]
        value = values.popleft()
        if not values:
            del self._queues[queue]
        self._bytes -= len(value) + ENTRY_BYTES
        return value


_SERVE: Final[dict[Op, Callable[[Table, Request, list[Answer]], Reply | None]]] = {
    Op.SET: Table._set,
    Op.GET: Table._collect,
    Op.ADD: Table._add,
    Op.COMPARE_SET: Table._compare_set,
    Op.DELETE: Table._delete,
    Op.CHECK: Table._check,
    Op.WAIT: Table._collect,
    Op.NUM_KEYS: Table._num_keys,
    Op.APPEND: Table._append,
    Op.MULTI_GET: Table._collect,
    Op.MULTI_SET: Table._multi_set,
    Op.QUEUE_PUSH: Table._queue_push,
    Op.QUEUE_POP: Table._queue_pop,
    Op.QUEUE_LEN: Table._queue_len,
    Op.LIST_KEYS: Table._list_keys,
    Op.BARRIER: Table._barrier,
}


def _answer(client: bytes, request: Request, reply: Reply) -> Answer:
    is_popped = request.op == Op.QUEUE_POP and reply.items
    return Answer(client, reply, request.items[0] if is_popped else None)


def _shown(key: bytes) -> str:
    return repr(key[:64].decode("utf-8", "replace"))
