"""Several engines per rank: who carries what, and that they fail, end and agree as one.

Results of every operation, with calls of any size in stripes, are the contract's (test_contract).
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from members import Member, check_all_reduce, errors_of, job
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from securefabric import _fabric, statistics

LARGE = 1 << 19
"""Elements of float32: 2 MB, enough for four stripes."""
HALF = LARGE // 2
SMALL = 1000
PROMPT_S = 5.0


@pytest.fixture
def store() -> HashStore:
    return HashStore()


def members(count: int, store: HashStore, key_file: str, **settings: Any) -> list[Member]:
    settings = {"engines": 2, **settings}
    return [Member(rank, count, store, key_file=key_file, **settings) for rank in range(count)]


def carried(member: Member) -> list[int]:
    """Payload that each engine has sent."""
    sent: dict[int, int] = {}
    for path in member.fabric.native.paths():
        engine = int(path["engine"])
        sent[engine] = sent.get(engine, 0) + int(path["message_bytes"])
    return [sent[engine] for engine in sorted(sent)]


def error_of(work: Any) -> str:
    started = time.monotonic()
    with pytest.raises(dist.DistBackendError) as raised:
        work.wait()
    assert time.monotonic() - started < PROMPT_S
    return str(raised.value)


# Who carries what


@pytest.mark.parametrize("engines", [2, 3])
def test_large_calls__are_shared_and_small_ones_are_not(
    engines: int, key_file: str, store: HashStore
) -> None:
    with job(*members(2, store, key_file, engines=engines)) as (first, second):
        check_all_reduce(first, second, numel=SMALL)
        assert not any(carried(first)[1:])
        check_all_reduce(first, second, numel=LARGE)
        sent = carried(first)
        assert len(sent) == engines
        assert min(sent) > LARGE * 4 / engines * 0.9  # a ring of two sends as much as there is
        before = sum(sent[1:])
        sending = first.backend.send([torch.ones(LARGE)], 1, 0)
        second.backend.recv([torch.zeros(LARGE)], 0, 0).wait()
        sending.wait()
        assert sum(carried(first)[1:]) == before, "a message between two ranks stays whole"


def test_statistics__add_up_and_say_how_many(
    key_file: str, store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with job(*members(2, store, key_file)) as (first, second):
        check_all_reduce(first, second, numel=LARGE)
        monkeypatch.setattr(_fabric, "_current", first.fabric)
        stats, paths = statistics.stats(), statistics.paths()
        assert (stats.engines, stats.peers) == (2, 1)
        assert stats.message_bytes_sent == sum(path.message_bytes for path in paths)
        assert stats.message_bytes_received >= LARGE * 4
        assert {path.engine for path in paths} == {0, 1}
        assert ", 2 engines, 1 peers, " in statistics.summary(stats)
    assert statistics.stats().message_bytes_sent == stats.message_bytes_sent


@pytest.mark.parametrize("settings", [{"post_quantum": True}, {"eager_connect": True}])
def test_joining__in_other_ways(settings: dict[str, bool], key_file: str, store: HashStore) -> None:
    with job(*members(3, store, key_file, **settings)) as all_three:
        check_all_reduce(*all_three, numel=LARGE)
        assert min(carried(all_three[0])) > 0


# Agreement


def test_settings_that_differ__name_both_ranks_and_the_fix(key_file: str, store: HashStore) -> None:
    with job(
        Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=key_file, engines=2)
    ) as pair:
        for rank, error in enumerate(errors_of(*pair)):
            assert error.startswith("PolicyMismatch: ")
            assert f"rank {1 - rank} " in error
            assert f"runs {2 - rank} engines, this rank (rank {rank}) {1 + rank}" in error
            assert "SECUREFABRIC_ENGINES" in error


def _blocks(backend: Any, rank: int, sizes: list[list[int]]) -> tuple[Any, list[Tensor]]:
    """An all_to_all in which each rank sends each one so many of its own numbers."""
    inputs = [torch.full((numel,), float(rank)) for numel in sizes[rank]]
    outputs = [torch.zeros(row[rank]) for row in sizes]
    return backend.alltoall(outputs, inputs), outputs


def test_all_to_all__stays_whole_and_the_next_call_still_fits(
    key_file: str, store: HashStore
) -> None:
    sizes = [[SMALL, LARGE, 3], [LARGE + 1, 0, 5], [0, 7, SMALL]]
    with job(*members(3, store, key_file)) as all_three:
        for _ in range(3):
            started = [_blocks(each.backend, each.rank, sizes) for each in all_three]
            for work, outputs in started:
                work.wait()
                for sender, output in enumerate(outputs):
                    assert bool((output == sender).all())
            check_all_reduce(*all_three, numel=LARGE)
            check_all_reduce(*all_three, numel=SMALL)


def test_many_calls_at_once__of_all_sizes(key_file: str, store: HashStore) -> None:
    with job(*members(2, store, key_file)) as pair:
        sizes = [SMALL, LARGE, 1, LARGE + 7, 300_000] * 4
        started = [[member.start(numel) for member in pair] for numel in sizes]
        for works in reversed(started):
            for work, tensor in works:
                work.get_future().wait()
                assert bool((tensor == 3).all())


def _calls(member: Member) -> dict[str, Any]:
    backend, root = member.backend, dist.BroadcastOptions()
    root.rootRank = member.rank
    large = torch.ones(LARGE)
    return {
        "large": lambda: backend.allreduce([large]),
        "larger": lambda: backend.allreduce([torch.ones(LARGE + 1)]),
        "double": lambda: backend.allreduce([torch.ones(LARGE, dtype=torch.float64)]),
        "small": lambda: backend.allreduce([torch.ones(SMALL)]),
        "barrier": lambda: backend.barrier(),
        "root": lambda: backend.broadcast([large], root),
        "gather": lambda: backend._allgather_base(torch.ones(2 * LARGE), large),
        "exchange": lambda: _blocks(backend, member.rank, [[0, LARGE], [LARGE, 0]])[0],
        "exchange_half": lambda: _blocks(backend, member.rank, [[0, HALF], [HALF, 0]])[0],
        "exchange_little": lambda: _blocks(backend, member.rank, [[0, SMALL], [SMALL, 0]])[0],
    }


# Engine 0 takes part in every collective, so ranks that cut and ranks that do not meet there.
@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ("large", "small", ["float32 x 524288", "float32 x 1000"]),
        ("small", "large", ["float32 x 524288", "float32 x 1000"]),
        ("large", "larger", ["float32 x 524288", "float32 x 524289"]),
        ("large", "double", ["float32 x 524288", "float64 x 524288"]),
        ("large", "barrier", ["all_reduce", "barrier"]),
        ("large", "gather", ["all_reduce", "all_gather"]),
        ("root", "root", ["root 0", "root 1"]),
        ("exchange", "large", ["all_to_all", "all_reduce"]),
        ("exchange", "exchange_half", ["bytes"]),
        ("exchange", "exchange_little", ["bytes"]),
    ],
)
def test_ranks_that_disagree__learn_it_in_every_engine(
    left: str, right: str, words: list[str], key_file: str, store: HashStore
) -> None:
    with job(*members(2, store, key_file)) as pair:
        check_all_reduce(*pair, numel=LARGE)  # all links are there
        works = [_calls(member)[name]() for member, name in zip(pair, (left, right), strict=True)]
        for work in works:
            error = error_of(work)
            assert "OperationMismatch: " in error
            for word in ("rank 0", "rank 1", *words):
                assert word in error
        for member in pair:
            for name in ("small", "large"):
                assert "OperationMismatch: " in error_of(_calls(member)[name]())


# The end


def test_abort__ends_a_large_call_on_all_ranks(key_file: str, store: HashStore) -> None:
    with job(*members(2, store, key_file)) as (first, second):
        check_all_reduce(first, second, numel=LARGE)
        work, _ = first.start(LARGE)
        first.backend.abort()
        # Not always in words of its own: an engine that reads packets meanwhile may hear of it from
        # rank 1 before it sees what another one left for it.
        error = error_of(work)
        assert error.startswith("GroupAborted: ")
        assert "abort() was called on rank 0" in error
        for numel in (LARGE, SMALL):  # what the first has called, or else they also disagree
            assert "abort() was called" in error_of(second.start(numel)[0])


def test_timeout__of_a_large_call_names_who_is_missing(key_file: str, store: HashStore) -> None:
    with job(*members(2, store, key_file)) as (first, second):
        check_all_reduce(first, second, numel=LARGE)
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=2)
        error = error_of(first.backend.allreduce([torch.ones(LARGE)], options))
        assert error.startswith("OperationTimeout: all_reduce(float32 x 524288, SUM)")
        assert "rank 1" in error
        assert "has not started this operation" in error


def test_shutdown__of_one_rank_fails_the_large_call_of_another(
    key_file: str, store: HashStore
) -> None:
    with job(*members(2, store, key_file)) as (first, second):
        check_all_reduce(first, second, numel=LARGE)
        work, _ = first.start(LARGE)
        second.fabric.shutdown()
        error = error_of(work)
        assert error.startswith("PeerLost: rank 1 ")
        assert "has left" in error


def test_shutdown__what_was_sent_arrives(key_file: str, store: HashStore) -> None:
    with job(*members(2, store, key_file)) as (first, second):
        sending = first.backend.broadcast([torch.full((LARGE,), 5.0)])
        tensor = torch.zeros(LARGE)
        receiving = second.backend.broadcast([tensor])
        sending.wait()
        first.fabric.shutdown()
        receiving.wait()
        assert bool((tensor == 5).all())
