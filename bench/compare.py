"""Compare backends on the same ranks, alternating them in one run, and print ratios of times.

    python bench/compare.py --ranks 2,4                  # starts the ranks itself, with mpirun
    mpirun -n 2 python bench/compare.py                  # one number of ranks

SECUREFABRIC_* settings of the environment hold for its ranks, as SECUREFABRIC_ENGINES=2 does.

For each operation and size the backends take turns (A B C A B C ...) in the same processes, so that
what else the machine does meets all of them. A ratio below 1 means that the first backend took less
time. Only these ratios travel from one machine to another, not the times.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _backends import NAMES, Backend, is_launched, join, leave
from _devices import HOST_ONLY, add_device_option, check_device
from _launch import run_as_rank, start_ranks
from _measure import Row, Turns, describe_machine, ratios, say, take_turns, write_json
from _operations import DTYPES, OPERATIONS, REDUCE_OPS, format_size, parse_size
from _tables import print_comparison, print_heading, print_means

SIZES = "8,1K,4K,64K,256K,1M,16M,64M,256M"


def measure(arguments: argparse.Namespace) -> int:
    """Measure as one of the launched ranks; the first prints."""
    backends = join(arguments.backends, arguments.device)
    first = backends[0]
    for name in arguments.left_out:
        say(first, f"{name} is left out: it takes no tensors on a GPU")
    comparisons = [
        rows for name in arguments.ops for rows in compare_sizes(backends, name, arguments)
    ]
    document = {
        "ranks": first.ranks,
        "machine": describe_machine(backends),
        "comparisons": [{"rows": rows, "ratios": ratios(rows, first.name)} for rows in comparisons],
    }
    if first.rank == 0 and arguments.json is not None:
        write_json(arguments.json, document)
    leave()
    return 1 if any(row.wrong for rows in comparisons for row in rows.values()) else 0


def compare_sizes(
    backends: list[Backend], operation: str, arguments: argparse.Namespace
) -> list[dict[str, Row]]:
    """Measure one operation and print its table."""
    first, names = backends[0], [backend.name for backend in backends]
    turns = Turns(rounds=arguments.rounds, seconds=arguments.seconds, iterations=arguments.iters)
    comparisons = []
    if first.rank == 0:
        print_heading(operation, first.ranks, names)
    for size in [0] if operation == "barrier" else arguments.sizes:
        say(first, f"{operation} {format_size(size)} on {first.ranks} ranks ...")
        rows = take_turns(
            backends,
            OPERATIONS[operation],
            size,
            dtype=DTYPES[arguments.dtype],
            reduce_op=arguments.redop,
            turns=turns,
        )
        comparisons.append(rows)
        if first.rank == 0:
            print_comparison(rows, names)
    if first.rank == 0:
        print_means(comparisons, names)
    return comparisons


def start(arguments: argparse.Namespace) -> int:
    """Start the ranks, once for each number of them, and gather what they wrote."""
    status, documents = start_ranks(__file__, arguments.ranks)
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
        help="the first is compared with each of the others (securefabric,gloo,mpi; with "
        "--device cuda without mpi)",
    )
    add_device_option(parser)
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
    arguments = parser.parse_args()
    arguments.left_out = ()
    if arguments.backends is None:
        arguments.left_out = () if arguments.device == "cpu" else HOST_ONLY
        arguments.backends = [name for name in NAMES if name not in arguments.left_out]
    check_device(parser, arguments.device, arguments.backends)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if not is_launched():
        return start(arguments)
    return run_as_rank(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
