"""Timeouts of groups and calls, and how a work says that one has passed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import await_meeting, join, meet, run_ranks
from torch._C._distributed_c10d import WorkResult


def _shorter_timeout(rank: int) -> str:
    join(timeout_s=3600)
    group: Any = dist.new_group(timeout=timedelta(seconds=3600))
    if rank == 1:
        await_meeting("timed out", 1)
        return ""
    group._get_backend(torch.device("cpu")).set_timeout(timedelta(seconds=0.5))
    with pytest.raises(dist.DistBackendError) as raised:
        dist.all_reduce(torch.ones(4), group=group)
    meet("timed out", 1)
    return str(raised.value)


def test_set_timeout__counts_for_later_calls(key_file: str) -> None:
    outcomes = run_ranks(_shorter_timeout, 2, key_file=key_file)
    assert outcomes[0].error is None, outcomes
    assert "OperationTimeout" in outcomes[0].value


def _timeouts_without_end(rank: int) -> None:
    join()
    for number, timeout in enumerate((timedelta.max, timedelta(days=400_000))):
        group: Any = dist.new_group(timeout=timeout)
        if rank == 1:
            await_meeting(f"started {number}", 1)
        tensor, sparse = torch.ones(4), torch.eye(4).to_sparse()
        works: list[Any] = [
            dist.all_reduce(tensor, group=group, async_op=True),
            dist.all_reduce(sparse, group=group, async_op=True),
        ]
        if rank == 0:
            meet(f"started {number}", 1)
        for work in works:
            work.wait(timeout)
        assert float(tensor[0]) == float(sparse.to_dense()[0, 0]) == 2.0
        group.monitored_barrier(timeout)
        group._get_backend(torch.device("cpu")).set_timeout(timeout)
        dist.barrier(group=group)
    dist.destroy_process_group()


def test_timeouts_longer_than_any_clock__never_pass(key_file: str) -> None:
    for outcome in run_ranks(_timeouts_without_end, 2, key_file=key_file):
        assert outcome.error is None, outcome.details


def _future_results(rank: int) -> list[int]:
    join()
    group: Any = dist.new_group()
    results = []
    work: Any = dist.all_reduce(torch.ones(4), async_op=True)
    early = work.get_future_result()
    assert early is not None
    early.wait()
    results.append(int(early.value()))
    results.append(int(work.get_future_result().value()))
    meet("first", 2)
    if rank == 0:
        group._get_backend(torch.device("cpu")).set_timeout(timedelta(seconds=0.5))
        late: Any = dist.all_reduce(torch.ones(4), group=group, async_op=True)
        with pytest.raises(dist.DistBackendError):
            late.wait()
        results.append(int(late.get_future_result().value()))
        other: Any = dist.all_reduce(torch.ones(4), async_op=True)
        ending = other.get_future_result()
        dist.group.WORLD._get_backend(torch.device("cpu")).abort()  # type: ignore[union-attr]
        ending.wait()
        results.append(int(ending.value()))
        meet("second", 1)
    else:
        await_meeting("second", 1)
    return results


def test_future_result__says_how_a_work_ended(key_file: str) -> None:
    outcomes = run_ranks(_future_results, 2, key_file=key_file)
    assert outcomes[0].error is None, outcomes[0].details
    kinds = [WorkResult.SUCCESS, WorkResult.SUCCESS, WorkResult.TIMEOUT, WorkResult.COMM_ERROR]
    assert outcomes[0].value == [int(kind) for kind in kinds]
