"""Draws what bench/network.py measured, and says in a few lines what came of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Data = dict[str, Any]

OURS, GLOO, SIMULATED = "securefabric", "gloo", "simulated"
COLOURS: Final = {OURS: "tab:blue", GLOO: "tab:orange", SIMULATED: "tab:green"}
NAMES: Final = {
    OURS: "securefabric (encrypted)",
    GLOO: "gloo (TCP, in the clear)",
    SIMULATED: "securefabric, simulated",
}
LOSS_FLOOR: Final = 1e-5  # where a logarithmic axis shows no loss at all
BIN_S: Final = 0.01


def _figure(rows: int = 1, height: float = 4.0, *, share_x: bool = False) -> tuple[Figure, Any]:
    return plt.subplots(rows, 1, figsize=(8, height), sharex=share_x, layout="constrained")


def _save(figure: Figure, stem: Path) -> None:
    figure.savefig(stem.with_suffix(".png"), dpi=100)
    plt.close(figure)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def draw_paths(data: Data, stem: Path) -> list[str]:
    """Goodput against the number of paths; below it, the share of each link."""
    limit = data["rate_mbit"] * data["links"]
    ours = [row for row in data["rows"] if row["backend"] == OURS]
    (gloo,) = (row for row in data["rows"] if row["backend"] == GLOO)
    figure, (top, bottom) = _figure(2, 7.0)
    counts = [row["paths"] for row in ours]
    top.plot(counts, [row["goodput_mbit"] for row in ours], "o-", color=COLOURS[OURS])
    top.lines[-1].set_label(NAMES[OURS])
    top.axhline(gloo["goodput_mbit"], color=COLOURS[GLOO], label=NAMES[GLOO])
    top.axhline(limit, color="grey", linestyle=":", label="the four links together")
    top.set_xscale("log", base=2)
    top.set_xticks(counts, map(str, counts))
    top.set_ylim(0, limit * 1.1)
    top.legend()
    top.set_title(f"Goodput of an all_reduce over {data['links']} links")
    _label(top, "paths (pairs of UDP ports)", "Mbit/s in each direction")
    columns = [*ours, gloo]
    bases = [0.0] * len(columns)
    for link in range(data["links"]):
        heights = [row["link_bytes"][link] / max(1, sum(row["link_bytes"])) for row in columns]
        bottom.bar(range(len(columns)), heights, bottom=bases, label=f"link {link + 1}")
        bases = [base + height for base, height in zip(bases, heights, strict=True)]
    bottom.set_xticks(range(len(columns)), [*(str(count) for count in counts), "gloo"])
    bottom.legend(loc="upper left", bbox_to_anchor=(1, 1))
    bottom.set_title("Which link carried how much of it")
    _label(bottom, "paths", "share of bytes")
    _save(figure, stem)
    best = max(ours, key=lambda row: float(row["goodput_mbit"]))
    return [
        f"best: {best['goodput_mbit']:.0f} of {limit:.0f} Mbit/s with {best['paths']} paths, "
        f"{best['goodput_mbit'] / limit:.2f} of the links' sum (target 0.90)",
        *(
            f"{row['paths']:3d} paths: {row['goodput_mbit'] / limit:.2f} of the sum, busiest link "
            f"{max(row['link_bytes']) * data['links'] / max(1, sum(row['link_bytes'])):.2f} "
            "times the mean"
            for row in ours
        ),
        f"gloo: {gloo['goodput_mbit'] / limit:.2f} of the sum",
    ]


def draw_loss(data: Data, stem: Path) -> list[str]:
    """Goodput against loss, as a share of that without loss, and absolute."""
    figure, axes = _figure()
    lines = []
    for backend in (OURS, GLOO):
        rows = [row for row in data["rows"] if row["backend"] == backend]
        losses = [max(row["loss"], LOSS_FLOOR) for row in rows]
        axes.plot(losses, [row["goodput_mbit"] for row in rows], "o-", color=COLOURS[backend])
        axes.lines[-1].set_label(NAMES[backend])
        free = rows[0]["goodput_mbit"]
        shares = ", ".join(
            f"{row['loss']:.2%}: {row['goodput_mbit'] / free:.2f}" for row in rows[1:]
        )
        lines.append(f"{backend}: {free:.0f} Mbit/s without loss; of that at {shares}")
    losses = sorted({max(row["loss"], LOSS_FLOOR) for row in data["rows"]})
    axes.set_xscale("log")
    axes.set_xticks(losses, ["0" if x == LOSS_FLOOR else f"{x:.3g}" for x in losses])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title("Goodput of an all_reduce while packets are lost at random")
    _label(axes, "share of packets lost on every link", "Mbit/s in each direction")
    _save(figure, stem)
    return [*lines, "targets: 0.90 at 0.10%, 0.60 at 1.00%"]


def _rates(timeline: Data) -> tuple[list[float], list[list[float]]]:
    """Return the bins' times and what came over each link, in Mbit/s."""
    times, rates = [], []
    for (before, first), (after, second) in pairwise(timeline["arrivals"]):
        times.append(after - timeline["started"])
        span = after - before
        rates.append([(b - a) * 8 / span / 1e6 for a, b in zip(first, second, strict=True)])
    return times, rates


def draw_timeline(data: Data, stem: Path) -> list[str]:
    """What arrives over each link around an outage, for each backend."""
    figure, panels = _figure(2, 7.0, share_x=True)
    lines = []
    for axes, (backend, timeline) in zip(panels, data["timelines"].items(), strict=True):
        times, rates = _rates(timeline)
        per_link = list(zip(*rates, strict=True))
        axes.stackplot(times, *per_link, labels=[f"link {i + 1}" for i in range(data["links"])])
        for moment, text in (("cut_at", "cut"), ("repaired_at", "repaired")):
            at = timeline[moment] - timeline["started"]
            axes.axvline(at, color="black", linestyle="--")
            axes.annotate(f"link {timeline['link']} {text}", (at, axes.get_ylim()[1]), va="top")
        axes.set_ylim(0, data["rate_mbit"] * data["links"] * 1.1)
        axes.set_xlim(0, max(times))
        axes.set_title(NAMES[backend])
        _label(axes, "seconds", "Mbit/s arriving at host 2")
        lines += _outage_lines(backend, timeline, times, per_link)
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, stem)
    return [*lines, "targets: first resend < 5 ms, 90 % of what remains < 20 ms, back < 1 s"]


def _outage_lines(
    backend: str, timeline: Data, times: list[float], per_link: list[tuple[float, ...]]
) -> list[str]:
    cut = timeline["cut_at"] - timeline["started"]
    repaired = timeline["repaired_at"] - timeline["started"]
    lost = timeline["link"] - 1
    total = [sum(each) for each in zip(*per_link, strict=True)]
    others = [whole - part for whole, part in zip(total, per_link[lost], strict=True)]

    def mean(values: list[float], start: float, end: float) -> float:
        chosen = [value for at, value in zip(times, values, strict=True) if start <= at < end]
        return sum(chosen) / max(1, len(chosen))

    # What remains: what the other links carry once the outage is half over.
    rest = mean(others, (cut + repaired) / 2, repaired)
    recovery = _first(times, others, cut + BIN_S, 0.9 * rest)
    fair = mean(list(per_link[lost]), 0.0, cut)
    back = _first(times, list(per_link[lost]), repaired, 0.5 * fair)
    slowest = max(later - earlier for earlier, later in pairwise(timeline["ended"]))
    lines = [
        f"{backend}: 90 % of what remains after {_after(recovery, cut)}, half of the repaired link "
        f"in use after {_after(back, repaired)}, slowest all_reduce {slowest * 1e3:.0f} ms"
    ]
    resent_before = [count for at, count in timeline["resent"] if at < timeline["cut_at"]]
    if resent_before:
        first = next((at for at, count in timeline["resent"] if count > resent_before[-1]), None)
        if first is not None:
            late = first - timeline["cut_at"]
            lines.append(f"{backend}: first resend {late * 1e3:.1f} ms after the cut")
    return lines


def _first(times: list[float], values: list[float], start: float, least: float) -> float | None:
    pairs = zip(times, values, strict=True)
    return next((at for at, value in pairs if at >= start and value >= least), None)


def _after(at: float | None, start: float) -> str:
    return "never" if at is None else f"{(at - start) * 1e3:.0f} ms"


def draw_incast(data: Data, stem: Path) -> list[str]:
    """Distribution of the senders' completion times, in multiples of the ideal."""
    figure, axes = _figure()
    lines = []
    for row in data["rows"]:
        times = sorted(row["of_ideal"])
        shares = [(i + 1) / len(times) for i in range(len(times))]
        label = f"{NAMES[row['backend']]}, {row['senders']}:1"
        style = "--" if row["senders"] > 8 else "-"
        colour = COLOURS[row["backend"]]
        axes.step([0, *times], [0, *shares], style, where="post", color=colour, label=label)
        lines.append(
            f"{row['backend']} {row['senders']}:1: slowest {times[-1]:.2f}, median "
            f"{times[len(times) // 2]:.2f} of the ideal (target for the slowest 1.5)"
        )
    axes.axvline(1.0, color="grey", linestyle=":", label="ideal: the link is never idle")
    axes.legend()
    axes.set_title("Many send to one over one link: how long each sender took")
    _label(axes, "time from the common start / ideal time for all", "share of senders")
    _save(figure, stem)
    return lines


def draw_windows(data: Data, stem: Path) -> list[str]:
    """Round-trip time and window of each path over time."""
    figure, (top, bottom) = _figure(2, 7.0, share_x=True)
    by_path: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for at, paths in data["samples"]:
        for own, theirs, _, srtt_us, window in paths:
            by_path.setdefault((own, theirs), []).append((at, srtt_us / 1e3, window / 1024))
    for series in by_path.values():
        times = [at for at, _, _ in series]
        top.plot(times, [srtt for _, srtt, _ in series], linewidth=0.8)
        bottom.plot(times, [window for _, _, window in series], linewidth=0.8)
    for axes in (top, bottom):
        axes.axvspan(data["slow_s"], data["fair_s"], color="grey", alpha=0.2)
        axes.set_ylim(bottom=0)
    top.set_title("Each path's round-trip time; grey: link 1 at a quarter of its rate")
    _label(top, "seconds", "ms")
    bottom.set_title("Each path's window")
    _label(bottom, "seconds", "KiB in flight, at most")
    _save(figure, stem)
    rtts = sorted(srtt for series in by_path.values() for _, srtt, _ in series)
    return [f"{len(by_path)} paths, median round trip {rtts[len(rtts) // 2]:.1f} ms"]


KEY_COLOURS: Final = {"kept": "grey", "changing": COLOURS[OURS]}
KEY_NAMES: Final = {"kept": "keys kept", "changing": "keys change: generations, epochs"}
NEAR_S: Final = 0.02


def _latencies(rounds: list[Data]) -> list[tuple[float, float]]:
    """When each call ended, and how long it took in ms."""
    return [
        (after, (after - before) * 1e3)
        for one in rounds
        for before, after in pairwise(one["ended"])
    ]


def draw_rekey(data: Data, stem: Path) -> list[str]:
    """Each call's latency around changes of keys, and the distribution beside a job without."""
    figure, (top, bottom) = _figure(2, 7.0)
    shown = data["rows"]["changing"][0]
    start = shown["ended"][0]
    calls = _latencies([shown])
    colour = KEY_COLOURS["changing"]
    top.plot([at - start for at, _ in calls], [ms for _, ms in calls], ".", markersize=2)
    for i, at in enumerate(shown["changes"]):
        top.axvline(at - start, color="black", linewidth=0.5, label="" if i else "a key exchange")
    top.set_title(f"Each all_reduce of {data['bytes'] // 1024} KiB while keys change")
    top.legend(loc="upper right")
    top.set_ylim(bottom=0)
    _label(top, "seconds", "ms")
    changes = [at for one in data["rows"]["changing"] for at in one["changes"]]
    near = sorted(
        ms
        for at, ms in _latencies(data["rows"]["changing"])
        if any(at - ms / 1e3 - NEAR_S <= change <= at + NEAR_S for change in changes)
    )
    lines = []
    sets = [
        (KEY_NAMES["kept"], KEY_COLOURS["kept"], "-", _latencies(data["rows"]["kept"])),
        (KEY_NAMES["changing"], colour, "-", _latencies(data["rows"]["changing"])),
        ("  of these: within 20 ms of an exchange", colour, ":", [(0.0, ms) for ms in near]),
    ]
    for name, colour, style, calls in sets:
        times = sorted(ms for _, ms in calls)
        if not times:
            continue
        beyond = [1 - i / len(times) for i in range(len(times))]
        bottom.step(times, beyond, style, where="post", color=colour, label=name)
        lines.append(
            f"{name.strip()}: {len(times)} calls, median {times[len(times) // 2]:.2f}, "
            f"99 % {times[len(times) * 99 // 100]:.2f}, slowest {times[-1]:.2f} ms"
        )
    bottom.set_xscale("log")
    bottom.set_yscale("log")
    bottom.legend()
    bottom.set_title("Share of calls that took longer")
    _label(bottom, "ms", "share")
    _save(figure, stem)
    return [*lines, f"{len(changes)} key exchanges seen by rank 0"]


def draw_neighbours(data: Data, stem: Path) -> list[str]:
    """Two jobs on one link: bars of what each got, marks of what it gets alone."""
    figure, axes = _figure()
    lines = []
    pairs = [" beside ".join(row["backends"]) for row in data["rows"]]
    for index, row in enumerate(data["rows"]):
        for side, backend in enumerate(row["backends"]):
            at = index + 0.4 * side - 0.2
            axes.bar(at, row["together_mbit"][side], 0.36, color=COLOURS[backend])
            axes.plot([at - 0.18, at + 0.18], [row["alone_mbit"][side]] * 2, color="black")
        together, alone = row["together_mbit"], row["alone_mbit"]
        lines.append(
            f"{pairs[index]}: {together[0]:.0f} and {together[1]:.0f} of {data['rate_mbit']:.0f} "
            f"Mbit/s (alone {alone[0]:.0f} and {alone[1]:.0f}), shares of what both got "
            f"{together[0] / sum(together):.2f} and {together[1] / sum(together):.2f}"
        )
    axes.axhline(data["rate_mbit"], color="grey", linestyle=":")
    axes.set_xticks(range(len(pairs)), pairs)
    axes.set_title("Two jobs that share a link (black: what each gets alone)")
    _label(axes, "", "Mbit/s in each direction")
    _save(figure, stem)
    return lines


def draw_bulk(data: Data, stem: Path) -> list[str]:
    """What rank 0 has received over time, with and without changes of keys."""
    figure, axes = _figure()
    lines = []
    for name, row in data["rows"].items():
        start, end = row["ended"][0], row["ended"][-1]
        received = [(at, count) for at, count in row["received"] if start <= at <= end]
        first = received[0][1]
        # A rank that has everything may still be sending: two ranks exchange all bytes of it.
        whole = first + data["bytes"]
        received = [(at, count) for at, count in received if count < whole]
        axes.plot(
            [at - start for at, _ in received],
            [(count - first) / 2**20 for _, count in received],
            color=KEY_COLOURS[name],
            label=KEY_NAMES[name],
        )
        moved = [received[0][0]]
        moved += [at for (_, a), (at, b) in pairwise(received) if b > a]
        gaps = sorted(b - a for a, b in pairwise(moved))
        srtt = row["srtt_us"]
        lines.append(
            f"{KEY_NAMES[name]}: {end - start:.2f} s, {row['sealed']:,} packets sealed, "
            f"{row['acks']:,} acks, "
            f"{len(row['changes'])} key exchanges seen, longest time without a new byte "
            f"{gaps[-1] * 1e3:.1f} ms; round trip {srtt[len(srtt) // 2] / 1e3:.1f} ms, "
            f"slowest path's {srtt[-1] / 1e3:.1f}; {row['lost']:,} packets lost, "
            f"{row['drops']['auth_failed']} not verified"
        )
    axes.legend()
    axes.set_title(f"One all_reduce of {data['bytes'] / 2**20:.0f} MiB at {data['loss']:.0%} loss")
    _label(axes, "seconds", "MiB received by rank 0")
    _save(figure, stem)
    return lines


def draw_join(data: Data, stem: Path) -> list[str]:
    """How long ranks take until all have left their first all_reduce, against how many they are."""
    figure, axes = _figure()
    lines = []
    worlds = sorted({row["ranks"] for row in data["rows"]})
    for backend in (OURS, GLOO):
        rows = [row for row in data["rows"] if row["backend"] == backend]
        seconds = [row["reduced_s"] for row in rows]
        axes.plot(worlds, seconds, "o-", color=COLOURS[backend], label=NAMES[backend])
        said = ", ".join(f"{row['ranks']}: {row['reduced_s']:.2f} s" for row in rows)
        lines.append(f"{backend}, by ranks: {said} (target for 64: 5 s)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(worlds, map(str, worlds))
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title("Ranks of two hosts join a job")
    _label(axes, "ranks", "seconds until all have left a first all_reduce")
    _save(figure, stem)
    return lines


FIGURES: Final[dict[str, Callable[[Data, Path], list[str]]]] = {
    "paths": draw_paths,
    "loss": draw_loss,
    "timeline": draw_timeline,
    "incast": draw_incast,
    "windows": draw_windows,
    "neighbours": draw_neighbours,
    "rekey": draw_rekey,
    "bulk": draw_bulk,
    "join": draw_join,
}
