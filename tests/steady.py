"""A job that goes on reducing, and checks every bit, while a test does things to its network."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import FORKED
from ranks import SPAWNED, Outcome, join, run_ranks
from testbed.namespaces import Bed
from testbed.stages import Stages, wait_until

import securefabric


def values_of(rank: int, numel: int, seed: int) -> torch.Tensor:
    """What a rank brings to the reduction of this seed."""
    generator = torch.Generator().manual_seed(seed * 1000 + rank)
    return torch.randint(-(1 << 20), 1 << 20, (numel,), generator=generator, dtype=torch.int32)


def check_all_reduce(rank: int, numel: int, seed: int) -> None:
    """One all_reduce whose every element is known in advance."""
    tensor = values_of(rank, numel, seed)
    dist.all_reduce(tensor)
    expected = torch.zeros(numel, dtype=torch.int32)
    for each in range(dist.get_world_size()):
        expected += values_of(each, numel, seed)
    assert torch.equal(tensor, expected), (numel, seed)


def check_outcomes(outcomes: list[Outcome]) -> list[Any]:
    """What the ranks returned; fails when one of them did."""
    for outcome in outcomes:
        assert outcome.error is None, f"{outcome.error}\n{outcome.details}"
    return [outcome.value for outcome in outcomes]


def reduce_until_stopped(rank: int, folder: str, numel: int) -> dict[str, Any]:
    """What each rank runs: as many rounds as the others, until the test says stop."""
    join()
    stages = Stages(folder)
    check_all_reduce(rank, numel, 0)
    stages.reach("start", rank)
    rounds = 0
    going = torch.ones(1)
    while going.item():
        rounds += 1
        check_all_reduce(rank, numel, rounds % 8)
        going = torch.tensor([0.0 if stages.is_open("stop") else 1.0])
        dist.all_reduce(going, op=dist.ReduceOp.MIN)
        counted = dataclasses.asdict(securefabric.stats())
        paths = [dataclasses.asdict(path) for path in securefabric.paths()]
        report = json.dumps({"rounds": rounds, "paths": paths, **counted})
        fresh = Path(folder) / f"fresh.{rank}"
        fresh.write_text(report)
        fresh.rename(Path(folder) / f"report.{rank}")
    counted = dataclasses.asdict(securefabric.stats())
    dist.destroy_process_group()
    return counted


class SteadyJob:
    """The test's view of a running job."""

    def __init__(self, folder: Path, processes: dict[int, Any]) -> None:
        self.processes = processes
        self._folder = folder

    def report(self, rank: int) -> dict[str, Any]:
        """What a rank had counted after its newest round."""
        try:
            counted: dict[str, Any] = json.loads((self._folder / f"report.{rank}").read_text())
        except FileNotFoundError:
            return {"rounds": 0, "drops": {}, "paths": []}
        return counted

    def drops(self, rank: int) -> dict[str, int]:
        """What a rank has dropped, by cause."""
        dropped: dict[str, int] = self.report(rank)["drops"]
        return dropped

    def wait_for_rounds(self, more: int, patience_s: float = 90.0) -> float:
        """Wait until so many more rounds are over everywhere; the seconds that took."""
        started = time.monotonic()
        target = max(self.report(rank)["rounds"] for rank in self.processes) + more

        def are_over() -> bool:
            assert all(one.is_alive() for one in self.processes.values()), "a rank has ended"
            return all(self.report(rank)["rounds"] >= target for rank in self.processes)

        wait_until(are_over, f"{more} more rounds", patience_s)
        return time.monotonic() - started


def run_steady_job(
    folder: Path,
    key_file: str,
    meanwhile: Callable[[SteadyJob], None],
    *,
    world_size: int = 2,
    numel: int = 300_000,
    environment: Mapping[str, str] | Callable[[int], Mapping[str, str]] | None = None,
    bed: Bed | None = None,
) -> list[dict[str, Any]]:
    """Run a job while `meanwhile` happens to it; the ranks' counters at its end."""
    failures: list[BaseException] = []

    def play(processes: dict[int, Any]) -> None:
        stages = Stages(folder)
        job = SteadyJob(folder, processes)
        try:
            stages.wait("start", world_size)
            stages.open("start")
            job.wait_for_rounds(2)
            meanwhile(job)
        except AssertionError as error:  # the ranks' own errors say more
            failures.append(error)
        stages.open("stop")

    outcomes = run_ranks(
        reduce_until_stopped,
        world_size,
        str(folder),
        numel,
        key_file=key_file,
        environment=environment,
        meanwhile=play,
        bed=bed,
        context=FORKED if bed is None else SPAWNED,  # forks are born where their server is
    )
    counted = check_outcomes(outcomes)
    if failures:
        raise failures[0]
    return counted
