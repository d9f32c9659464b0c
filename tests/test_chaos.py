"""Jobs over every kind of bad network, without root: no collective fails and every bit is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks import join, run_ranks
from steady import SteadyJob, check_all_reduce, check_outcomes, run_steady_job
from testbed.proxy import ChaosProxy, Place, Weather
from testbed.stages import Stages, wait_until

import securefabric

pytestmark = pytest.mark.usefixtures("clean_environment")

NUMELS = (1, 3000, 400_000)

WEATHERS = {
    "fair": Weather(),
    "loss": Weather(loss=0.05),
    "delay": Weather(delay_s=0.01),
    "jitter": Weather(delay_s=0.002, jitter_s=0.01),
    "reorder": Weather(reorder=0.2, reorder_s=0.005),
    "duplicate": Weather(duplicate=0.3),
    "corrupt": Weather(corrupt=0.05),
    "trim": Weather(trim=0.05),
    "replay": Weather(replay=0.5),
    "splice": Weather(splice=0.5),
    "reflect": Weather(reflect=0.5),
    "everything": Weather(
        loss=0.02,
        duplicate=0.05,
        corrupt=0.02,
        trim=0.02,
        replay=0.05,
        splice=0.05,
        reflect=0.05,
        jitter_s=0.005,
        reorder=0.05,
    ),
}


def _collectives_by_stage(
    rank: int, folder: str, names: list[str], rounds: int
) -> dict[str, dict[str, Any]]:
    join()
    check_all_reduce(rank, 1000, 0)
    stages = Stages(folder)
    seen = {}
    for name in names:
        stages.reach(name, rank)
        for seed in range(rounds):
            for numel in NUMELS:
                check_all_reduce(rank, numel, seed)
        seen[name] = dataclasses.asdict(securefabric.stats())
    stages.reach("end", rank)
    dist.destroy_process_group()
    return seen


def test_every_weather__exact_results(key_file: str, tmp_path: Path) -> None:
    seen: dict[str, Mapping[str, int]] = {}
    with ChaosProxy(2, seed=11) as proxy:

        def change_weather(_: dict[int, Any]) -> None:
            stages = Stages(tmp_path)
            before = dict(proxy.counters)
            for name, following in zip(WEATHERS, [*list(WEATHERS)[1:], "end"], strict=True):
                stages.wait(name, 2)
                proxy.set_weather(WEATHERS[name])
                before = dict(proxy.counters)
                stages.open(name)
                stages.wait(following, 2)
                seen[name] = {
                    what: count - before.get(what, 0) for what, count in proxy.counters.items()
                }
            proxy.clear_weather()
            stages.open("end")

        outcomes = run_ranks(
            _collectives_by_stage,
            2,
            str(tmp_path),
            list(WEATHERS),
            4,
            key_file=key_file,
            environment=proxy.environment,
            meanwhile=change_weather,
        )
    by_rank = check_outcomes(outcomes)
    assert proxy.counters["strange"] == 0
    # That it happened, by the proxy's count, and that the ranks have seen it, by their own.
    for name, what in (
        ("loss", "lost"),
        ("reorder", "reordered"),
        ("duplicate", "duplicated"),
        ("corrupt", "corrupted"),
        ("trim", "trimmed"),
        ("replay", "replayed"),
        ("splice", "spliced"),
        ("reflect", "reflected"),
    ):
        assert seen[name][what] > 0, (name, seen[name])
    drops = {
        name: {cause: sum(r[name]["drops"][cause] for r in by_rank) for cause in drops_of(by_rank)}
        for name in WEATHERS
    }
    for name, cause in (
        ("duplicate", "replay_duplicate"),
        ("corrupt", "auth_failed"),
        ("splice", "path_mismatch"),
        ("reflect", "unknown_spi"),
    ):
        previous = list(WEATHERS)[list(WEATHERS).index(name) - 1]
        assert drops[name][cause] > drops[previous][cause], (name, cause, drops)


def drops_of(by_rank: list[Any]) -> list[str]:
    return list(by_rank[0]["fair"]["drops"])


HOLES = {
    "one_way": [(Place(0, 0), Place(1, 0))],
    "both_ways": [(Place(0, 0), Place(1, 0)), (Place(1, 0), Place(0, 0))],
    "socket": [(Place(0, 0), None), (None, Place(0, 0))],
}


def is_path_active(report: dict[str, Any], own: int, peers: int) -> bool:
    """Whether a rank may send over the path between these sockets."""
    return any(
        (path["socket"], path["peer_socket"], path["state"]) == (own, peers, "active")
        for path in report["paths"]
    )


def test_holes__other_paths_carry_on_and_the_path_comes_back(key_file: str, tmp_path: Path) -> None:
    with ChaosProxy(2, seed=12) as proxy:

        def dig(job: SteadyJob) -> None:
            for routes in HOLES.values():
                for weather in (Weather(loss=1.0), Weather(bytes_max=1400), Weather()):
                    for source, destination in routes:
                        proxy.set_weather(weather, source=source, destination=destination)
                    job.wait_for_rounds(6)
            proxy.clear_weather()
            # Which of the good paths data takes is the scheduler's choice, this one or not.
            wait_until(
                lambda: all(is_path_active(job.report(rank), 0, 0) for rank in (0, 1)),
                "the repaired path to be active at both ends",
                patience_s=60.0,
            )

        counted = run_steady_job(tmp_path, key_file, dig, environment=proxy.environment)
    assert sum(one["paths_suspected"] for one in counted) > 0
    assert proxy.counters["too_large"] > 0


def test_all_paths_down_for_three_seconds__no_collective_fails(
    key_file: str, tmp_path: Path
) -> None:
    with ChaosProxy(2, seed=13) as proxy:

        def cut(job: SteadyJob) -> None:
            proxy.play([(0.0, Weather(loss=1.0)), (3.0, Weather())])
            job.wait_for_rounds(6)

        run_steady_job(tmp_path, key_file, cut, environment=proxy.environment)
    assert proxy.counters["lost"] > 10
