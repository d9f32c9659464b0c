"""Time collectives and print the columns of nccl-tests.

    mpirun -n 2 python bench/collectives.py --backend securefabric --op all_reduce --min 8 --max 64M
    torchrun --nproc-per-node 4 -- bench/collectives.py --backend gloo --op all_gather,broadcast

Every size is checked before and after it is timed. The times are of single calls, p50 and p99, of
the slowest rank; all ranks meet before each call of an operation that has a root. Without
SECUREFABRIC_KEY_FILE, ranks of one host make a job key for the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _backends import NAMES, Backend, Unsupported, join, leave
from _devices import add_device_option, check_device
from _launch import run_as_rank
from _measure import Effort, Row, Timing, describe_machine, write_json
from _operations import DTYPES, OPERATIONS, REDUCE_OPS, make_case, parse_size


def sizes_between(smallest: int, largest: int, factor: int) -> list[int]:
    """Return smallest, smallest * factor, ... up to largest."""
    sizes = []
    size = smallest
    while size <= largest:
        sizes.append(size)
        size *= factor
    return sizes


def measure(backend: Backend, name: str, size: int, arguments: argparse.Namespace) -> Row:
    case = make_case(
        OPERATIONS[name],
        size,
        dtype=DTYPES[arguments.dtype],
        reduce_op=arguments.redop,
        rank=backend.rank,
        ranks=backend.ranks,
        device=backend.device,
    )
    effort = Effort(warmup=arguments.warmup, iterations=arguments.iters, seconds=arguments.seconds)
    timing = Timing(backend, case, effort)
    timing.check()
    timing.run(timing.plan())
    timing.check()
    return timing.result()


def print_heading(backend: Backend) -> None:
    print(f"# {backend.name}, {backend.ranks} ranks")
    columns = ("size", "count", "type", "redop", "root", "p50", "p99", "algbw", "busbw", "#wrong")
    units = ("(B)", "(elements)", "", "", "", "(us)", "(us)", "(GB/s)", "(GB/s)", "")
    for cells in (columns, units):
        print("#" + _line(*cells)[1:])


def print_row(row: Row) -> None:
    numbers = (f"{row.p50_us:.1f}", f"{row.p99_us:.1f}", f"{row.algbw_gb_s:.3f}")
    print(
        _line(
            *(str(row.size_bytes), str(row.count), row.dtype, row.reduce_op, str(row.root)),
            *numbers,
            f"{row.busbw_gb_s:.3f}",
            str(row.wrong),
        ),
        flush=True,
    )


def _line(*cells: str) -> str:
    widths = (12, 11, 9, 7, 6, 11, 11, 9, 9, 8)
    return "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def run(arguments: argparse.Namespace) -> int:
    [backend] = join([arguments.backend], arguments.device)
    is_first = backend.rank == 0
    rows = []
    if is_first:
        print_heading(backend)
    for name in arguments.op:
        sizes = sizes_between(arguments.min, arguments.max, arguments.factor)
        if is_first:
            print(f"# {name}", flush=True)
        for size in [0] if name == "barrier" else sizes:
            if is_first:
                print(f"{name} {size} B ...", file=sys.stderr, flush=True)
            try:
                rows.append(measure(backend, name, size, arguments))
            except Unsupported as error:
                raise SystemExit(f"bench: {error}") from None
            if is_first:
                print_row(rows[-1])
    machine = describe_machine([backend])  # now: paths come up with the first messages
    if is_first:
        print("# " + ", ".join(f"{fact} {value}" for fact, value in machine.items()))
        if arguments.json is not None:
            document = {"ranks": backend.ranks, "machine": machine, "rows": rows}
            write_json(arguments.json, document)
    leave()
    return 1 if any(row.wrong for row in rows) else 0


def operations(text: str) -> list[str]:
    names = list(OPERATIONS) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no operation {unknown[0]}; there are {', '.join(OPERATIONS)}"
        )
    return names


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=NAMES, default="securefabric")
    add_device_option(parser)
    parser.add_argument(
        "--op", type=operations, default=["all_reduce"], help="one, several (a,b,c) or all"
    )
    parser.add_argument("--min", type=parse_size, default=8, help="smallest size (8)")
    parser.add_argument("--max", type=parse_size, default=2**26, help="largest size (64M)")
    parser.add_argument("--factor", type=int, default=2, help="from size to size (2)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--redop", choices=REDUCE_OPS, default="sum")
    parser.add_argument("--warmup", type=int, default=5, help="calls before the timed ones (5)")
    parser.add_argument("--iters", type=int, default=0, help="timed calls; 0: what --seconds allow")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing per size (0.5)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.factor < 2:
        parser.error("--factor must be at least 2")
    check_device(parser, arguments.device, [arguments.backend])
    return arguments


def main() -> int:
    arguments = parse_arguments()
    return run_as_rank(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
