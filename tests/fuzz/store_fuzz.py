"""Fuzzes the encrypted store's protocol: python tests/fuzz/store_fuzz.py SECONDS [SEED]

Several clients send mutated messages of the corpus to one table. Whatever they send is refused or
served; memory stays inside the bounds, every waiter is answered in the end, and the books balance.
A failure names the seed and the round that shows it again.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from securefabric.store.table import ENTRY_BYTES, Limits, Table
from securefabric.store.wire import (
    Malformed,
    Op,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

CORPUS = [
    path.read_bytes() for path in sorted((Path(__file__).parent / "corpus/store_fuzz").iterdir())
]
CLIENTS = [b"%d" % n for n in range(4)]
LIMITS = Limits(keys=8, bytes=8 * ENTRY_BYTES + 64, queue_values=3)
MESSAGES = 200  # to one table


def mutated(rng: random.Random) -> bytes:
    """A message of the corpus after a few changes, or two joined."""
    data = bytearray(rng.choice(CORPUS))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        change = rng.randrange(5)
        if change == 0:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif change == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif change == 2 and at < len(data):
            data[at] = rng.randrange(256)
        elif change == 3:
            data[at:] = rng.choice(CORPUS)[at:]
        elif len(data) > 1:
            data[1] = rng.choice(list(Op))
    return bytes(data)


def run_round(seed: str) -> None:
    """One table's life."""
    rng = random.Random(seed)
    table = Table(LIMITS)
    now = 0.0
    for _ in range(MESSAGES):
        now += rng.random()
        answers = table.expire(now)
        try:
            request = decode_request(mutated(rng))
        except Malformed:
            continue
        assert decode_request(encode_request(request)) == request
        if request.op != Op.COUNTERS:
            answers += table.handle(rng.choice(CLIENTS), request, now)
        for answer in answers:
            assert decode_reply(encode_reply(answer.reply)) == answer.reply
            if answer.queue is not None and rng.random() < 0.3:
                table.put_back(answer)
        check(table)
    table.expire(now + 10)
    assert table.waiting == 0
    assert not table._waiting
    assert table.next_deadline() is None


def check(table: Table) -> None:
    """The bounds, and the counted bytes against the real ones."""
    values = sum(len(key) + len(value) + ENTRY_BYTES for key, value in table._values.items())
    queued = sum(len(value) + ENTRY_BYTES for queue in table._queues.values() for value in queue)
    assert table._bytes == values + queued
    assert table._bytes <= LIMITS.bytes + 3 * (ENTRY_BYTES + 32)  # what was put back may pass it
    assert table.waiting <= len(CLIENTS)
    assert all(table._queues.values())


def main() -> None:
    """Run rounds until the time is over."""
    seconds = float(sys.argv[1])
    base = sys.argv[2] if len(sys.argv) > 2 else str(time.time_ns())
    until = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < until:
        seed = base if len(sys.argv) > 2 else f"{base}.{rounds}"
        try:
            run_round(seed)
        except BaseException:
            sys.stderr.write(f"replay with: python tests/fuzz/store_fuzz.py 0 {seed}\n")
            raise
        rounds += 1
    sys.stdout.write(f"store_fuzz: {rounds} rounds of {MESSAGES} messages, seeds {base}.*\n")


if __name__ == "__main__":
    main()
