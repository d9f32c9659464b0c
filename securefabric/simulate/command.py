"""The command line of the simulator."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .._core import (
    CoreError,
    Scenario,
    ScenarioReport,
    draw_scenario,
    scenario_knobs,
    simulate,
)
from .measures import MEASURES, measure
from .scenario_file import CHOICES, ScenarioFile, load, shipped
from .workers import run_seeds

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
_SOAK = "soak"

_EPILOG = """\
Things to try:
  what there is              --list
  a link that fails          link-cut --seed 3
  a perfect network          --ranks 4 --op all_reduce --count 1000000
  a storm                    --op mixed --operations 20 --loss 0.2 --reorder 0.2 --duplicate 0.2
  random weather, many seeds soak --seeds 100
  keys that change often     --generation-bits 6 --datagram-bytes 1200 --count 200000
  a thin, lossy wire         --rate-mbit 50 --queue-bytes 65536 --loss 0.01 --latency-us 2000
  a link that comes and goes --event 'at_ms=1 link=0 flap_ms=4 until_ms=90' --rate-mbit 100
Settings on the command line replace those of the scenario.
Exit status: 0 when every result was right, 1 when not, 2 for what cannot be simulated, 3 when
results were right and a criterion of the scenario was missed.
"""
_RIGHT, _WRONG, _UNUSABLE, _MISSED = range(4)
_PROGRESS_S = 10.0


@dataclass(kw_only=True)
class _Run:
    """One point of a scenario, with one seed."""

    point: Mapping[str, float]
    scenario: Scenario
    report: ScenarioReport
    figures: dict[str, float]


@dataclass(kw_only=True)
class _Result:
    """A scenario with one seed: all points of its sweep."""

    file: ScenarioFile
    runs: list[_Run] = field(default_factory=list)
    # (criterion, what it is at, value, whether it is met)
    verdicts: list[tuple[str, str, float | None, bool]] = field(default_factory=list)

    @property
    def status(self) -> int:
        if not all(run.report.ok for run in self.runs):
            return _WRONG
        return _RIGHT if all(met for *_, met in self.verdicts) else _MISSED


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m securefabric.simulate``; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.list:
            return _print_list()
        if parsed.show:
            return _show(parsed)
        if parsed.seeds > 1:
            return _run_many(parsed)
        result = _run(parsed, parsed.seed)
    except (CoreError, ValueError, TypeError) as error:
        print(f"securefabric.simulate: {error}", file=sys.stderr)
        return _UNUSABLE
    if parsed.json:
        print(json.dumps(_as_json(result, parsed.seed), indent=1))
    else:
        _print_result(result)
    for text in _failures(parsed, parsed.seed, result):
        print(text, file=sys.stderr)
    return result.status


# What is to be run


def _overrides(parsed: argparse.Namespace) -> dict[str, float | str]:
    names = [*CHOICES, *(flag for _, _, flag, *_ in scenario_knobs())]
    return {name: value for name in names if (value := getattr(parsed, name)) is not None}


def _plan(parsed: argparse.Namespace, seed: int) -> tuple[ScenarioFile, list[Scenario]]:
    overrides = _overrides(parsed)
    if parsed.scenario is None:
        file = ScenarioFile(name="", settings={"op": "all_reduce", "ranks": 4})
    elif parsed.scenario == _SOAK:
        drawn = draw_scenario(seed)
        file = ScenarioFile(
            name=_SOAK,
            settings={flag: drawn[flag] for _, _, flag, *_ in scenario_knobs()},
            events=tuple(drawn.events),
        )
    else:
        file = load(parsed.scenario)
    # Settings of the sweep that are given on the command line choose its points, or make one.
    swept = {key: overrides[key] for key in file.points[0] if key in overrides}
    points = [point for point in file.points if swept.items() <= point.items()]
    if not points:
        points = [{**file.points[0], **{key: float(value) for key, value in swept.items()}}]
    file = replace(
        file,
        settings={**file.settings, **overrides},
        events=(*file.events, *parsed.event),
        points=tuple(points),
    )
    return file, [file.build(point, seed) for point in points]


def _run(parsed: argparse.Namespace, seed: int) -> _Result:
    file, scenarios = _plan(parsed, seed)
    result = _Result(file=file)
    for point, scenario in zip(file.points, scenarios, strict=True):
        report = simulate(scenario)
        figures = measure(report, ideal_mbit=file.ideal_mbit, events=scenario.events)
        result.runs.append(_Run(point=point, scenario=scenario, report=report, figures=figures))
    for criterion in file.criteria:
        for run in result.runs:
            at = next(iter(run.point.items()), None)
            if criterion.at is not None and (at is None or at[1] != criterion.at):
                continue
            value = criterion.value(run.figures, result.runs[0].figures)
            where = f"{at[0]} {at[1]:g}" if at else ""
            result.verdicts.append((criterion.text, where, value, criterion.is_met(value)))
    return result


def _failures(parsed: argparse.Namespace, seed: int, result: _Result) -> Iterator[str]:
    """Yield what went wrong, with the command that replays it."""
    for run in result.runs:
        if run.report.ok:
            continue
        yield f"seed {seed} fails:"
        yield from (f"  {failure}" for failure in run.report.failures)
        yield f"replay: {_replay(parsed, seed, run)}"


def _replay(parsed: argparse.Namespace, seed: int, run: _Run) -> str:
    if parsed.scenario is None:
        return run.scenario.replay_command()
    words = ["python", "-m", "securefabric.simulate", parsed.scenario]
    for flag, value in {**_overrides(parsed), **run.point}.items():
        text = value if isinstance(value, str) else f"{value:.17g}"
        words += [f"--{flag.replace('_', '-')}", text]
    for event in parsed.event:
        words += ["--event", event]
    return shlex.join([*words, "--seed", str(seed)])


def _show(parsed: argparse.Namespace) -> int:
    for scenario in _plan(parsed, parsed.seed)[1]:
        print(scenario.replay_command())
    return _RIGHT


def _print_list() -> int:
    names = shipped()
    width = max(len(name) for name in [*names, _SOAK])
    for name in names:
        print(f"{name:{width}}  {load(name).about}")
    print(f"{_SOAK:{width}}  Random weather: every kind of fault, drawn by the seed")
    return _RIGHT


# Many seeds


def run_seed(arguments: object, seed: int) -> list[str]:
    """Run one seed in a worker; returns what failed, in sentences."""
    assert isinstance(arguments, argparse.Namespace)
    result = _run(arguments, seed)
    missed = [f"seed {seed}: missed {text}" for text, _, _, met in result.verdicts if not met]
    return [*_failures(arguments, seed, result), *missed]


def _run_many(parsed: argparse.Namespace) -> int:
    _plan(parsed, parsed.seed)  # what is wrong with it is said once, and here
    started = shown = time.monotonic()
    done = failed = 0
    for seed, failures in run_seeds(
        run_seed, parsed, range(parsed.seed, parsed.seed + parsed.seeds), parsed.workers
    ):
        done += 1
        if failures:
            failed += 1
            if not any(text.startswith("replay: ") for text in failures):
                name = parsed.scenario or ""
                failures.append(f"replay: python -m securefabric.simulate {name} --seed {seed}")
            print("\n".join(failures), file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - shown > _PROGRESS_S:
            shown = now
            text = f"{done} of {parsed.seeds} seeds, {failed} failed, {now - started:.0f} s"
            print(text, file=sys.stderr, flush=True)
    print(f"{done - failed} of {parsed.seeds} seeds are right")
    return _WRONG if failed else _RIGHT


# What is shown


def _print_result(result: _Result) -> None:
    if result.file.about:
        print(result.file.about)
    if len(result.file.points) > 1:
        _print_table(result)
    else:
        _print_report(result.runs[0])
    is_right = all(run.report.ok for run in result.runs)
    if len(result.runs) > 1 or result.verdicts:
        print(f"{'met' if is_right else 'MISSED':6}  every result exact, and no checker objects")
    for text, where, value, met in result.verdicts:
        shown = "not measured" if value is None else f"{value:.4g}"
        where = f" [{where}]" if where and " at " not in text else ""
        print(f"{'met' if met else 'MISSED':6}  {text}{where}: {shown}")


_COLUMNS = (
    "time_ms",
    "goodput_mbit",
    "goodput_of_ideal",
    "link_max_mean",
    "packets_lost",
    "spurious",
    "timeouts",
    "bytes_resent",
    "queue_dropped",
    "socket_dropped",
)


def _print_table(result: _Result) -> None:
    keys = list(result.file.points[0])
    columns = [name for name in _COLUMNS if any(name in run.figures for run in result.runs)]
    rows = [[*keys, "result", *columns]]
    for run in result.runs:
        figures = [
            f"{run.figures[name]:.4g}"
            if isinstance(run.figures.get(name), float)
            else str(run.figures.get(name, "-"))
            for name in columns
        ]
        point = [f"{run.point[key]:g}" for key in keys]
        rows.append([*point, "right" if run.report.ok else "WRONG", *figures])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))


def _print_report(run: _Run) -> None:
    report = run.report
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
        f"timeouts, {traffic['paths_suspected']} times a path was suspected, "
        f"{traffic['epochs_begun']} times a link moved to fresh keys"
    )
    print(f"network         {_counts(report.links)}")
    if 1 < len(report.by_link) <= _LINKS_SHOWN:
        bytes_of = {name: counts["bytes"] for name, counts in report.by_link.items()}
        print(f"bytes by link   {', '.join(f'{name}: {b}' for name, b in bytes_of.items())}")
    print(f"dropped         {_counts(report.drops) or 'nothing'}")
    shown = {name: run.figures[name] for name in MEASURES if name in run.figures}
    print(f"figures         {', '.join(f'{name} {value:.4g}' for name, value in shown.items())}")
    print(f"trace           {report.trace_hash:016x}")


_LINKS_SHOWN = 16


def _counts(counters: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counters.items() if count)


def _as_json(result: _Result, seed: int) -> dict[str, object]:
    return {
        "scenario": result.file.name,
        "about": result.file.about,
        "seed": seed,
        "points": [
            {
                "point": dict(run.point),
                "ok": run.report.ok,
                "failures": run.report.failures,
                "figures": run.figures,
                "traffic": run.report.traffic,
                "drops": run.report.drops,
                "links": run.report.links,
                "by_link": run.report.by_link,
                "began_s": run.report.began_seconds,
                "completions_s": run.report.completions_seconds,
                "samples": run.report.samples,
                "trace": f"{run.report.trace_hash:016x}",
            }
            for run in result.runs
        ],
        "criteria": [
            {"criterion": text, "at": where, "value": value, "met": met}
            for text, where, value, met in result.verdicts
        ],
    }


# The options


_SECTIONS = {
    "job": "the job",
    "rank": "each rank",
    "network": "the network",
    "link": "links between ranks, in each direction (probabilities are per datagram)",
    "sender_port": "a rank's port to its switch, outwards; there when it has a rate",
    "receiver_port": "and inwards, which many senders may overrun",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m securefabric.simulate",
        description="Simulate a job's collectives over a faulty network and check every result.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenario",
        nargs="?",
        help=f"name of a scenario (--list), path of a .toml file, or '{_SOAK}'; without one, the "
        "settings below say it all",
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    parser.add_argument("--show", action="store_true", help="print it as settings, and run nothing")
    parser.add_argument("--json", action="store_true", help="print all figures and samples as JSON")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of everything random (default 1)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run so many seeds, from --seed on"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes for them (default: cores)"
    )
    groups = {name: parser.add_argument_group(text) for name, text in _SECTIONS.items()}
    job = groups["job"]
    job.add_argument(
        "--op", choices=(*KINDS, "mixed"), help="the collective; mixed: drawn (default all_reduce)"
    )
    job.add_argument("--dtype", help="float32, int64, ...; default: drawn by the seed")
    job.add_argument("--reduce-op", help="SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR, PREMUL_SUM")
    for section, _name, flag, text, usual, _whole in scenario_knobs():
        usual = 4.0 if flag == "ranks" else usual
        shown = f"{text} (default {usual:g})" if usual else text
        groups[section].add_argument(
            f"--{flag.replace('_', '-')}", type=float, metavar="N", help=shown
        )
    groups["network"].add_argument(
        "--event",
        action="append",
        default=[],
        metavar="TEXT",
        help="a change: at_ms=, then link=, from=, to=, where=wire|in|out to choose links, then "
        "settings of links (down=1), ramp_ms=, flap_ms= and until_ms=",
    )
    return parser
