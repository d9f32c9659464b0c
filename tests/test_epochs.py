"""Links that change their keys while a job works, on real sockets."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import join, run_ranks

import securefabric

pytestmark = pytest.mark.usefixtures("clean_environment")

EPOCHS = 5
SECONDS_MAX = 60.0


def _reduce_through_epochs(rank: int) -> dict[str, Any]:
    """Reduce until both ranks' links have changed their keys often enough."""
    join()
    until = time.monotonic() + SECONDS_MAX
    fewest = torch.tensor([0])
    operations = 0
    while fewest.item() < EPOCHS:
        assert time.monotonic() < until
        works = []
        for count in (3, 40_000, 1_000_000):  # copied, eager and granted ones at a time
            tensor = torch.arange(count, dtype=torch.int64) * (rank + 1) + operations
            works.append((dist.all_reduce(tensor, async_op=True), tensor))
        for work, tensor in works:
            work.wait()
            expected = torch.arange(len(tensor), dtype=torch.int64) * 3 + 2 * operations
            assert torch.equal(tensor, expected), operations
        operations += 1
        fewest = torch.tensor([securefabric.stats().epochs_begun])
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
    counted = securefabric.stats()
    (epoch,) = {path.epoch for path in securefabric.paths()}
    dist.destroy_process_group()
    return {
        "epochs": counted.epochs_begun,
        "epoch": epoch,
        "auth_failures": counted.auth_failures,
        "suspected": counted.paths_suspected,
        "summary": securefabric.summary(counted),
    }


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param({"SECUREFABRIC_EPOCH_AGE_S": "0.3"}, id="by_age"),
        pytest.param({"SECUREFABRIC_EPOCH_BYTES": "3000000"}, id="by_bytes"),
    ],
)
def test_keys_change_within_a_job_and_every_result_is_exact(
    key_file: str, setting: dict[str, str]
) -> None:
    outcomes = run_ranks(_reduce_through_epochs, 2, key_file=key_file, environment=setting)
    for outcome in outcomes:
        assert outcome.error is None, outcome
        seen = outcome.value
        assert seen["epochs"] >= EPOCHS
        assert seen["epoch"] >= seen["epochs"]  # the same link, counted a moment later
        assert seen["auth_failures"] == 0
        assert f"  rekeyed {seen['epochs']:>12,} times, a link each" in seen["summary"]
    assert abs(outcomes[0].value["epochs"] - outcomes[1].value["epochs"]) <= 1


def test_settings_may_differ_between_ranks(key_file: str) -> None:
    ages = {0: "3600", 1: "0.3"}
    outcomes = run_ranks(
        _reduce_through_epochs,
        2,
        key_file=key_file,
        environment=lambda rank: {"SECUREFABRIC_EPOCH_AGE_S": ages[rank]},
    )
    for outcome in outcomes:
        assert outcome.error is None, outcome
        assert outcome.value["epochs"] >= EPOCHS
