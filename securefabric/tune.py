"""Measure which algorithms suit these machines, and write a tuning file.

    mpirun -n 4 python -m securefabric.tune tuning.json
    export SECUREFABRIC_TUNING_FILE=tuning.json

Run it where the jobs will run, on the hosts and with the numbers of ranks they have; each run adds
the rows of its number of ranks to the file. Groups of other sizes use the rows of the next smaller
one. Rank 0 writes; every host of a job needs the same file.

For each operation and size both algorithms take turns, and the size at which they change is put
where the times are least in all. Then the number of pipelined pieces is chosen in the same way.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from ._fabric import current_fabric
from ._torch_autoload import autoload
from .errors import ConfigError
from .placement import is_under_mpi
from .tuning import SEGMENTS_DEFAULT, TUNABLE, TuningRow, read_tuning, write_tuning

__all__ = ["best_cut", "main"]

ALWAYS_SMALL: Final = 2**40
SEGMENTS: Final = (4, SEGMENTS_DEFAULT, 16, 32)
# A change must bring this much before a default is given up: runs differ by about as much.
WORTHWHILE: Final = 0.03
ROUNDS: Final = 3
# Not more than what a receiver holds of a message before its receive is posted.
REDUCE_SCATTER_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True)
class Effort:
    """How long and up to which size to measure."""

    seconds: float
    """Per operation, size and alternative."""
    sizes: tuple[int, ...]
    """Bytes, ascending, where the algorithms for small and for large data meet."""
    large_bytes: int
    """At which the pieces are chosen."""


class Tuner:
    """Measures in the world's group; all ranks do the same in step."""

    def __init__(self, effort: Effort) -> None:
        fabric = current_fabric()
        assert fabric is not None
        self._native = fabric.native
        self._effort = effort
        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()

    def tune(self, operation: str) -> TuningRow:
        """Return the best row for one operation."""
        small = TuningRow(operation, self.ranks, small_max(operation))
        large = replace(small, small_bytes=0)
        sizes = [size for size in self._effort.sizes if size <= small.small_bytes]
        taken = [self._compare(operation, size, [small, large]) for size in sizes]
        cut = best_cut([one[0] for one in taken], [one[1] for one in taken])
        row = replace(small, small_bytes=sizes[cut - 1] if cut > 0 else 0)
        candidates = [replace(large, segments_per_chunk=count) for count in SEGMENTS]
        times = self._compare(operation, self._effort.large_bytes, candidates)
        best = min(range(len(times)), key=times.__getitem__)
        usual = times[SEGMENTS.index(SEGMENTS_DEFAULT)]
        is_better = times[best] < usual * (1 - WORTHWHILE)
        count = SEGMENTS[best] if is_better else SEGMENTS_DEFAULT
        return replace(row, segments_per_chunk=count)

    def _compare(self, operation: str, size: int, rows: Sequence[TuningRow]) -> list[float]:
        """Return the seconds of one call under each row, which take turns; equal on all ranks."""
        self._say(f"{operation}, {size:,} bytes ...")
        call = make_call(operation, size, self.ranks)
        samples: list[list[float]] = [[] for _ in rows]
        for _ in range(ROUNDS):
            for row, taken in zip(rows, samples, strict=True):
                self._plan_by(row)
                taken.append(self._time(call))
        mine = torch.tensor([statistics.median(taken) for taken in samples], dtype=torch.float64)
        dist.all_reduce(mine, op=dist.ReduceOp.MAX)
        return [float(seconds) for seconds in mine]

    def _plan_by(self, row: TuningRow) -> None:
        # Nobody may be in an operation, or begin one by other rules. That a barrier is over here
        # does not say that it is over there, but its messages do not depend on the rows.
        dist.barrier()
        self._native.set_tuning([row.as_tuple()])
        dist.barrier()

    def _time(self, call: Callable[[], object]) -> float:
        """Return the seconds of one call with a barrier, which ends it on all ranks."""

        def run(count: int) -> float:
            dist.barrier()
            before = time.perf_counter()
            for _ in range(count):
                call()
                dist.barrier()
            return time.perf_counter() - before

        each = torch.tensor([run(3) / 3], dtype=torch.float64)
        dist.broadcast(each, 0)  # as many calls on all ranks
        count = max(3, min(1000, int(self._effort.seconds / ROUNDS / float(each))))
        return run(count) / count

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)


def small_max(operation: str) -> int:
    """Return the most bytes that may take the algorithm for small data."""
    return REDUCE_SCATTER_BYTES_MAX if operation == "reduce_scatter" else ALWAYS_SMALL


def best_cut(small: Sequence[float], large: Sequence[float]) -> int:
    """Return how many of the smallest sizes should take the algorithm for small data.

    small, large: seconds of both at each size, ascending. Least is the product of the times, so
    that every size counts alike. Of equal cuts the first.
    """

    def cost(cut: int) -> float:
        return sum(map(math.log, small[:cut])) + sum(map(math.log, large[cut:]))

    return min(range(len(small) + 1), key=cost)


def make_call(operation: str, size: int, ranks: int) -> Callable[[], object]:
    """Return what runs an operation once; size as TuningRow.small_bytes counts it."""
    numel = max(1, size // 4)
    whole = torch.zeros(numel)
    if operation == "all_reduce":
        return lambda: dist.all_reduce(whole)
    if operation == "broadcast":
        return lambda: dist.broadcast(whole, 0)
    if operation == "reduce":
        return lambda: dist.reduce(whole, 0)
    if operation == "all_gather":
        part = torch.zeros(max(1, numel // ranks))
        gathered = torch.zeros(part.numel() * ranks)
        return lambda: dist.all_gather_into_tensor(gathered, part)
    scattered = torch.zeros(numel * ranks)
    return lambda: dist.reduce_scatter_tensor(whole, scattered)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m securefabric.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the tuning file to write, or to add to")
    parser.add_argument(
        "--ops",
        type=_operations,
        default=TUNABLE,
        metavar="A,B",
        help=f"operations ({','.join(TUNABLE)})",
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="per size and alternative (0.3)")
    parser.add_argument("--max-kib", type=int, default=4096, help="largest small size (4096)")
    parser.add_argument("--large-mib", type=int, default=32, help="large size (32)")
    return parser.parse_args(arguments)


def _operations(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in TUNABLE]
    if unknown:
        raise argparse.ArgumentTypeError(f"no {unknown[0]}; there are {', '.join(TUNABLE)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m securefabric.tune``, run by every rank; the exit status."""
    parsed = parse_arguments(arguments)
    kept: list[TuningRow] = []
    try:
        if Path(parsed.file).exists():
            kept = read_tuning(parsed.file)
    except ConfigError as error:
        print(f"securefabric.tune: {error}", file=sys.stderr)
        return 2
    if os.environ.get("SECUREFABRIC_ENGINES", "1") not in ("1", "auto"):
        print(
            "securefabric.tune: the rows count bytes of one engine; run it without "
            "SECUREFABRIC_ENGINES",
            file=sys.stderr,
        )
        return 2
    os.environ["SECUREFABRIC_ENGINES"] = "1"
    autoload()
    torch.set_num_threads(1)
    dist.init_process_group("securefabric", init_method="mpi://" if is_under_mpi() else "env://")
    try:
        if dist.get_world_size() == 1:
            print("securefabric.tune: one rank has no choice; start more", file=sys.stderr)
            return 2
        rows = measure(parsed)
        if dist.get_rank() == 0:
            merge(parsed.file, kept, rows)
            print_rows(rows)
    finally:
        dist.destroy_process_group()
    return 0


def measure(parsed: argparse.Namespace) -> list[TuningRow]:
    """Return the best row of each operation that was asked for."""
    sizes = tuple(1024 << i for i in range(parsed.max_kib.bit_length()))
    tuner = Tuner(Effort(parsed.seconds, sizes, parsed.large_mib << 20))
    return [tuner.tune(operation) for operation in parsed.ops]


def merge(path: str, kept: list[TuningRow], rows: list[TuningRow]) -> None:
    """Write the new rows, and of the old ones those that they do not replace."""
    places = {(row.operation, row.ranks) for row in rows}
    others = [row for row in kept if (row.operation, row.ranks) not in places]
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    write_tuning(path, [*others, *rows], f"{platform.node()}, {today}")


def print_rows(rows: list[TuningRow]) -> None:
    """Print what was chosen."""
    print(f"{'operation':<16}{'ranks':>6}{'small up to':>14}{'pieces':>8}")
    for row in rows:
        print(
            f"{row.operation:<16}{row.ranks:>6}{row.small_bytes:>12,} B{row.segments_per_chunk:>8}"
        )


if __name__ == "__main__":
    sys.exit(main())
