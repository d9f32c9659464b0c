"""The Python fuzz target over its corpus, and over seeded mutations of it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import entries_fuzz

SEEDS = sorted(path for path in entries_fuzz.CORPUS.iterdir())
MUTATIONS = 40


def mutated(data: bytes, randomness: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(randomness.randint(1, 4)):
        at = randomness.randrange(1, len(out) + 1) if out else 0
        kind = randomness.randrange(4)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << randomness.randrange(8)
        elif kind == 1:
            out[at:at] = randomness.randbytes(randomness.randint(1, 8))
        elif kind == 2:
            del out[at : at + randomness.randint(1, 8)]
        elif at < len(out):
            out[at] = randomness.choice(b"\x00\x01\x17\x18\x1b\x40\x5b\x80\x9f\xa0\xbf\xd8\xff")
    return bytes(out)


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.name)
def test_entries__survive_the_corpus_and_what_is_near_it(path: Path) -> None:
    data = path.read_bytes()
    entries_fuzz.check(data)
    randomness = random.Random(path.name)
    for number in range(MUTATIONS):
        try:
            entries_fuzz.check(mutated(data, randomness))
        except Exception as error:
            raise AssertionError(f"mutation {number} of {path.name}") from error


def test_corpus__has_an_input_for_every_decoder() -> None:
    picked = {path.read_bytes()[0] for path in SEEDS}
    assert picked == set(range(len(entries_fuzz.DECODERS)))
