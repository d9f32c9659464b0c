"""Run all benchmarks one after the other and draw what they measured: `make bench`.

    python bench/run.py                                  # into build/bench
    python bench/run.py --only training,plots            # some of them
    python bench/run.py --suite aegis-256x2 --out some/folder
    python bench/run.py --tiny --out some/folder         # as small as possible, for tests

Each prints its table and writes its figures as JSON into the folder; plots.py makes the PNGs. One
that fails does not keep the others from running. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securefabric.identity import SUITES, write_key_file

BENCH: Final = Path(__file__).resolve().parent
OUT: Final = BENCH.parent / "build" / "bench"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One script, which writes FOLDER/name.json."""

    name: str
    what: str
    tiny: str
    """Options that make it take seconds."""
    script: str = ""
    """And options that it always gets; without one name.py."""

    def command(self, folder: Path, *, is_tiny: bool) -> list[str]:
        """Return what runs it."""
        script, *options = (self.script or f"{self.name}.py").split()
        if is_tiny:
            options += self.tiny.split()
        report = folder / f"{self.name}.json"
        return [sys.executable, str(BENCH / script), *options, "--json", str(report)]


STEPS: Final = (
    Step(
        name="compare",
        what="collectives beside gloo and MPI, on 2 and 4 ranks of this host",
        tiny="--ranks 2 --ops all_reduce --sizes 8,4K --rounds 2 --iters 2",
    ),
    Step(
        name="training",
        what="training steps beside gloo, on 2 and 4 ranks of this host",
        tiny="--ranks 2 --steps 3 --warmup 1 --layers 1 --width 64 --context 8",
    ),
    Step(
        name="wireguard",
        what="all_reduce beside gloo inside WireGuard, between two hosts (needs root)",
        tiny="--sizes 8,64K --rounds 2 --iters 2",
    ),
    Step(
        name="ablations",
        what="what encryption, offloads and paths cost, on the native core alone",
        tiny="--ranks 2 --sizes 8,64K --rounds 1 --seconds 0.01",
    ),
    Step(
        name="engines",
        what="large all_reduces by the engines of a rank, on the native core alone",
        tiny="--ranks 2 --sizes 1M --rounds 1 --seconds 0.01 --crowded "
        "--variants 1-engine,2-engines",
        script="ablations.py --ablation engines",
    ),
    Step(
        name="roofline",
        what="all_reduce of the native core beside the sum of its steps",
        tiny="--sizes 64K --rounds 1 --seconds 0.01",
    ),
)
PLOTS: Final = "plots"
NAMES: Final = (*(step.name for step in STEPS), PLOTS)


def run(title: str, command: list[str]) -> bool:
    """Run one command under a heading and say whether it went well."""
    print(f"==> {title}", flush=True)
    started = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    ended = "done" if status == 0 else f"FAILED with status {status}"
    print(f"    {ended} after {time.monotonic() - started:.0f} s", flush=True)
    return status == 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(NAMES),
        help=f"some, comma-separated ({','.join(NAMES)})",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for JSON and PNGs")
    parser.add_argument(
        "--suite",
        choices=SUITES,
        help=f"cipher suite; without it that of SECUREFABRIC_KEY_FILE, or {SUITES[0]}",
    )
    parser.add_argument("--tiny", action="store_true", help="as small as possible, for tests")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in NAMES]
    if unknown:
        parser.error(f"no {unknown[0]}; there are {', '.join(NAMES)}")
    return arguments


def run_all(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Run what was asked for, and return the names of what failed."""
    chosen = [step for step in STEPS if step.name in arguments.only]
    total, failed = len(chosen) + (PLOTS in arguments.only), []
    for i, step in enumerate(chosen, start=1):
        (folder / f"{step.name}.json").unlink(missing_ok=True)  # nobody shall draw an older run's
        command = step.command(folder, is_tiny=arguments.tiny)
        if not run(f"{i}/{total} {step.name}: {step.what}", command):
            failed.append(step.name)
    if PLOTS in arguments.only:
        command = [sys.executable, str(BENCH / "plots.py"), str(folder)]
        if not run(f"{total}/{total} {PLOTS}: figures of all that was measured", command):
            failed.append(PLOTS)
    return failed


def main() -> int:
    arguments = parse_arguments()
    folder: Path = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as secrets:
        if arguments.suite is not None:
            os.environ["SECUREFABRIC_KEY_FILE"] = f"{secrets}/job.key"
            write_key_file(os.environ["SECUREFABRIC_KEY_FILE"], arguments.suite)
        failed = run_all(arguments, folder)
    print(f"==> JSON and figures are in {folder}", flush=True)
    if failed:
        print(f"    failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
