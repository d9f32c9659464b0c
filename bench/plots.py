"""Draw what the benchmarks wrote as JSON, so that nobody has to read it.

    python bench/plots.py build/bench                    # all JSON of that folder, figures into it

The files are known by their names:

    compare.json, wireguard.json    of those scripts: a figure per operation and number of ranks
    training.json                   of that script: one figure
    ablations.json                  of that script: a figure per number of ranks
    engines.json                    of ablations.py --ablation engines: likewise
    roofline.json                   of that script: one figure

What is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from _operations import OPERATIONS, format_size
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Data = Mapping[str, Any]
Series = list[tuple[int, float]]  # size in bytes, value

OURS: Final = "securefabric"
COLOURS: Final = {
    OURS: "tab:blue",
    "gloo": "tab:orange",
    "mpi": "tab:green",
    "gloo-wireguard": "tab:red",
    "no communication": "tab:grey",
}
NULL: Final = "null"  # the variant of ablations.py that does not encrypt
FACTS: Final = (
    "cpu",
    "cores",
    "gpu",
    "kernel",
    "torch",
    "suite",
    "engines",
    "mpi",
    "wireguard",
    "commit",
)


def label_of(backend: str, machine: Data) -> str:
    """Say what a backend is, and whether it encrypts."""
    mpi = str(machine.get("mpi", "MPI"))
    return {
        OURS: f"securefabric (encrypted, {machine.get('suite', 'UDP')})",
        "gloo": "gloo (TCP, in the clear)",
        "mpi": f"{mpi} (in the clear)",
        "gloo-wireguard": "gloo inside WireGuard in user space (encrypted)",
        "no communication": "no communication",
    }.get(backend, backend)


# Figures


def draw_comparisons(data: Any, stem: Path) -> list[Path]:
    """One figure for each operation and number of ranks."""
    drawn = []
    for run in data["runs"]:
        by_operation: dict[str, list[dict[str, Data]]] = {}
        for comparison in run["comparisons"]:
            rows = comparison["rows"]
            for operation in {row["operation"] for row in rows.values() if row["size_bytes"]}:
                by_operation.setdefault(operation, []).append(rows)
        for operation, comparisons in by_operation.items():
            path = stem.with_name(f"{stem.name}-{operation}-{run['ranks']}-ranks.png")
            _draw_operation(operation, run, comparisons, path)
            drawn.append(path)
    return drawn


def _draw_operation(
    operation: str, run: Data, comparisons: Sequence[Mapping[str, Data]], path: Path
) -> None:
    machine = run["machine"]
    figure, (times, speeds, costs) = _figure(3, 12.0)
    for backend in comparisons[0]:
        rows = sorted(
            (rows[backend] for rows in comparisons if backend in rows),
            key=lambda row: int(row["size_bytes"]),
        )
        colour, label = COLOURS.get(backend, "black"), label_of(backend, machine)
        _plot(times, _series(rows, "p50_us"), "o-", colour, label)
        _plot(times, _series(rows, "p99_us"), ":", colour)
        _plot(speeds, _series(rows, "busbw_gb_s"), "o-", colour, label)
        per_byte = [
            (int(row["size_bytes"]), row["cpu_s_per_call"] * 1e9 / row["size_bytes"])
            for row in rows
        ]
        _plot(costs, per_byte, "o-", colour, label)
    sizes = sorted({int(row["size_bytes"]) for rows in comparisons for row in rows.values()})
    times.set_yscale("log")
    times.plot([], [], ":", color="black", label="dotted: 99th percentile")
    _label(times, sizes, "Time of one call: lower is better", "µs, median")
    _label(speeds, sizes, "Bus bandwidth: higher is better", "GB/s, at the median time")
    speeds.set_ylim(bottom=0)
    costs.set_yscale("log")
    title, unit = "CPU time for each byte of the tensor", "ns of CPU time, all ranks together"
    where = f"{run['ranks']} ranks on one host"
    if "tunnel_mtu" in machine:
        title += ", with that of the tunnel"
        where = f"{run['ranks']} hosts (network namespaces), one link, MTU {machine['link_mtu']}"
    _label(costs, sizes, f"{title}: lower is better", unit)
    figure.suptitle(f"{operation}, {where}")
    _save(figure, path, machine)


def draw_training(data: Any, stem: Path) -> list[Path]:
    """The step's time and its CPU time, for each number of ranks."""
    runs = data["runs"]
    if not runs:
        return []
    figure, (times, costs) = _figure(2, 9.0)
    backends = list(runs[0]["rows"])
    width, highest = 0.8 / len(backends), 0.0
    for i, backend in enumerate(backends):
        rows = [run["rows"][backend] for run in runs]
        at = [place + (i - (len(backends) - 1) / 2) * width for place in range(len(runs))]
        label, colour = label_of(backend, runs[0]["machine"]), COLOURS.get(backend, "black")
        medians, p99s = ([row[key] / 1e3 for row in rows] for key in ("p50_us", "p99_us"))
        above = [p99 - median for p99, median in zip(p99s, medians, strict=True)]
        errors = [[0.0] * len(rows), above]
        bars = times.bar(at, medians, width, yerr=errors, capsize=4, color=colour, label=label)
        texts = [f"{p50:.0f}\n(p99 {p99:.0f})" for p50, p99 in zip(medians, p99s, strict=True)]
        times.bar_label(bars, texts, label_type="center")
        highest = max(highest, *(min(p99, 2 * p50) for p50, p99 in zip(medians, p99s, strict=True)))
        bars = costs.bar(
            at, [row["cpu_s_per_step"] * 1e3 for row in rows], width, color=colour, label=label
        )
        costs.bar_label(bars, fmt="%.0f", label_type="center")
    titles = (
        (times, "Time of one step: lower is better", "ms: median, whisker to the 99th percentile"),
        (costs, "CPU time of one step: lower is better", "ms of CPU time, all ranks together"),
    )
    for axes, title, unit in titles:
        axes.set_xticks(range(len(runs)), [f"{run['ranks']} ranks on one host" for run in runs])
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.grid(axis="y", alpha=0.3)
    times.set_ylim(0, highest * 1.4)  # room for the legend; a far outlier's whisker is cut off
    times.legend(loc="upper left")
    model = runs[0]["model"]
    figure.suptitle(
        f"Training a decoder of {model['parameters'] / 1e6:.1f} million parameters with DDP: "
        f"{model['gradient_bytes'] / 1e6:.0f} MB of gradients"
    )
    path = stem.with_suffix(".png")
    _save(figure, path, runs[0]["machine"])
    return [path]


@dataclass(frozen=True)
class Panel:
    """Ratios over sizes, one line for each variant."""

    title: str
    unit: str
    lines: dict[str, Series]


def draw_roofline(data: Any, stem: Path) -> list[Path]:
    """The sum of the steps beside the time of an all_reduce, both per byte."""
    rows = data["rows"]
    figure, (axes,) = _figure(1, 5.0)
    titles = [f"{format_size(row['size_bytes'])}\n{row['suite']}" for row in rows]
    bases = [0.0] * len(rows)
    for i, step in enumerate(rows[0]["steps_us"]):
        heights = [row["steps_us"][step] * 1e3 / row["size_bytes"] for row in rows]
        axes.bar(range(len(rows)), heights, 0.6, bottom=bases, color=f"C{i}", label=step)
        bases = [base + height for base, height in zip(bases, heights, strict=True)]
    for i, row in enumerate(rows):
        whole = row["p50_us"] * 1e3 / row["size_bytes"]
        axes.plot([i - 0.4, i + 0.4], [whole, whole], color="black")
        axes.annotate(f"{row['share']:.2f}", (i, whole), ha="center", va="bottom")
    axes.plot([], [], color="black", label="all_reduce, and the steps' share of it")
    axes.set_xticks(range(len(rows)), titles, fontsize="x-small")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ns per byte of the tensor")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"What the steps of an all_reduce cost, {rows[0]['ranks']} ranks on one host")
    path = stem.with_suffix(".png")
    _save(figure, path, data["machine"])
    return [path]


def draw_ablations(data: Any, stem: Path) -> list[Path]:
    """What encryption costs, and what each other part is worth; one figure per number of ranks."""
    drawn = []
    for ranks in sorted({row["ranks"] for row in data["rows"]}):
        panels = ablation_panels([row for row in data["rows"] if row["ranks"] == ranks])
        if not panels:
            continue
        figure, all_axes = _figure(len(panels), 4.5 * len(panels))
        for axes, panel in zip(all_axes, panels, strict=True):
            for i, (name, series) in enumerate(panel.lines.items()):
                _plot(axes, series, "o-", f"C{i}", name)
            axes.axhline(1.0, color="black", linestyle=":")
            axes.set_ylim(bottom=0)
            sizes = sorted({size for series in panel.lines.values() for size, _ in series})
            _label(axes, sizes, panel.title, panel.unit)
        figure.suptitle(f"all_reduce of the native core alone, {ranks} ranks on one host")
        path = stem.with_name(f"{stem.name}-{ranks}-ranks.png")
        _save(figure, path, data["machine"])
        drawn.append(path)
    return drawn


def draw_engines(data: Any, stem: Path) -> list[Path]:
    """Bus bandwidth and time by the engines of a rank; one figure per number of ranks."""
    drawn = []
    for ranks in sorted({row["ranks"] for row in data["rows"]}):
        of_ranks = [row for row in data["rows"] if row["ranks"] == ranks]
        figure, (speeds, times) = _figure(2, 9.0)
        for i, engines in enumerate(sorted({row["engines"] for row in of_ranks})):
            rows = [row for row in of_ranks if row["engines"] == engines]
            label = "one engine" if engines == 1 else f"{engines} engines"
            moved = OPERATIONS["all_reduce"].bus_factor(ranks)
            bandwidth = [
                (size, moved * size / p50_us / 1e3) for size, p50_us in _series(rows, "p50_us")
            ]
            _plot(speeds, bandwidth, "o-", f"C{i}", label)
            _plot(times, _series(rows, "p50_us"), "o-", f"C{i}", label)
            _plot(times, _series(rows, "p99_us"), ":", f"C{i}")
        sizes = sorted({int(row["size_bytes"]) for row in of_ranks})
        speeds.set_ylim(bottom=0)
        _label(speeds, sizes, "Bus bandwidth: higher is better", "GB/s, at the median time")
        times.set_yscale("log")
        times.plot([], [], ":", color="black", label="dotted: 99th percentile")
        _label(times, sizes, "Time of one call: lower is better", "µs, median")
        figure.suptitle(f"all_reduce by the engines of a rank, {ranks} ranks on one host")
        path = stem.with_name(f"{stem.name}-{ranks}-ranks.png")
        _save(figure, path, data["machine"])
        drawn.append(path)
    return drawn


def ablation_panels(rows: Sequence[Data]) -> list[Panel]:
    """Divide each variant by the one that it is compared with."""
    to_null = [row for row in rows if row["against"] == NULL != row["variant"]]
    to_other = [row for row in rows if row["against"] != NULL]
    references = ", ".join(dict.fromkeys(str(row["against"]) for row in to_other))
    panels = [
        Panel(
            "Time with encryption: 1.0 means that it is free, lower is better",
            "median / median without a cipher",
            _ratios(to_null, rows, "p50_us"),
        ),
        Panel(
            "CPU time with encryption: 1.0 means that it is free, lower is better",
            "CPU time / CPU time without a cipher",
            _ratios(to_null, rows, "cpu_s_per_call"),
        ),
        Panel(
            "Time without offloads, or with one path: above 1.0, what is left out helps",
            f"median / median with all of them ({references})",
            _ratios(to_other, rows, "p50_us"),
        ),
    ]
    return [panel for panel in panels if panel.lines]


def _ratios(chosen: Sequence[Data], rows: Sequence[Data], key: str) -> dict[str, Series]:
    """Return, for each chosen variant, its value over that of the variant it is compared with."""
    values = {(row["variant"], row["size_bytes"]): float(row[key]) for row in rows}
    lines: dict[str, Series] = {}
    for row in sorted(chosen, key=lambda row: int(row["size_bytes"])):
        rival = values.get((row["against"], row["size_bytes"]))
        if rival:
            series = lines.setdefault(str(row["variant"]), [])
            series.append((int(row["size_bytes"]), float(row[key]) / rival))
    return lines


FIGURES: Final[dict[str, Callable[[Any, Path], list[Path]]]] = {
    "compare": draw_comparisons,
    "wireguard": draw_comparisons,
    "training": draw_training,
    "ablations": draw_ablations,
    "engines": draw_engines,
    "roofline": draw_roofline,
}


# Their parts


def _figure(rows: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = plt.subplots(rows, 1, figsize=(9, height), layout="constrained", squeeze=False)
    return figure, [row[0] for row in axes]


def _series(rows: Sequence[Data], key: str) -> Series:
    return sorted((int(row["size_bytes"]), float(row[key])) for row in rows)


def _plot(axes: Axes, series: Series, style: str, colour: str, label: str | None = None) -> None:
    sizes, values = [size for size, _ in series], [value for _, value in series]
    axes.plot(sizes, values, style, color=colour, label=label, markersize=4)


def _label(axes: Axes, sizes: Sequence[int], title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [format_size(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("size of the tensor in bytes; K = 1,024, M = 1,024 K")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _save(figure: Figure, path: Path, machine: Data) -> None:
    facts = [f"{fact} {machine[fact]}" for fact in FACTS if fact in machine]
    if facts:
        half = (len(facts) + 1) // 2
        lines = (", ".join(facts[:half]), ", ".join(facts[half:]))
        figure.supxlabel("\n".join(lines), fontsize="x-small", color="grey")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_folder(folder: Path) -> list[Path]:
    """Draw all that a folder has, into it, and return the figures."""
    drawn = []
    for name, draw in FIGURES.items():
        report = folder / f"{name}.json"
        if report.exists():
            drawn += draw(json.loads(report.read_text()), folder / name)
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the JSON is, and where the figures go")
    drawn = draw_folder(parser.parse_args().folder)
    for path in drawn:
        print(path)
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
