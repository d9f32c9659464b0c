from __future__ import annotations

import importlib.util
from collections import deque
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from securefabric.store.table import ENTRY_BYTES, Limits, Table
from securefabric.store.wire import VALUE_BYTES_MAX, Compared, Op, Outcome, Reply, Request

A, B, C = b"client a", b"client b", b"client c"


class Job:
    """A table, with requests written shortly; time stands still unless told."""

    def __init__(self, **limits: int) -> None:
        self.table = Table(Limits(**limits))
        self.now = 100.0

    def ask(
        self, client: bytes, op: Op, *items: bytes, number: int = 0, wait_ms: int = 1000
    ) -> Any:
        """Replies by client."""
        request = Request(op, 1, wait_ms, number, list(items))
        return {a.client: a.reply for a in self.table.handle(client, request, self.now)}

    def one(self, op: Op, *items: bytes, number: int = 0) -> Reply:
        answers = self.ask(A, op, *items, number=number)
        assert list(answers) == [A]
        reply: Reply = answers[A]
        return reply

    def expire(self, seconds: float) -> dict[bytes, Outcome]:
        self.now += seconds
        return {a.client: a.reply.outcome for a in self.table.expire(self.now)}


# Waiting


def test_get__waits_until_another_client_sets() -> None:
    job = Job()
    assert job.ask(A, Op.GET, b"k") == {}
    assert job.ask(B, Op.SET, b"other", b"1").keys() == {B}
    answers = job.ask(B, Op.SET, b"k", b"v")
    assert answers[A].items == [b"v"]
    assert job.table.waiting == 0


def test_wait__needs_all_keys_in_any_order() -> None:
    job = Job()
    assert job.ask(A, Op.WAIT, b"x", b"y", b"x") == {}
    assert job.ask(B, Op.SET, b"y", b"").keys() == {B}
    assert job.ask(B, Op.ADD, b"x", number=1).keys() == {A, B}


def test_wait__many_clients_wake_at_once() -> None:
    job = Job()
    clients = [b"%d" % n for n in range(256)]
    for client in clients:
        assert job.ask(client, Op.WAIT, b"door") == {}
    assert job.ask(A, Op.SET, b"door", b"").keys() == {A, *clients}


def test_multi_get__collects_again_when_a_key_went_meanwhile() -> None:
    job = Job()
    job.one(Op.SET, b"x", b"1")
    assert job.ask(A, Op.MULTI_GET, b"x", b"y") == {}
    job.ask(B, Op.DELETE, b"x")
    assert job.ask(B, Op.SET, b"y", b"2").keys() == {B}
    assert job.ask(B, Op.SET, b"x", b"3")[A].items == [b"3", b"2"]


def test_wait__keys_that_are_waited_for_are_bounded() -> None:
    job = Job(waiting_bytes=3 * (ENTRY_BYTES + 1))
    assert job.ask(A, Op.WAIT, b"x", b"y") == {}
    assert job.ask(B, Op.WAIT, b"x", b"y")[B].outcome == Outcome.LIMIT
    assert job.ask(C, Op.GET, b"z") == {}
    assert job.ask(A, Op.WAIT, b"y", b"z") == {}  # in the place of the one before
    job.expire(10)
    assert job.ask(B, Op.WAIT, b"x", b"y", b"z") == {}


def test_expire__after_a_slice_and_not_before() -> None:
    job = Job()
    job.ask(A, Op.GET, b"k", wait_ms=500)
    job.ask(B, Op.GET, b"k", wait_ms=1000)
    assert job.table.next_deadline() == 100.5
    assert job.expire(0.499) == {}
    assert job.expire(0.001) == {A: Outcome.PENDING}
    assert job.ask(C, Op.SET, b"k", b"v").keys() == {B, C}
    assert job.expire(10) == {}
    assert job.table.next_deadline() is None


def test_handle__a_client_waits_for_one_request_only() -> None:
    job = Job()
    for n in range(1000):
        assert job.ask(A, Op.WAIT, b"%d" % n, b"same") == {}
    assert job.table.waiting == 1
    assert job.ask(B, Op.MULTI_SET, b"0", b"", b"same", b"").keys() == {B}
    assert job.ask(B, Op.SET, b"999", b"").keys() == {A, B}


def test_forget__a_client_that_vanished_leaves_nothing() -> None:
    job = Job()
    job.ask(A, Op.WAIT, b"x", b"y")
    job.table.forget(A)
    job.table.forget(A)
    assert job.table.waiting == 0
    assert not job.table._waiting
    assert job.ask(B, Op.MULTI_SET, b"x", b"", b"y", b"").keys() == {B}


def test_barrier__opens_when_enough_have_counted() -> None:
    job = Job()
    for client in (A, B):
        job.ask(client, Op.ADD, b"door", number=1)
        assert job.ask(client, Op.BARRIER, b"door", number=3) == {}
    assert job.ask(C, Op.SET, b"other", b"").keys() == {C}
    assert job.ask(C, Op.ADD, b"door", number=1).keys() == {A, B, C}
    assert job.ask(A, Op.BARRIER, b"door", number=2)[A].number == 3
    assert job.ask(A, Op.BARRIER, b"door", number=4) == {}
    answers = job.ask(B, Op.SET, b"door", b"words")  # fails who waits, not who sets
    assert {c: reply.outcome for c, reply in answers.items()} == {
        A: Outcome.INVALID,
        B: Outcome.OK,
    }
    assert not job.table._waiting


def test_wait__a_queue_counts_as_there() -> None:
    job = Job()
    assert job.ask(A, Op.WAIT, b"q", b"k") == {}
    assert job.ask(B, Op.GET, b"q") == {}
    assert job.ask(C, Op.QUEUE_PUSH, b"q", b"1")[B].items == [b""]
    assert job.ask(C, Op.SET, b"k", b"").keys() == {A, C}


# Queues


def test_queue_pop__first_come_first_served() -> None:
    job = Job()
    assert job.ask(A, Op.QUEUE_POP, b"q", number=1) == {}
    assert job.ask(B, Op.QUEUE_POP, b"q", number=1) == {}
    assert job.ask(C, Op.QUEUE_PUSH, b"q", b"1")[A].items == [b"1"]
    assert job.ask(C, Op.QUEUE_PUSH, b"q", b"2")[B].items == [b"2"]
    job.ask(C, Op.QUEUE_PUSH, b"q", b"3")
    assert job.one(Op.QUEUE_LEN, b"q").number == 1


def test_put_back__goes_to_the_head_or_to_the_next_who_waits() -> None:
    job = Job()
    for value in (b"1", b"2"):
        job.one(Op.QUEUE_PUSH, b"q", value)
    (lost,) = job.table.handle(A, Request(Op.QUEUE_POP, 1, 0, 1, [b"q"]), job.now)
    assert job.table.put_back(lost) == []
    assert job.one(Op.QUEUE_POP, b"q", number=1).items == [b"1"]
    (lost,) = job.table.handle(A, Request(Op.QUEUE_POP, 1, 0, 1, [b"q"]), job.now)
    job.ask(B, Op.QUEUE_POP, b"q", number=1)
    (handed_on,) = job.table.put_back(lost)
    assert (handed_on.client, handed_on.reply.items, handed_on.queue) == (B, [b"2"], b"q")


# Bounds


def test_limits__keys() -> None:
    job = Job(keys=3)
    job.one(Op.SET, b"1", b"")
    job.one(Op.QUEUE_PUSH, b"q", b"")
    assert job.one(Op.MULTI_SET, b"2", b"", b"3", b"").outcome == Outcome.LIMIT
    assert job.one(Op.NUM_KEYS).number == 1  # a refused request changes nothing
    assert job.one(Op.ADD, b"2", number=1).outcome == Outcome.OK
    for op, items in ((Op.SET, (b"3", b"")), (Op.QUEUE_PUSH, (b"r", b"")), (Op.ADD, (b"3",))):
        reply = job.one(op, *items)
        assert (reply.outcome, reply.items) == (
            Outcome.LIMIT,
            [b"the store may hold at most 3 keys"],
        )
    assert job.one(Op.SET, b"1", b"again").outcome == Outcome.OK
    job.one(Op.DELETE, b"1")
    assert job.one(Op.SET, b"3", b"").outcome == Outcome.OK


def test_limits__bytes() -> None:
    job = Job(bytes=2 * ENTRY_BYTES + 10)
    assert job.one(Op.SET, b"k", b"12345").outcome == Outcome.OK
    assert job.one(Op.QUEUE_PUSH, b"q", b"12345").outcome == Outcome.LIMIT
    assert job.one(Op.QUEUE_PUSH, b"q", b"1234").outcome == Outcome.OK
    assert job.one(Op.APPEND, b"k", b"6").outcome == Outcome.LIMIT
    assert job.one(Op.GET, b"k").items == [b"12345"]
    assert job.one(Op.SET, b"k", b"1").outcome == Outcome.OK
    assert job.one(Op.APPEND, b"k", b"6").outcome == Outcome.OK


def test_limits__queue_and_value() -> None:
    job = Job(queue_values=2)
    for outcome in (Outcome.OK, Outcome.OK, Outcome.LIMIT):
        assert job.one(Op.QUEUE_PUSH, b"q", b"v").outcome == outcome
    job.one(Op.SET, b"k", bytes(VALUE_BYTES_MAX))
    assert job.one(Op.APPEND, b"k", b"1").outcome == Outcome.LIMIT


# A naive store, without waiting, as oracle

KEYS = st.sampled_from([b"a", b"b", b"c"])
VALUES = st.sampled_from([b"", b"1", b"-5", b"x", b"9223372036854775807"])
REQUESTS = st.one_of(
    st.tuples(st.sampled_from([Op.SET, Op.APPEND, Op.QUEUE_PUSH]), KEYS, VALUES),
    st.tuples(st.just(Op.COMPARE_SET), KEYS, VALUES, VALUES),
    st.tuples(st.just(Op.MULTI_SET), KEYS, VALUES, KEYS, VALUES),
    st.tuples(st.sampled_from([Op.DELETE, Op.QUEUE_POP, Op.QUEUE_LEN, Op.CHECK, Op.ADD]), KEYS),
    st.tuples(st.sampled_from([Op.CHECK, Op.MULTI_GET]), KEYS, KEYS),
    st.tuples(st.sampled_from([Op.NUM_KEYS, Op.LIST_KEYS])),
)


class Naive:
    """Says what a table must hold after each request."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.queues: dict[bytes, deque[bytes]] = {}

    def bytes(self) -> int:
        values = sum(len(k) + len(v) + ENTRY_BYTES for k, v in self.values.items())
        return values + sum(len(v) + ENTRY_BYTES for q in self.queues.values() for v in q)

    def apply(self, op: Op, items: list[bytes], reply: Reply) -> None:
        key = items[0] if items else b""
        if reply.outcome != Outcome.OK:
            assert op in (Op.ADD, Op.QUEUE_POP)
            return
        if op == Op.SET:
            self.values[key] = items[1]
        elif op == Op.APPEND:
            self.values[key] = self.values.get(key, b"") + items[1]
        elif op == Op.QUEUE_PUSH:
            self.queues.setdefault(key, deque()).append(items[1])
        elif op == Op.QUEUE_POP:
            assert reply.items == [self.queues[key].popleft()]
        elif op == Op.QUEUE_LEN:
            assert reply.number == len(self.queues.get(key, ()))
        elif op == Op.MULTI_SET:
            self.values.update({items[0]: items[1]} | {items[2]: items[3]})
        elif op == Op.MULTI_GET:
            assert reply.items == [self.values.get(item, b"") for item in items]
        elif op == Op.CHECK:
            assert reply.number == all(i in self.values or i in self.queues for i in items)
        elif op == Op.NUM_KEYS:
            assert reply.number == len(self.values)
        elif op == Op.LIST_KEYS:
            assert sorted(reply.items) == sorted(self.values)
        elif op == Op.ADD:
            self.values[key] = b"%d" % reply.number
        elif op == Op.COMPARE_SET:
            self.compare_set(*items, reply)
        elif op == Op.DELETE:
            assert reply.number == (self.values.pop(key, None) is not None)

    def compare_set(self, key: bytes, expected: bytes, desired: bytes, reply: Reply) -> None:
        if self.values.get(key, b"") == expected:
            self.values[key] = desired
            assert (reply.number, reply.items) == (Compared.EQUAL, [])
        elif key in self.values:
            assert (reply.number, reply.items) == (Compared.DIFFERENT, [self.values[key]])
        else:
            assert (reply.number, reply.items) == (Compared.ABSENT, [])


@settings(max_examples=200)
@given(st.lists(REQUESTS, max_size=30))
def test_table__against_a_naive_one(requests: list[Any]) -> None:
    table, naive = Table(), Naive()
    for op, *items in requests:
        for answer in table.handle(A, Request(op, 1, 0, 1 if op == Op.ADD else 0, items), 0.0):
            naive.apply(op, items, answer.reply)
        naive.queues = {name: values for name, values in naive.queues.items() if values}
        table.forget(A)
        assert table._values == naive.values
        assert table._queues == naive.queues
        assert table._bytes == naive.bytes()
        assert not table._waiters
        assert not table._waiting


def test_table__survives_the_fuzzer_for_a_moment() -> None:
    spec = importlib.util.spec_from_file_location(
        "store_fuzz", Path(__file__).parent / "fuzz/store_fuzz.py"
    )
    assert spec is not None
    assert spec.loader is not None
    fuzzer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzer)
    for seed in range(30):
        fuzzer.run_round(str(seed))
