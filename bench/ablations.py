"""What each part costs or brings: all_reduce without encryption, without offloads, on one path.

    python bench/ablations.py --ranks 2,4 --sizes 8,64K,1M,16M,64M
    python bench/ablations.py --ablation engines         # large ones, by the engines of a rank

Runs ranks of the native core on this host, without Python and PyTorch in them, so that what differs
between two variants is all that differs. The variants take turns (A B C A B C ...). "null" is a
program of its own that copies packets where the product seals and opens them; the product has no
such switch. Build them with `make native-test`, or by `make bench`.

An engine keeps a core busy, so more of them than there are cores are left out, unless --crowded
asks for them. A call is cut into no more stripes than it has 512 KB, so small ones use fewer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from _measure import describe_machine, percentile, write_json
from _operations import format_size, parse_size

from securefabric._cores import usable_cores

BUILT: Final = Path(__file__).parent.parent / "build" / "native"
PRODUCT, NULL = "bench_all_reduce", "bench_all_reduce_null"
REFERENCE: Final = "aegis-256x2"


@dataclass(frozen=True)
class Variant:
    """One way to run the fabric."""

    name: str
    program: str
    options: tuple[str, ...]
    against: str
    """The variant its time is divided by: what a reader wants to know of it."""
    engines: int = 1
    """Of each rank."""


@dataclass(frozen=True)
class Ablation:
    """What is measured in one run."""

    variants: tuple[Variant, ...]
    left_out: tuple[str, ...]
    """Variants that only run when they are named."""
    sizes: str


def with_engines(engines: int) -> Variant:
    """Return the reference with so many engines."""
    options = ("--suite", REFERENCE, "--engines", str(engines))
    return Variant(f"{engines}-engine{'s'[: engines > 1]}", PRODUCT, options, "1-engine", engines)


PARTS: Final = (
    Variant("null", NULL, ("--suite", REFERENCE), "null"),
    Variant("aegis-256x2", PRODUCT, ("--suite", "aegis-256x2"), "null"),
    Variant("aes-256-gcm", PRODUCT, ("--suite", "aes-256-gcm"), "null"),
    Variant("chacha20-poly1305", PRODUCT, ("--suite", "chacha20-poly1305"), "null"),
    Variant("one-path", PRODUCT, ("--suite", REFERENCE, "--paths", "1"), REFERENCE),
    Variant("no-gso", PRODUCT, ("--suite", REFERENCE, "--no-gso"), REFERENCE),
    Variant("no-gro", PRODUCT, ("--suite", REFERENCE, "--no-gro"), REFERENCE),
    Variant("no-offload", PRODUCT, ("--suite", REFERENCE, "--no-gso", "--no-gro"), REFERENCE),
)
ABLATIONS: Final = {
    "parts": Ablation(PARTS, ("chacha20-poly1305",), "8,4K,64K,1M,16M,64M"),
    "engines": Ablation(tuple(map(with_engines, (1, 2, 4, 8))), (), "1M,4M,16M,64M,256M"),
}


@dataclass
class Samples:
    """What one variant took at one size, over its turns."""

    times_us: list[list[float]] = field(default_factory=list)
    """Of each rank, all calls."""
    cpu_s: list[float] = field(default_factory=list)
    """CPU seconds of all ranks per call, one value a turn."""
    wrong: int = 0

    def add(self, line: dict[str, Any]) -> None:
        """Take what one run printed."""
        self.times_us = [
            [*before, *more]
            for before, more in zip(
                self.times_us or [[] for _ in line["times_us"]], line["times_us"], strict=True
            )
        ]
        self.cpu_s.append(line["cpu_s_per_call"])
        self.wrong += line["wrong"]

    def percentile_us(self, percent: float) -> float:
        """Return the percentile of the slowest rank, in microseconds."""
        return max(percentile(times, percent) for times in self.times_us)


@dataclass(frozen=True)
class Row:
    """One variant at one size."""

    variant: str
    engines: int
    """Of each rank."""
    ranks: int
    size_bytes: int
    calls: int
    p50_us: float
    p99_us: float
    cpu_s_per_call: float
    """Of all ranks together; the median of the turns."""
    against: str
    ratio: float | None
    """p50 over p50 of `against`; None where that was not measured."""
    wrong: int


def fitting(variants: list[Variant], ranks: int, cores: int) -> list[Variant]:
    """Return those whose engines have a core each, and all of one engine; name the others."""
    fits = {variant.name: ranks * variant.engines <= cores for variant in variants}
    for variant in variants:
        if variant.engines > 1 and not fits[variant.name]:
            engines = ranks * variant.engines
            why = f"{engines} engines on {cores} cores would take turns; --crowded measures that"
            print(f"# {variant.name} left out on {ranks} ranks: {why}", flush=True)
    return [variant for variant in variants if variant.engines == 1 or fits[variant.name]]


def measure(
    variants: list[Variant], ranks: int, sizes: list[int], arguments: argparse.Namespace
) -> list[Row]:
    """Let the variants take turns; a row for each of them and each size."""
    samples = {(variant.name, size): Samples() for variant in variants for size in sizes}
    for turn in range(arguments.rounds):
        for variant in variants:
            print(
                f"{variant.name} on {ranks} ranks, turn {turn + 1} of {arguments.rounds} ...",
                file=sys.stderr,
                flush=True,
            )
            for line in run(variant, ranks, sizes, arguments.seconds / arguments.rounds):
                samples[variant.name, line["size_bytes"]].add(line)
    return list(rows_of(variants, ranks, samples))


def run(variant: Variant, ranks: int, sizes: list[int], seconds: float) -> list[dict[str, Any]]:
    """Run one variant once; the lines that it printed. Raises SystemExit with its message."""
    program = BUILT / variant.program
    if not program.exists():
        raise SystemExit(f"{program} is not built; `make native-test` builds it")
    command = [str(program), "--ranks", str(ranks), "--seconds", str(seconds)]
    command += ["--sizes", ",".join(map(str, sizes)), *variant.options]
    limit_s = 60 + 20 * len(sizes) * max(1.0, seconds)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    if ended.returncode != 0:
        raise SystemExit(f"{variant.name} failed: {ended.stderr.strip() or ended.returncode}")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def rows_of(
    variants: list[Variant], ranks: int, samples: dict[tuple[str, int], Samples]
) -> Iterable[Row]:
    """Yield a row for each variant and size."""
    by_name = {variant.name: variant for variant in variants}
    for (name, size), taken in samples.items():
        p50_us, against = taken.percentile_us(50), by_name[name].against
        rival = samples.get((against, size))
        yield Row(
            variant=name,
            engines=by_name[name].engines,
            ranks=ranks,
            size_bytes=size,
            calls=len(taken.times_us[0]),
            p50_us=p50_us,
            p99_us=taken.percentile_us(99),
            cpu_s_per_call=percentile(taken.cpu_s, 50),
            against=against,
            ratio=p50_us / rival.percentile_us(50) if rival else None,
            wrong=taken.wrong,
        )


def print_table(rows: list[Row], ranks: int) -> None:
    """Print the variants of one number of ranks, size by size."""
    print(f"\n# all_reduce on {ranks} ranks, float32 SUM, native core alone")
    print(f"#{'size':>7}{'variant':>20}{'p50 us':>12}{'p99 us':>12}{'CPU us':>12}  ratio of p50")
    for row in sorted(rows, key=lambda row: row.size_bytes):
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f} of {row.against}"
        print(
            f"{format_size(row.size_bytes):>8}{row.variant:>20}{row.p50_us:>12.1f}"
            f"{row.p99_us:>12.1f}{row.cpu_s_per_call * 1e6:>12.1f}  {ratio}"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ablation", choices=tuple(ABLATIONS), default="parts", help="(parts)")
    known = {one.name: one for ablation in ABLATIONS.values() for one in ablation.variants}
    parser.add_argument(
        "--variants",
        type=lambda text: [known[name] for name in text.split(",")],
        help=f"some of {','.join(known)} (those of the ablation, but chacha20-poly1305)",
    )
    parser.add_argument(
        "--ranks", type=lambda text: [int(part) for part in text.split(",")], default=[2, 4]
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [parse_size(part) for part in text.split(",")],
        help="sizes ("
        + "; ".join(f"{name}: {ablation.sizes}" for name, ablation in ABLATIONS.items())
        + ")",
    )
    parser.add_argument(
        "--crowded", action="store_true", help="also more engines than this host has cores"
    )
    parser.add_argument("--rounds", type=int, default=4, help="turns of each variant (4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per variant and size (1.0)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    arguments = parser.parse_args()
    ablation = ABLATIONS[arguments.ablation]
    if arguments.variants is None:
        arguments.variants = [one for one in ablation.variants if one.name not in ablation.left_out]
    if arguments.sizes is None:
        arguments.sizes = [parse_size(part) for part in ablation.sizes.split(",")]
    return arguments


def main() -> int:
    """Measure, print and write; 1 if a result was wrong."""
    arguments = parse_arguments()
    rows: list[Row] = []
    cores = usable_cores()
    for ranks in arguments.ranks:
        variants = arguments.variants
        if not arguments.crowded:
            variants = fitting(variants, ranks, cores)
        of_ranks = measure(variants, ranks, arguments.sizes, arguments)
        print_table(of_ranks, ranks)
        rows += of_ranks
    if arguments.json is not None:
        document: dict[str, object] = {
            "machine": describe_machine([]),
            "rows": [asdict(row) for row in rows],
        }
        write_json(arguments.json, document)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
