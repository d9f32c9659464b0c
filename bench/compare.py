"""Compare backends on the same ranks, alternating them in one run, and print ratios of times.

    python bench/compare.py --ranks 2,4                  # starts the ranks itself, with mpirun
    mpirun -n 2 python bench/compare.py                  # one number of ranks

For each operation and size the backends take turns (A B C A B C ...) in the same processes, so that
what else the machine does meets all of them. A ratio below 1 means that the first backend took less
time. Only these ratios travel from one machine to another, not the times.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from _backends import NAMES, Backend, Unsupported, abort_if_mpi, is_launched, join, leave
from _measure import Effort, Row, Timing, describe_machine, write_json
from _operations import DTYPES, OPERATIONS, REDUCE_OPS, format_size, make_case, parse_size

MPIRUN = Path(__file__).parent.parent / "tools" / "mpirun.sh"
SIZES = "8,1K,4K,64K,256K,1M,16M,64M"


def measure(
    backends: list[Backend], name: str, size: int, arguments: argparse.Namespace
) -> dict[str, Row]:
    """Return a row per backend that has this operation."""
    timings = []
    for backend in backends:
        case = make_case(
            OPERATIONS[name],
            size,
            dtype=DTYPES[arguments.dtype],
            reduce_op=arguments.redop,
            rank=backend.rank,
            ranks=backend.ranks,
        )
        effort = Effort(seconds=arguments.seconds / arguments.rounds, iterations=arguments.iters)
        try:
            timings.append(Timing(backend, case, effort))
        except Unsupported as error:
            say(backend, f"left out: {error}")
    for timing in timings:
        timing.check()
    counts = [timing.plan() for timing in timings]
    for _ in range(arguments.rounds):
        for timing, count in zip(timings, counts, strict=True):
            timing.run(count)
    for timing in timings:
        timing.check()
    return {timing.backend.name: timing.result() for timing in timings}


def run_as_rank(arguments: argparse.Namespace) -> int:
    """Measure as one of the launched ranks; the first prints."""
    backends = join(arguments.backends)
    first = backends[0]
    comparisons = []
    for name in arguments.ops:
        if first.rank == 0:
            print_heading(name, backends)
        for size in [0] if name == "barrier" else arguments.sizes:
            say(first, f"{name} {format_size(size)} on {first.ranks} ranks ...")
            comparisons.append(measure(backends, name, size, arguments))
            if first.rank == 0:
                print_comparison(comparisons[-1], [backend.name for backend in backends])
        if first.rank == 0:
            print_means(comparisons, name, [backend.name for backend in backends])
    document = {
        "ranks": first.ranks,
        "machine": describe_machine(backends),
        "comparisons": [{"rows": rows, "ratios": ratios(rows, first.name)} for rows in comparisons],
    }
    if first.rank == 0 and arguments.json is not None:
        write_json(arguments.json, document)
    leave()
    return 1 if any(row.wrong for rows in comparisons for row in rows.values()) else 0


def ratios(rows: dict[str, Row], first: str) -> dict[str, float]:
    """Return the first backend's median time over each other's."""
    if first not in rows:
        return {}
    own = rows[first].p50_us
    return {name: own / row.p50_us for name, row in rows.items() if name != first}


def print_heading(name: str, backends: list[Backend]) -> None:
    print(f"\n# {name}, {backends[0].ranks} ranks: p50 (p99) in us, then ratios of p50")
    rivals = [backend.name for backend in backends[1:]]
    cells = [f"{backend.name:>22}" for backend in backends]
    cells += [f"{'vs ' + rival:>9}" for rival in rivals]
    print(f"#{'size':>7}" + "".join(cells) + f"{'#wrong':>8}")


def print_comparison(rows: dict[str, Row], names: list[str]) -> None:
    sizes = [row.size_bytes for row in rows.values()]
    cells = [f"{format_size(sizes[0]) if sizes else '-':>8}"]
    for name in names:
        row = rows.get(name)
        cells.append(f"{f'{row.p50_us:.1f} ({row.p99_us:.1f})' if row else '-':>22}")
    compared = ratios(rows, names[0])
    for name in names[1:]:
        cells.append(f"{f'{compared[name]:.2f}' if name in compared else '-':>9}")
    cells.append(f"{sum(row.wrong for row in rows.values()):>8}")
    print("".join(cells), flush=True)


def print_means(comparisons: list[dict[str, Row]], name: str, names: list[str]) -> None:
    of_operation = [
        ratios(rows, names[0])
        for rows in comparisons
        if any(row.operation == name for row in rows.values())
    ]
    for rival in names[1:]:
        logs = [math.log(compared[rival]) for compared in of_operation if rival in compared]
        if logs:
            mean = math.exp(sum(logs) / len(logs))
            print(f"# {names[0]} / {rival}, geometric mean over the sizes: {mean:.2f}", flush=True)


def say(backend: Backend, text: str) -> None:
    if backend.rank == 0:
        print(text, file=sys.stderr, flush=True)


def run_as_parent(arguments: argparse.Namespace) -> int:
    """Start the ranks, once for each number of them, and gather what they wrote."""
    documents, status = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for ranks in arguments.ranks:
            report = Path(folder) / f"{ranks}.json"
            command = [str(MPIRUN), "-n", str(ranks), sys.executable, __file__, *sys.argv[1:]]
            ended = subprocess.run([*command, "--json", str(report)], check=False)
            status = status or ended.returncode
            if report.exists():
                documents.append(json.loads(report.read_text()))
    if arguments.json is not None:
        write_json(arguments.json, {"runs": documents})
    return status


def _names(known: tuple[str, ...], text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no {unknown[0]}; there are {', '.join(known)}")
    return names


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ranks",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[2, 4],
        help="numbers of ranks to start (2,4); not asked where a launcher started this",
    )
    parser.add_argument(
        "--backends",
        type=lambda text: _names(NAMES, text),
        default=list(NAMES),
        help="the first is compared with each of the others (securefabric,gloo,mpi)",
    )
    parser.add_argument(
        "--ops",
        type=lambda text: _names(tuple(OPERATIONS), text),
        default=["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"],
        help="operations (all_reduce,all_gather,reduce_scatter,broadcast,all_to_all)",
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [parse_size(part) for part in text.split(",")],
        default=SIZES,
        help="sizes (%(default)s)",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--redop", choices=REDUCE_OPS, default="sum")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each backend (5)")
    parser.add_argument(
        "--iters", type=int, default=0, help="calls a turn; 0: what --seconds allow"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="per backend and size (1.0)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if not is_launched():
        return run_as_parent(arguments)
    try:
        return run_as_rank(arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        abort_if_mpi()
        return 1


if __name__ == "__main__":
    sys.exit(main())
