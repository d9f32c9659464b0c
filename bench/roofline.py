"""How near all_reduce comes to the sum of what its steps cost: the roofline.

    python bench/roofline.py --sizes 1M,16M,64M

Each byte of an all_reduce is sealed, sent, received, opened, and then added or copied. What each of
these steps costs alone, at its best, bench/micro/steps_bench.cc measures. Their sum is the time
that an all_reduce would take if it did nothing else. The share is that sum over the time it takes
(of the native core, without Python): 1.0 cannot be beaten. Steps and all_reduce take turns. Build
both with `make native-test`, or by `make bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from _measure import describe_machine, percentile, write_json
from _operations import format_size, parse_size
from ablations import BUILT, PRODUCT, Samples, Variant, run

MICRO: Final = "bench_micro"
SUITES: Final = ("aegis-256x2", "aes-256-gcm")


@dataclass(frozen=True)
class Step:
    """One thing that is done with bytes."""

    name: str
    """As bench_micro calls it, behind "step/"; a suite follows where the step has one."""
    share: float
    """Of the bytes that a rank sends: how many of them pass it."""


# What is received is half summands and half sums.
STEPS: Final = (
    Step("seal", 1.0),
    Step("send", 1.0),
    Step("receive", 1.0),
    Step("open", 1.0),
    Step("reduce", 0.5),
    Step("copy", 0.5),
)


@dataclass(frozen=True)
class Row:
    """One suite at one size."""

    suite: str
    ranks: int
    size_bytes: int
    calls: int
    p50_us: float
    p99_us: float
    steps_us: dict[str, float]
    """What each step costs one rank per call, waiting for its turn on a core included."""
    share: float
    """Their sum over p50."""
    wrong: int


def time_steps(seconds: float) -> dict[str, float]:
    """Return seconds per byte by name of the step."""
    program = BUILT / MICRO
    if not program.exists():
        raise SystemExit(f"{program} is not built; `make native-test` builds it")
    command = [str(program), "--benchmark_filter=^step/", "--benchmark_format=json"]
    command.append(f"--benchmark_min_time={seconds}")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if ended.returncode != 0:
        raise SystemExit(f"{MICRO} failed: {ended.stderr.strip() or ended.returncode}")
    timed = {}
    for line in json.loads(ended.stdout)["benchmarks"]:
        if line.get("error_occurred"):
            raise SystemExit(f"{line['name']} failed: {line['error_message']}")
        name = line["name"].removeprefix("step/").removesuffix("/manual_time")
        timed[name] = 1 / line["bytes_per_second"]
    return timed


def steps_us(suite: str, ranks: int, size: int, costs: dict[str, float]) -> dict[str, float]:
    """What each step costs one rank in an all_reduce of so many bytes, in microseconds."""
    sent = 2 * (ranks - 1) / ranks * size
    cores = max(1.0, ranks / (os.cpu_count() or 1))  # ranks that share a core wait for each other
    return {
        step.name: cores
        * sent
        * step.share
        * costs.get(f"{step.name}/{suite}", costs.get(step.name, 0.0))
        * 1e6
        for step in STEPS
    }


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Let steps and suites take turns."""
    taken: dict[str, list[float]] = {}
    samples = {(suite, size): Samples() for suite in SUITES for size in arguments.sizes}
    for turn in range(arguments.rounds):
        print(f"turn {turn + 1} of {arguments.rounds} ...", file=sys.stderr, flush=True)
        for name, cost in time_steps(arguments.seconds / 10).items():
            taken.setdefault(name, []).append(cost)
        for suite in SUITES:
            variant = Variant(suite, PRODUCT, ("--suite", suite), suite)
            seconds = arguments.seconds / arguments.rounds
            for line in run(variant, arguments.ranks, arguments.sizes, seconds):
                samples[suite, line["size_bytes"]].add(line)
    costs = {name: percentile(values, 50) for name, values in taken.items()}
    return [
        row_of(suite, arguments.ranks, size, one, costs) for (suite, size), one in samples.items()
    ]


def row_of(suite: str, ranks: int, size: int, taken: Samples, costs: dict[str, float]) -> Row:
    """Compare one all_reduce with its steps."""
    steps = steps_us(suite, ranks, size, costs)
    p50_us = taken.percentile_us(50)
    return Row(
        suite=suite,
        ranks=ranks,
        size_bytes=size,
        calls=len(taken.times_us[0]),
        p50_us=p50_us,
        p99_us=taken.percentile_us(99),
        steps_us=steps,
        share=sum(steps.values()) / p50_us,
        wrong=taken.wrong,
    )


def print_table(rows: list[Row]) -> None:
    """Print a line per suite and size."""
    print(f"\n# all_reduce on {rows[0].ranks} ranks, float32 SUM, native core alone; us")
    names = "".join(f"{step.name:>10}" for step in STEPS)
    print(f"#{'size':>7}{'suite':>14}{names}{'sum':>12}{'p50':>12}{'p99':>12}  share")
    for row in rows:
        steps = "".join(f"{row.steps_us[step.name]:>10.1f}" for step in STEPS)
        print(
            f"{format_size(row.size_bytes):>8}{row.suite:>14}{steps}"
            f"{sum(row.steps_us.values()):>12.1f}{row.p50_us:>12.1f}{row.p99_us:>12.1f}"
            f"  {row.share:.2f}"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, help="ranks on this host (2)")
    parser.add_argument(
        "--sizes",
        type=lambda text: [parse_size(part) for part in text.split(",")],
        default="1M,16M,64M",
        help="sizes (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=4, help="turns of each (4)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per suite and size (2.0)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; 1 if a result was wrong."""
    arguments = parse_arguments()
    rows = measure(arguments)
    print_table(rows)
    if arguments.json is not None:
        document: dict[str, Any] = {
            "machine": describe_machine([]),
            "rows": [asdict(row) for row in rows],
        }
        write_json(arguments.json, document)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
