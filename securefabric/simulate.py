"""Run collectives of a simulated job over a faulty network, in virtual time, and check them.

    python -m securefabric.simulate --ranks 4 --op all_reduce --count 100000 \
        --loss 0.2 --reorder 0.2 --duplicate 0.2 --corrupt 0.01 --seed 7

The ranks are the same native engines that run on sockets, keys and ciphers included; only clock and
network are simulated. Every result is compared with one computed naively, no packet number may be
sealed twice, and no datagram may hold plaintext. The same options and seed give the same run, bit
by bit: a failure prints the command that replays it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from ._core import CoreError, Scenario, ScenarioReport, simulate

__all__ = ["KINDS", "main"]

# What --op may name, besides "mixed".
KINDS = (
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "gather",
    "scatter",
    "barrier",
)
_ANY = "any"
_MIXED = "mixed"

_EPILOG = """\
Things to try:
  a perfect network          --ranks 4 --op all_reduce --count 1000000
  a storm                    --op mixed --operations 20 --loss 0.2 --reorder 0.2 --duplicate 0.2
  many seeds                 --op mixed --operations 8 --loss 0.2 --seed 1 --seeds 100
  keys that change often     --generation-bits 6 --datagram-bytes 1200 --count 200000
  a thin, lossy wire         --rate-mbit 50 --queue-bytes 65536 --loss 0.01 --latency-us 2000
Exit status: 0 when every result was right, 1 when not, 2 for options that cannot be simulated.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m securefabric.simulate``; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    failed = 0
    for seed in range(parsed.seed, parsed.seed + parsed.seeds):
        try:
            scenario = _scenario(parsed, seed)
            report = simulate(scenario)
        except (CoreError, ValueError, TypeError) as error:
            print(f"securefabric.simulate: {error}", file=sys.stderr)
            return 2
        if parsed.seeds == 1:
            _print_report(report)
        if not report.ok:
            failed += 1
            _print_failure(scenario, report)
    if parsed.seeds > 1:
        print(f"{parsed.seeds - failed} of {parsed.seeds} seeds are right")
    return 1 if failed else 0


def _scenario(parsed: argparse.Namespace, seed: int) -> Scenario:
    scenario = Scenario()
    scenario.op = None if parsed.op == _MIXED else parsed.op
    scenario.dtype = None if parsed.dtype == _ANY else parsed.dtype
    scenario.reduce_op = None if parsed.reduce_op == _ANY else parsed.reduce_op
    scenario.seed = seed
    scenario.rate_bits = round(parsed.rate_mbit * 1e6)
    for name in _PLAIN:
        setattr(scenario, name, getattr(parsed, name))
    return scenario


def _print_report(report: ScenarioReport) -> None:
    traffic = report.traffic
    print(f"result          {'right on every rank' if report.ok else 'WRONG'}")
    print(f"virtual time    {report.virtual_seconds:.6f} s")
    print(f"packets         {traffic['packets_sealed']} sealed, {traffic['packets_opened']} opened")
    print(
        f"bytes           {traffic['message_bytes_received']} of payload, "
        f"{traffic['bytes_sealed']} on the wire, {traffic['bytes_resent']} of payload resent"
    )
    print(
        f"recovery        {traffic['packets_lost']} declared lost "
        f"({traffic['spurious_losses']} of them came late), {traffic['probe_timeouts']} probe "
        f"timeouts, {traffic['paths_suspected']} times a path was suspected"
    )
    print(f"network         {_counts(report.links)}")
    print(f"dropped         {_counts(report.drops) or 'nothing'}")
    print(f"trace           {report.trace_hash:016x}")


def _counts(counters: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counters.items() if count)


def _print_failure(scenario: Scenario, report: ScenarioReport) -> None:
    print(f"seed {scenario.seed} fails:", file=sys.stderr)
    for failure in report.failures:
        print(f"  {failure}", file=sys.stderr)
    print(f"replay: {scenario.replay_command()}", file=sys.stderr)


# Options whose name and unit are the scenario's own.
_PLAIN = (
    "ranks",
    "count",
    "operations",
    "concurrent",
    "skew_us",
    "time_limit",
    "loss",
    "loss_burst_us",
    "reorder",
    "reorder_us",
    "duplicate",
    "corrupt",
    "latency_us",
    "jitter_us",
    "queue_bytes",
    "mtu",
    "datagram_bytes",
    "sockets",
    "paths",
    "generation_bits",
)


def _parser() -> argparse.ArgumentParser:
    usual = Scenario()
    parser = argparse.ArgumentParser(
        prog="python -m securefabric.simulate",
        description="Simulate a job's collectives over a faulty network and check every result.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(
        group: argparse._ArgumentGroup, name: str, kind: type, text: str, default: float
    ) -> None:
        metavar = "N" if kind is int else "X"
        text = f"{text} (default {default:g})" if default else text
        group.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)

    job = parser.add_argument_group("the job")
    add(job, "ranks", int, "ranks of the job", 4)
    job.add_argument(
        "--op",
        choices=(*KINDS, _MIXED),
        default="all_reduce",
        help=f"the collective; {_MIXED}: drawn by the seed (default all_reduce)",
    )
    job.add_argument(
        "--dtype", default=_ANY, help="float32, int64, ...; default: drawn by the seed"
    )
    job.add_argument(
        "--reduce-op", default=_ANY, help="SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR, PREMUL_SUM"
    )
    add(job, "count", int, "elements of each tensor or chunk; at most, when mixed", usual.count)
    add(job, "operations", int, "collectives, one after the other", usual.operations)
    add(job, "concurrent", int, "of them in progress at a time", usual.concurrent)
    add(job, "skew-us", float, "each rank calls up to so much late", usual.skew_us)
    add(job, "time-limit", float, "virtual seconds for all of it", usual.time_limit)
    add(job, "seed", int, "of everything random: keys, values, faults", 1)
    add(job, "seeds", int, "run so many seeds, one after the other, from --seed on", 1)

    faults = parser.add_argument_group("faults (probabilities per datagram)")
    add(faults, "loss", float, "lost", 0.0)
    add(faults, "loss-burst-us", float, "and with it all that follows within this time", 0.0)
    add(faults, "reorder", float, "held back, so that later ones overtake", 0.0)
    add(faults, "reorder-us", float, "for so long", usual.reorder_us)
    add(faults, "duplicate", float, "delivered twice", 0.0)
    add(faults, "corrupt", float, "damaged: a bit flipped, or cut short", 0.0)

    links = parser.add_argument_group("links (one for each pair of sockets and direction)")
    add(links, "latency-us", float, "one way", usual.latency_us)
    add(links, "jitter-us", float, "on top, up to this", 0.0)
    add(links, "rate-mbit", float, "megabits per second; 0: no limit", 0.0)
    add(links, "queue-bytes", int, "wait for the rate; more is dropped", usual.queue_bytes)
    add(links, "mtu", int, "largest datagram that passes", usual.mtu)

    ranks = parser.add_argument_group("each rank")
    add(ranks, "sockets", int, "sockets", usual.sockets)
    add(ranks, "paths", int, "paths to each peer, at most sockets squared", usual.paths)
    add(ranks, "datagram-bytes", int, "largest datagram it sends", usual.datagram_bytes)
    add(ranks, "generation-bits", int, "log2 of the packets under one key", usual.generation_bits)
    return parser


if __name__ == "__main__":
    sys.exit(main())
