"""Run PyTorch's distributed tests on this backend: ``python tests/conformance/run.py --help``.

Each mode ("own": as itself, "as_gloo": standing in for gloo) and world size is a run in a process
of its own. A test that does not apply is in not_applicable.toml with its reason; any other skip is
a failure, and so is a listed test that runs and passes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from securefabric.identity import write_key_file

HERE = Path(__file__).resolve().parent
BACKENDS = {"own": "securefabric", "as_gloo": "gloo"}
WORLD_SIZES = (2, 3, 4)


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    test: str
    status: str  # passed, failed, not_applicable
    seconds: float
    why: str = ""  # the reason or the traceback


class Exclusions:
    """Tests that do not apply to a mode and world size, with reasons."""

    def __init__(self, mode: str, world_size: int) -> None:
        entries = tomllib.loads((HERE / "not_applicable.toml").read_text())["entry"]
        self._entries = [
            entry
            for entry in entries
            if mode in entry.get("modes", BACKENDS)
            and world_size in entry.get("world_sizes", WORLD_SIZES)
        ]

    def reason(self, test: str) -> str | None:
        """Return why a test does not apply; None if it does."""
        for entry in self._entries:
            if any(fnmatch.fnmatchcase(test, pattern) for pattern in entry["tests"]):
                return str(entry["reason"])
        return None


class Recorder(unittest.TestResult):
    """Collects outcomes by the rules of the exclusions."""

    def __init__(self, exclusions: Exclusions, progress: TextIO) -> None:
        super().__init__()
        self.outcomes: list[Outcome] = []
        self._exclusions = exclusions
        self._progress = progress
        self._started = 0.0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._started = time.monotonic()

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        if self._exclusions.reason(name_of(test)) is None:
            self._add(test, "passed")
        else:
            self._add(test, "failed", "it passes: take it off not_applicable.toml")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add_trouble(test, self._exc_info_to_string(err, test))

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add_trouble(test, self._exc_info_to_string(err, test))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self._add_trouble(test, f"skipped, and not in not_applicable.toml: {reason}")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self.addSuccess(test)

    def _add_trouble(self, test: unittest.TestCase, trouble: str) -> None:
        reason = self._exclusions.reason(name_of(test))
        if reason is None:
            self._add(test, "failed", trouble)
        else:
            self._add(test, "not_applicable", reason)

    def _add(self, test: unittest.TestCase, status: str, why: str = "") -> None:
        seconds = round(time.monotonic() - self._started, 2)
        self.outcomes.append(Outcome(name_of(test), status, seconds, why))
        report = f"    {status:15} {seconds:6.1f} s  {name_of(test)}"
        print(report, f"\n{why}" if status == "failed" else "", file=self._progress, flush=True)


def name_of(test: unittest.TestCase) -> str:
    """Return a test's name without "test_"."""
    return test.id().rsplit(".", 1)[-1].removeprefix("test_")


def run_here(
    mode: str, world_size: int, patterns: list[str], folder: Path, *, is_quick: bool
) -> list[Outcome]:
    """Run the tests that match in this process, which can do that once.

    Quick: those that do not apply are taken at the list's word, not run to see that they skip.
    """
    progress = take_output_away(folder / "log")
    os.environ.update(
        BACKEND=BACKENDS[mode],
        WORLD_SIZE=str(world_size),
        CUDA_VISIBLE_DEVICES="",  # a visible GPU makes the suite ask for one per rank
        OMP_NUM_THREADS="1",
        SECUREFABRIC_KEY_FILE=str(folder / "job.key"),
    )
    import suite

    suite.FORKSERVER.set_forkserver_preload(["suite"])
    exclusions = Exclusions(mode, world_size)
    names = unittest.defaultTestLoader.getTestCaseNames(suite.DistributedTest)
    every = [suite.DistributedTest(name) for name in names]
    picked = [test for test in every if matches(name_of(test), patterns)]
    recorder = Recorder(exclusions, progress)
    tests = unittest.TestSuite()
    for test in picked:
        reason = exclusions.reason(name_of(test))
        if is_quick and reason is not None:
            recorder.outcomes.append(Outcome(name_of(test), "not_applicable", 0.0, reason))
        else:
            tests.addTest(test)
    tests.run(recorder)
    return recorder.outcomes


def take_output_away(log: Path) -> TextIO:
    """Return the standard output for ourselves; what else is written goes to a log."""
    progress = os.fdopen(os.dup(1), "w")
    with log.open("wb") as chatter:
        for descriptor in (1, 2):
            os.dup2(chatter.fileno(), descriptor)
    return progress


def matches(test: str, patterns: list[str]) -> bool:
    """Whether a test is picked; no patterns pick all."""
    return not patterns or any(fnmatch.fnmatchcase(test, pattern) for pattern in patterns)


def run_apart(
    mode: str, world_size: int, patterns: list[str], *, is_quick: bool = False
) -> list[Outcome]:
    """Run the tests that match in a process of their own; its output goes to this one's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = folder / "report.json"
        write_key_file(str(folder / "job.key"))
        command = [sys.executable, __file__, "--mode", mode, "--world-size", str(world_size)]
        command += ["--child", str(folder), "--json", str(report), *patterns]
        command += ["--quick"] if is_quick else []
        # The fork server imports the suite too, and does not know our sys.path.
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
        ended = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path})
        if ended.returncode != 0:
            print((folder / "log").read_text()[-4000:], file=sys.stderr)
            sys.exit(f"the run of {mode}, {world_size} ranks ended with {ended.returncode}")
        return [Outcome(**outcome) for outcome in json.loads(report.read_text())]


def summary(results: dict[tuple[str, int], list[Outcome]]) -> str:
    """Return a table of all runs, and the reasons for what does not apply."""
    lines = ["mode    ranks   run passed failed   n/a   time"]
    for (mode, world_size), outcomes in results.items():
        count = Counter(outcome.status for outcome in outcomes)
        seconds = sum(outcome.seconds for outcome in outcomes)
        lines.append(
            f"{mode:8}{world_size:5} {count['passed'] + count['failed']:5} {count['passed']:6} "
            f"{count['failed']:6} {count['not_applicable']:5} {seconds:4.0f} s"
        )
    for (mode, world_size), outcomes in results.items():
        for outcome in outcomes:
            if outcome.status == "failed":
                last = outcome.why.strip().splitlines()[-1]
                lines.append(f"failed: {mode}, {world_size} ranks: {outcome.test}: {last}")
    return "\n".join(lines)


def main() -> int:
    """Run what the command line says; 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=BACKENDS, action="append", help="default: both")
    parser.add_argument("--world-size", type=int, action="append", help="default: 2, 3 and 4")
    parser.add_argument("--json", type=Path, help="write all outcomes to this file")
    parser.add_argument("--quick", action="store_true", help="trust not_applicable.toml")
    parser.add_argument("--child", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("tests", nargs="*", help="names without test_, with * and ?; default: all")
    parsed = parser.parse_args()
    modes, world_sizes = parsed.mode or list(BACKENDS), parsed.world_size or WORLD_SIZES
    if parsed.child:
        outcomes = run_here(
            modes[0], world_sizes[0], parsed.tests, parsed.child, is_quick=parsed.quick
        )
        parsed.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
        return 0
    results = {}
    for mode in modes:
        for world_size in world_sizes:
            print(f"== {mode}, {world_size} ranks", flush=True)
            results[mode, world_size] = run_apart(
                mode, world_size, parsed.tests, is_quick=parsed.quick
            )
    print(summary(results))
    if parsed.json:
        report = [
            {"mode": mode, "world_size": size, "outcomes": [asdict(one) for one in outcomes]}
            for (mode, size), outcomes in results.items()
        ]
        parsed.json.write_text(json.dumps(report, indent=1))
    return int(any(o.status == "failed" for outcomes in results.values() for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
