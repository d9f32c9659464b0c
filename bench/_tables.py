"""Prints rows of several backends beside each other, and the ratios of their medians."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from _measure import Row, ratios
from _operations import format_size

_RATIO_WIDTH_MIN: Final = 9


def print_heading(operation: str, ranks: int, names: Sequence[str]) -> None:
    """Begin the table of one operation; the first backend is compared with the others."""
    print(f"\n# {operation}, {ranks} ranks: p50 (p99) in us, then ratios of p50")
    cells = [f"{name:>22}" for name in names]
    cells += [f"{'vs ' + rival:>{_ratio_width(rival)}}" for rival in names[1:]]
    print(f"#{'size':>7}" + "".join(cells) + f"{'#wrong':>8}", flush=True)


def print_comparison(rows: Mapping[str, Row], names: Sequence[str]) -> None:
    """Print one size."""
    sizes = [row.size_bytes for row in rows.values()]
    cells = [f"{format_size(sizes[0]) if sizes else '-':>8}"]
    for name in names:
        row = rows.get(name)
        cells.append(f"{f'{row.p50_us:.1f} ({row.p99_us:.1f})' if row else '-':>22}")
    compared = ratios(rows, names[0])
    for name in names[1:]:
        text = f"{compared[name]:.2f}" if name in compared else "-"
        cells.append(f"{text:>{_ratio_width(name)}}")
    cells.append(f"{sum(row.wrong for row in rows.values()):>8}")
    print("".join(cells), flush=True)


def print_means(comparisons: Sequence[Mapping[str, Row]], names: Sequence[str]) -> None:
    """End the table with the geometric means over its sizes."""
    compared = [ratios(rows, names[0]) for rows in comparisons]
    for rival in names[1:]:
        logs = [math.log(each[rival]) for each in compared if rival in each]
        if logs:
            mean = math.exp(sum(logs) / len(logs))
            print(f"# {names[0]} / {rival}, geometric mean over the sizes: {mean:.2f}", flush=True)


def _ratio_width(rival: str) -> int:
    return max(_RATIO_WIDTH_MIN, len(f"  vs {rival}"))
