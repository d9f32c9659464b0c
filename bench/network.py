"""Measure what the network does to a job, over hosts with four links each; draw it.

    make bench-network                          # everything, into build/network
    python bench/network.py --only loss --out some/folder
    python bench/network.py --draw              # only draws again what was measured

Hosts are network namespaces (tests/testbed/namespaces.py), so it needs root. Each experiment writes
its numbers as JSON, then its figure as PNG. Where two backends are compared, both jobs run
at the same time and take turns, phase by phase. docs/NETWORK.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402  after the path
from _network_plots import FIGURES  # noqa: E402
from _network_ranks import join_at_once, reduce_by_phase, send_at_once  # noqa: E402
from ranks import run_ranks  # noqa: E402
from testbed.namespaces import Bed, Host, why_not  # noqa: E402
from testbed.stages import Stages  # noqa: E402

from securefabric.identity import write_key_file  # noqa: E402

LINKS = 4
FLOAT_BYTES = 4
PATIENCE_S = 120.0
BOTH = ("securefabric", "gloo")
FIRST_PORT = 23_000  # fixed: the kernel's hash spreads the same flows the same way each time


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much to measure."""

    rate_mbit: float = 200.0
    numel: int = 2 << 20
    seconds: float = 3.0
    paths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    losses: tuple[float, ...] = (0.0, 0.0001, 0.001, 0.01, 0.05)
    outage_s: tuple[float, float, float] = (2.0, 6.0, 9.0)
    """When a link is cut, when it is repaired, and when the measurement ends."""
    senders: int = 8
    simulated_senders: tuple[int, ...] = (8, 48)
    incast_numel: int = 1 << 19
    repeats: int = 10
    neighbours_numel: int = 1 << 18
    neighbours_seconds: float = 10.0
    """For which jobs run alone, and then at the same time."""
    rekey_numel: int = 1 << 14
    """Elements of the all_reduce whose latency is watched while keys change."""
    rekey_seconds: float = 10.0
    rekey_rounds: int = 3
    bulk_numel: int = 1 << 28
    """Elements of the one large all_reduce at a loss of 5 %."""
    bulk_epoch_bytes: int = 1 << 26
    worlds: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Ranks that join a job at the same moment."""


TINY = Size(
    numel=1 << 16,
    seconds=0.3,
    paths=(1, 4),
    losses=(0.0, 0.01),
    outage_s=(0.3, 0.8, 1.5),
    senders=2,
    simulated_senders=(8,),
    incast_numel=1 << 14,
    repeats=2,
    neighbours_numel=1 << 14,
    neighbours_seconds=0.5,
    rekey_seconds=1.0,
    rekey_rounds=1,
    bulk_numel=1 << 23,
    bulk_epoch_bytes=1 << 20,
    worlds=(2, 4),
)


@dataclass
class Job:
    """A job on the bed that waits for its phases."""

    backend: str
    folder: Path
    future: Any = None
    settings: dict[str, str] = field(default_factory=dict)

    def run_phase(self, phase: str, ranks: int = 2) -> None:
        """Wait until the ranks are there, and let them begin."""
        self.wait(phase, ranks)
        Stages(self.folder).open(phase)

    def wait(self, phase: str, ranks: int = 2) -> None:
        """Wait until the ranks have reached a phase, which ends the one before it."""
        until = time.monotonic() + PATIENCE_S
        while len(list(self.folder.glob(f"{phase}.[0-9]*"))) < ranks:
            if self.future.done():
                self.future.result()  # says why
            if self.future.done() or time.monotonic() > until:
                raise AssertionError(f"{self.backend} never came to {phase}")
            time.sleep(0.005)


def paths_settings(paths: int) -> dict[str, str]:
    """So many paths from as few sockets as make them."""
    sockets = 1
    while sockets * sockets < paths:
        sockets *= 2
    return {
        "SECUREFABRIC_PATHS_PER_PEER": str(paths),
        "SECUREFABRIC_SOCKETS_PER_INTERFACE": str(sockets),
        "SECUREFABRIC_PORTS": f"{FIRST_PORT}-{FIRST_PORT + 99}",
    }


class Conductor:
    """Runs jobs on a bed and collects what their ranks return."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self.bed = bed
        self.size = size
        self._kept = tempfile.TemporaryDirectory(prefix="sfnet")  # goes with this object
        self._folder = Path(self._kept.name)
        self._key_file = str(self._folder / "job.key")
        write_key_file(self._key_file)
        self._pool = ThreadPoolExecutor()

    def start(
        self,
        backend: str,
        phases: list[str],
        seconds: float,
        *,
        settings: dict[str, str] | None = None,
        sample_s: float = 0.0,
    ) -> Job:
        """Start two ranks that reduce, phase by phase."""
        job = self._make(backend, settings)
        arguments = (backend, str(job.folder), [*phases, "end"], seconds, self.size.numel, sample_s)
        job.future = self._pool.submit(self._run, reduce_by_phase, 2, job, *arguments)
        return job

    def start_incast(self, backend: str, senders: int) -> Job:
        """Start ranks of which all but one send to that one."""
        job = self._make(backend, None)
        arguments = (backend, str(job.folder), self.size.incast_numel, self.size.repeats)
        job.future = self._pool.submit(self._run, send_at_once, senders + 1, job, *arguments)
        return job

    def start_join(self, backend: str, ranks: int) -> Job:
        """Start ranks that join a job when they are let."""
        job = self._make(backend, {})
        arguments = (backend, str(job.folder))
        job.future = self._pool.submit(self._run, join_at_once, ranks, job, *arguments)
        return job

    def _make(self, backend: str, settings: dict[str, str] | None) -> Job:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        chosen = settings if settings is not None else paths_settings(16)
        return Job(backend=backend, folder=folder, settings=chosen)

    def _run(self, function: Callable[..., Any], ranks: int, job: Job, *arguments: Any) -> Any:
        outcomes = run_ranks(
            function,
            ranks,
            *arguments,
            key_file=self._key_file,
            environment=job.settings,
            timeout_s=280.0,
            bed=self.bed,
        )
        for outcome in outcomes:
            if outcome.error is not None:
                raise AssertionError(f"{outcome.error}\n{outcome.details}")
        return [outcome.value for outcome in outcomes]


def goodput_mbit(ended: list[float], numel: int) -> float:
    """What one rank sends in each direction, in 10^6 bits per second: two ranks exchange all."""
    return (len(ended) - 1) * numel * FLOAT_BYTES * 8 / (ended[-1] - ended[0]) / 1e6


def measure_paths(size: Size) -> dict[str, Any]:
    """Goodput against the number of paths, and what each link carried."""
    rows = []
    with Bed(2, LINKS, rate_mbit=size.rate_mbit, mtu=9000) as bed:
        conductor = Conductor(bed, size)
        for backend, paths in [*((BOTH[0], paths) for paths in size.paths), (BOTH[1], 1)]:
            job = conductor.start(backend, ["run"], size.seconds, settings=paths_settings(paths))
            job.run_phase("run")
            before = bed.link_bytes(1)
            job.run_phase("end")
            sent = [after - first for first, after in zip(before, bed.link_bytes(1), strict=True)]
            ended = job.future.result()[0]["ended"]["run"]
            rows.append(
                {
                    "backend": backend,
                    "paths": paths,
                    "goodput_mbit": goodput_mbit(ended, size.numel),
                    "link_bytes": sent,
                }
            )
    return {"rate_mbit": size.rate_mbit, "links": LINKS, "rows": rows}


def measure_loss(size: Size) -> dict[str, Any]:
    """Goodput against the share of packets lost, both backends taking turns."""
    phases = [f"loss{i}" for i in range(len(size.losses))]
    with Bed(2, LINKS, rate_mbit=size.rate_mbit, mtu=9000, per_packet=True) as bed:
        conductor = Conductor(bed, size)
        jobs = [conductor.start(backend, phases, size.seconds) for backend in BOTH]
        for phase, following, loss in zip(phases, [*phases[1:], "end"], size.losses, strict=True):
            bed.set_loss(loss)
            for job in jobs:
                job.run_phase(phase)
                job.wait(following)
        bed.set_loss(0.0)
        rows = []
        for job in jobs:
            job.run_phase("end")
            for phase, loss in zip(phases, size.losses, strict=True):
                ended = job.future.result()[0]["ended"][phase]
                rows.append(
                    {
                        "backend": job.backend,
                        "loss": loss,
                        "goodput_mbit": goodput_mbit(ended, size.numel),
                    }
                )
    return {"rate_mbit": size.rate_mbit, "links": LINKS, "rows": rows}


class Arrivals:
    """Samples how many bytes have come in over each link of a host, every 10 ms."""

    def __init__(self, host: Host, links: int) -> None:
        self.samples: list[tuple[float, list[int]]] = []
        self._host = host
        self._names = [f"p{link}:" for link in range(1, links + 1)]
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with self._host.entered(), Path("/proc/thread-self/net/dev").open() as counters:
            while not self._is_over.wait(0.01):
                counters.seek(0)
                fields = {line.split()[0]: line.split() for line in counters if ":" in line}
                self.samples.append(
                    (time.monotonic(), [int(fields[name][1]) for name in self._names])
                )


def measure_timeline(size: Size) -> dict[str, Any]:
    """The busiest link is silently cut and repaired while each backend reduces in turn."""
    cut_s, repair_s, end_s = size.outage_s
    timelines = {}
    with Bed(2, LINKS, rate_mbit=size.rate_mbit, mtu=9000) as bed:
        conductor = Conductor(bed, size)
        jobs = [conductor.start(backend, ["run"], end_s, sample_s=0.002) for backend in BOTH]
        for job in jobs:
            with Arrivals(bed.hosts[1], LINKS) as arrivals:
                job.run_phase("run")
                started = time.monotonic()
                before = bed.link_bytes(1)
                _sleep_until(started + cut_s)
                sent = [now - first for first, now in zip(before, bed.link_bytes(1), strict=True)]
                link = sent.index(max(sent)) + 1
                cut_at = time.monotonic()
                bed.set_down(2, link)
                _sleep_until(started + repair_s)
                repaired_at = time.monotonic()
                bed.set_down(2, link, is_down=False)
                job.wait("end")
            timelines[job.backend] = {
                "started": started,
                "cut_at": cut_at,
                "repaired_at": repaired_at,
                "link": link,
                "arrivals": arrivals.samples,
            }
        for job in jobs:
            job.run_phase("end")
            result = job.future.result()[0]
            timelines[job.backend]["ended"] = result["ended"]["run"]
            timelines[job.backend]["resent"] = [
                [sample["at"], sample["resent"]] for sample in result["samples"].get("run", [])
            ]
    return {"rate_mbit": size.rate_mbit, "links": LINKS, "timelines": timelines}


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def measure_incast(size: Size) -> dict[str, Any]:
    """Many send to one over one link: how long each sender took, against the ideal.

    Forty-eight processes would measure how two cores are shared, so that many are simulated: the
    same transport in virtual time, as securefabric/simulate/scenarios/incast-48.toml says.
    """
    rows = []
    ideal_s = size.incast_numel * FLOAT_BYTES * size.senders * 8 / (size.rate_mbit * 1e6)
    with Bed(size.senders + 1, 1, rate_mbit=size.rate_mbit, mtu=9000) as bed:
        for backend in BOTH:
            conductor = Conductor(bed, size)
            job = conductor.start_incast(backend, size.senders)
            job.run_phase("end", size.senders + 1)
            by_rank = job.future.result()
            of_ideal = [(end - start) / ideal_s for times in by_rank[1:] for start, end in times]
            rows.append({"backend": backend, "senders": size.senders, "of_ideal": of_ideal})
    rows += [simulate_incast(f"incast-{senders}") for senders in size.simulated_senders]
    return {"rate_mbit": size.rate_mbit, "rows": rows}


def simulate_incast(scenario: str) -> dict[str, Any]:
    """Return what a scenario of the simulator says about each sender, in multiples of the ideal."""
    command = [sys.executable, "-m", "securefabric.simulate", scenario, "--json"]
    # 3: the scenario misses its criteria, which the figure shows as well.
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 3):
        raise AssertionError(ended.stderr)
    (point,) = json.loads(ended.stdout)["points"]
    figures = point["figures"]
    ideal_s = figures["time_ms"] / 1e3 / figures["time_of_ideal"]
    seconds = point["completions_s"]
    return {
        "backend": "simulated",
        "senders": len(seconds) - 1,
        "of_ideal": [each / ideal_s for each in seconds],
    }


def measure_windows(size: Size) -> dict[str, Any]:
    """Round trip and window of every path over time; one link falls to a quarter and comes back."""
    slow_s, fair_s, end_s = size.outage_s
    with Bed(2, LINKS, rate_mbit=size.rate_mbit, mtu=9000) as bed:
        conductor = Conductor(bed, size)
        job = conductor.start(BOTH[0], ["run"], end_s, sample_s=0.02)
        job.run_phase("run")
        started = time.monotonic()
        _sleep_until(started + slow_s)
        bed.set_rate(size.rate_mbit / 4, link=1)
        _sleep_until(started + fair_s)
        bed.set_rate(size.rate_mbit, link=1)
        job.run_phase("end")
        samples = job.future.result()[0]["samples"]["run"]
    return {
        "rate_mbit": size.rate_mbit,
        "slow_s": slow_s,
        "fair_s": fair_s,
        "samples": [[sample["at"] - started, sample["paths"]] for sample in samples],
    }


def measure_neighbours(size: Size) -> dict[str, Any]:
    """What two jobs get of one link that they share: alone, and at the same time."""
    small = replace(size, numel=size.neighbours_numel)
    rows = []
    with Bed(2, 1, rate_mbit=size.rate_mbit, mtu=9000) as bed:
        conductor = Conductor(bed, small)
        for pair in ((BOTH[0], BOTH[1]), (BOTH[0], BOTH[0]), (BOTH[1], BOTH[1])):
            jobs = [
                conductor.start(backend, ["alone", "together"], size.neighbours_seconds)
                for backend in pair
            ]
            for job in jobs:
                job.run_phase("alone")
                job.wait("together")
            for job in jobs:
                job.run_phase("together")
            for job in jobs:
                job.run_phase("end")
            ended = [job.future.result()[0]["ended"] for job in jobs]
            both = (
                max(each["together"][0] for each in ended),
                min(each["together"][-1] for each in ended),
            )
            rows.append(
                {
                    "backends": list(pair),
                    "alone_mbit": [goodput_mbit(each["alone"], small.numel) for each in ended],
                    "together_mbit": [
                        goodput_mbit(
                            [at for at in each["together"] if both[0] <= at <= both[1]], small.numel
                        )
                        for each in ended
                    ],
                }
            )
    return {"rate_mbit": size.rate_mbit, "rows": rows}


KEYS = ("kept", "changing")
OFTEN = {"SECUREFABRIC_TEST_GENERATION_BITS": "8"}  # of a path: a key for 256 packets


def measure_rekey(size: Size) -> dict[str, Any]:
    """How long each small all_reduce takes, in a job whose keys change and in one that keeps them.

    The keys change by generation every 256 packets of a path, and by a key exchange twice a second.
    """
    phases = [f"round{i}" for i in range(size.rekey_rounds)]
    changing = {**paths_settings(16), **OFTEN, "SECUREFABRIC_EPOCH_AGE_S": "0.5"}
    small = replace(size, numel=size.rekey_numel)
    with Bed(2, LINKS, rate_mbit=size.rate_mbit, mtu=9000) as bed:
        conductor = Conductor(bed, small)
        jobs = [
            conductor.start(BOTH[0], phases, size.rekey_seconds, settings=settings, sample_s=0.002)
            for settings in (paths_settings(16), changing)
        ]
        for phase, following in zip(phases, [*phases[1:], "end"], strict=True):
            for job in jobs:
                job.run_phase(phase)
                job.wait(following)
        rows = {}
        for name, job in zip(KEYS, jobs, strict=True):
            job.run_phase("end")
            result = job.future.result()[0]
            rows[name] = [
                {"ended": result["ended"][phase], "changes": _changes(result["samples"][phase])}
                for phase in phases
            ]
    return {"bytes": small.numel * FLOAT_BYTES, "rows": rows}


def _changes(samples: list[dict[str, Any]]) -> list[float]:
    """When rank 0 was seen to have begun another epoch."""
    return [b["at"] for a, b in pairwise(samples) if b["epochs"] > a["epochs"]]


def measure_bulk(size: Size) -> dict[str, Any]:
    """One all_reduce of 1 GiB at a loss of 5 %, with keys that change all the time, and without."""
    changing = {
        **paths_settings(16),
        **OFTEN,
        "SECUREFABRIC_EPOCH_BYTES": str(size.bulk_epoch_bytes),
    }
    rows = {}
    for name, settings in zip(KEYS, (paths_settings(16), changing), strict=True):
        with Bed(2, LINKS, rate_mbit=size.rate_mbit, mtu=9000, per_packet=True) as bed:
            conductor = Conductor(bed, replace(size, numel=size.bulk_numel))
            job = conductor.start(BOTH[0], ["run"], 0.0, settings=settings, sample_s=0.002)
            job.wait("run")
            bed.set_loss(0.05)
            job.run_phase("run")
            job.wait("end")
            bed.set_loss(0.0)
            job.run_phase("end")
            result = job.future.result()[0]
        samples = result["samples"]["run"]
        rows[name] = {
            "ended": result["ended"]["run"],
            "received": [[sample["at"], sample["received_bytes"]] for sample in samples],
            "changes": _changes(samples),
            "srtt_us": sorted(path[3] for path in samples[len(samples) // 2]["paths"]),
            **{name: samples[-1][name] - samples[0][name] for name in ("sealed", "acks", "lost")},
            "drops": result["counted"]["drops"],
        }
    return {"bytes": size.bulk_numel * FLOAT_BYTES, "loss": 0.05, "rows": rows}


def measure_join(size: Size) -> dict[str, Any]:
    """Ranks of two hosts join a job: how long until the last has left a first all_reduce."""
    rows = []
    with Bed(2, 1) as bed:
        for ranks in size.worlds:
            for backend in BOTH:
                job = Conductor(bed, size).start_join(backend, ranks)
                job.run_phase("start", ranks)
                times = job.future.result()
                began = min(started for started, _, _ in times)
                rows.append(
                    {
                        "backend": backend,
                        "ranks": ranks,
                        "joined_s": max(joined for _, joined, _ in times) - began,
                        "reduced_s": max(reduced for _, _, reduced in times) - began,
                    }
                )
    return {"rows": rows}


EXPERIMENTS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "paths": measure_paths,
    "loss": measure_loss,
    "timeline": measure_timeline,
    "incast": measure_incast,
    "windows": measure_windows,
    "neighbours": measure_neighbours,
    "rekey": measure_rekey,
    "bulk": measure_bulk,
    "join": measure_join,
}


def conditions(size: Size) -> dict[str, Any]:
    """What the numbers were taken on."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "commit": commit.strip(),
        "mtu": 9000,
        "size": size.__dict__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure and draw what networks do to a job.")
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help="some, comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "build/network")
    parser.add_argument("--tiny", action="store_true", help="as small as possible, for tests")
    parser.add_argument("--draw", action="store_true", help="draw again, measure nothing")
    arguments = parser.parse_args()
    if not arguments.draw and (reason := why_not()):
        raise SystemExit(f"bench/network.py: {reason}")
    size = TINY if arguments.tiny else Size()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only.split(","):
        path = arguments.out / f"{name}.json"
        if not arguments.draw:
            print(f"==> {name}", flush=True)
            measured = {"conditions": conditions(size), **EXPERIMENTS[name](size)}
            path.write_text(json.dumps(measured, separators=(",", ":")) + "\n")
        for line in FIGURES[name](json.loads(path.read_text()), arguments.out / name):
            print(f"    {line}", flush=True)


if __name__ == "__main__":
    main()
