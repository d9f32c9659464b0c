"""How a case is timed, and what is written down about it and about the machine."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import torch
from _backends import Backend, MpiBackend, Unsupported
from _operations import ROOT, Case, Operation, make_case

T = TypeVar("T")

ITERATIONS_MIN: Final = 20
ITERATIONS_MAX: Final = 5_000


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure one case."""

    warmup: int = 5
    iterations: int = 0
    """Timed calls; 0 means as many as fit into `seconds`, within bounds."""
    seconds: float = 0.5


class Timed(Protocol):
    """A row of any benchmark."""

    @property
    def p50_us(self) -> float:
        """The median."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured case, in the columns of nccl-tests."""

    backend: str
    operation: str
    size_bytes: int
    count: int
    dtype: str
    reduce_op: str
    root: int
    iterations: int
    p50_us: float
    p99_us: float
    cpu_s_per_call: float
    """User and system time of all threads of all ranks together; the mean."""
    algbw_gb_s: float
    """10^9 bytes per second, at the median."""
    busbw_gb_s: float
    wrong: int
    """Elements that were not what they must be, over all ranks."""


@dataclass
class Timing:
    """One case on one backend: its calls, and the times of those made so far on this rank."""

    backend: Backend
    case: Case
    effort: Effort
    call: Callable[[], object] = field(init=False)
    times_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    """What this rank's CPUs did in these calls together."""
    wrong: int = 0

    def __post_init__(self) -> None:
        self.call = self.backend.bind(self.case)

    def check(self) -> None:
        """Run once with a pattern and count what is wrong. All ranks must call this.

        Raises Unsupported on all of them when it is that on one.
        """
        self.case.fill()
        refusal = ""
        try:
            self.call()
        except Unsupported as error:
            refusal = str(error)
        refusals = [each for each in self._everyones(refusal) if each]
        if refusals:
            raise Unsupported(refusals[0])
        self.wrong += sum(self._everyones(self.case.wrong()))

    def plan(self) -> int:
        """Warm up and return how many calls fit into the effort; the same on all ranks."""
        self.backend.barrier()
        warmup, _ = self._time_calls(self.effort.warmup)
        if self.effort.iterations:
            return self.effort.iterations
        typical = sorted(warmup)[len(warmup) // 2] if warmup else self.effort.seconds
        slowest = max(self._everyones(typical))
        return min(max(int(self.effort.seconds / slowest), ITERATIONS_MIN), ITERATIONS_MAX)

    def run(self, iterations: int) -> None:
        """Time so many calls more."""
        self.backend.barrier()
        times_s, cpu_s = self._time_calls(iterations)
        self.times_s += times_s
        self.cpu_s += cpu_s

    def result(self) -> Row:
        """Return the median and the 99th percentile of what was measured so far."""
        p50, p99 = self._percentiles_s()
        case = self.case
        algbw = case.size_bytes / p50 / 1e9
        return Row(
            backend=self.backend.name,
            operation=case.operation.name,
            size_bytes=case.size_bytes,
            count=case.count,
            dtype=str(case.dtype).removeprefix("torch."),
            reduce_op=case.reduce_op if case.operation.is_reduction else "none",
            root=ROOT if case.operation.has_root else -1,
            iterations=len(self.times_s),
            p50_us=p50 * 1e6,
            p99_us=p99 * 1e6,
            cpu_s_per_call=sum(self._everyones(self.cpu_s)) / len(self.times_s),
            algbw_gb_s=algbw,
            busbw_gb_s=algbw * case.operation.bus_factor(case.ranks),
            wrong=self.wrong,
        )

    def _percentiles_s(self) -> tuple[float, float]:
        if self.case.operation.has_root:
            # The calls began together: each took as long as on its slowest rank.
            slowest = [max(times) for times in zip(*self._everyones(self.times_s), strict=True)]
            return percentile(slowest, 50), percentile(slowest, 99)
        # Each rank's calls followed each other: how often a rank can call is what its median says.
        p50s = self._everyones(percentile(self.times_s, 50))
        p99s = self._everyones(percentile(self.times_s, 99))
        return max(p50s), max(p99s)

    def _everyones(self, value: T) -> list[T]:
        return self.backend.all_gather(value)

    def _time_calls(self, count: int) -> tuple[list[float], float]:
        """Time single calls, one after the other; also the CPU time of all of them together.

        Where there is a root, some ranks need not wait for others and would run ahead of them, so
        all ranks meet before each call, which counts in neither.
        """
        self.backend.synchronise()  # each call ends with that, too: see Backend.bind
        meet = self.backend.barrier if self.case.operation.has_root else None
        cpu_s = self.backend.cpu_s
        times_ns, met_s, started_s = [], 0.0, cpu_s()
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(count):
                if meet is not None:
                    met_s -= cpu_s()
                    meet()
                    met_s += cpu_s()
                before = time.perf_counter_ns()
                self.call()
                times_ns.append(time.perf_counter_ns() - before)
        finally:
            if was_collecting:
                gc.enable()
        return [time_ns / 1e9 for time_ns in times_ns], cpu_s() - started_s - met_s


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How backends take turns with one case: A B C, A B C, ..."""

    rounds: int = 5
    seconds: float = 1.0
    """Of timing, for each backend."""
    iterations: int = 0
    """Calls a turn; 0 means what `seconds` allow."""

    def effort(self) -> Effort:
        """Return what one turn takes."""
        return Effort(seconds=self.seconds / self.rounds, iterations=self.iterations)


def take_turns(
    backends: Sequence[Backend],
    operation: Operation,
    size_bytes: int,
    *,
    dtype: torch.dtype,
    reduce_op: str,
    turns: Turns,
) -> dict[str, Row]:
    """Return a row of each backend that has this operation. All ranks must call this."""
    timings = []
    for backend in backends:
        case = make_case(
            operation,
            size_bytes,
            dtype=dtype,
            reduce_op=reduce_op,
            rank=backend.rank,
            ranks=backend.ranks,
            device=backend.device,
        )
        try:
            timing = Timing(backend, case, turns.effort())
            timing.check()
        except Unsupported as error:
            say(backend, f"left out: {error}")
        else:
            timings.append(timing)
    counts = [timing.plan() for timing in timings]
    for _ in range(turns.rounds):
        for timing, count in zip(timings, counts, strict=True):
            timing.run(count)
    for timing in timings:
        timing.check()
    return {timing.backend.name: timing.result() for timing in timings}


def ratios(rows: Mapping[str, Timed], first: str) -> dict[str, float]:
    """Return the first backend's median time over each other's."""
    if first not in rows:
        return {}
    own = rows[first].p50_us
    return {name: own / row.p50_us for name, row in rows.items() if name != first}


def say(backend: Backend, text: str) -> None:
    """Tell whoever waits for rank 0."""
    if backend.rank == 0:
        print(text, file=sys.stderr, flush=True)


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that is not below `percent` of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def describe_machine(backends: Sequence[Backend]) -> dict[str, object]:
    """Return what a reader needs to know about where and with what the figures were taken."""
    facts: dict[str, object] = {
        "kernel": platform.release(),
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "commit": _commit(),
        "loopback_mtu": _text("/sys/class/net/lo/mtu"),
        "tcp_congestion_control": _text("/proc/sys/net/ipv4/tcp_congestion_control"),
        "rmem_max": _text("/proc/sys/net/core/rmem_max"),
        "wmem_max": _text("/proc/sys/net/core/wmem_max"),
    }
    for backend in backends:
        if backend.device.type == "cuda":
            facts["gpu"] = torch.cuda.get_device_name(backend.device)
            facts["gpus"] = torch.cuda.device_count()  # the ranks of this host share them
        if isinstance(backend, MpiBackend):
            facts["mpi"] = backend.describe()
        elif backend.name == "securefabric":
            facts.update(_describe_fabric())
    return facts


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write a document that holds dataclasses as well."""
    path.write_text(json.dumps(document, indent=1, default=_as_dict) + "\n")


def _as_dict(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no place in a report")


def _describe_fabric() -> dict[str, object]:
    from securefabric import stats

    counted = stats()
    return {
        "suite": counted.suite,
        "engines": counted.engines,
        "paths_active": counted.paths_active,
        "gso": counted.gso,
        "gro": counted.gro,
        "epochs_begun": counted.epochs_begun,
    }


def _commit() -> str:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _first_value(path: str, key: str) -> str:
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return platform.machine()
