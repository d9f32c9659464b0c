"""Figures of a simulated run, and whether a criterion on them is met.

Rates and times are virtual, and of what is measured: after the warm-up, where a scenario has one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._core import ScenarioReport

__all__ = ["MEASURES", "Criterion", "measure"]

# Name and meaning of every figure.
MEASURES = {
    "time_ms": "until the last rank completed the last call",
    "goodput_mbit": "payload that arrived on all ranks, per second",
    "goodput_of_ideal": "the same, over ideal_mbit of the scenario",
    "time_of_ideal": "time_ms over the time that ideal_mbit would take",
    "completion_p50_ms": "of a call on a rank, median",
    "completion_p99_ms": "the same, 99th percentile",
    "link_max_mean": "bytes on the fullest link over the mean of those beside it, at worst",
    "bytes_resent": "payload that was sent again",
    "packets_lost": "packets that a sender declared lost",
    "spurious": "of these, packets that had arrived",
    "timeouts": "probe timeouts that fired",
    "suspected": "times that a path became suspect",
    "epochs": "times that a link moved to fresh keys, both ends counted",
    "queue_dropped": "datagrams that a full queue dropped",
    "socket_dropped": "datagrams that a full socket buffer dropped",
    "marked": "datagrams that a queue marked CE",
    "fairness": "least over largest payload of a job while all jobs competed",
    "connections": "peers that ranks were connected with, both ends counted",
    "packets_per_connection": "packets sealed per connection",
    "network_mb_max": "most megabytes on links and in socket buffers at a time",
    "first_resend_ms": "from the first cut of a link to the first payload sent again",
    "recover_ms": "from the cut to 90 % of the goodput that is left without that link",
    "failback_ms": "from the repair until the link carries half of what it did before",
}
# What may follow a name: the value over that of the first point of the sweep.
_OF_FIRST = "_of_first"

_OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CRITERION = re.compile(r"(\w+) (<=|>=|==|<|>) ([-+.\deE]+)(?: at ([-+.\deE]+))?")
# Bins over which goodput is averaged for recover_ms and failback_ms.
_BIN_MS = 5.0
# Before the cut, what is called normal is measured over so long.
_NORMAL_MS = 100.0
_RECOVERED = 0.9
_FAILED_BACK = 0.5
# A direction of links that carries less than this share of the busiest one carries acks only.
_BUSY = 0.1


@dataclass(frozen=True)
class Criterion:
    """``measure <= number``, at one value of the sweep or at all."""

    text: str
    measure: str
    relation: str
    bound: float
    at: float | None

    @classmethod
    def parse(cls, text: str) -> Criterion:
        """Raise ValueError when the text is no criterion."""
        match = _CRITERION.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"'{text}' is no criterion; one reads 'timeouts == 0', or "
                "'goodput_of_first >= 0.9 at 0.01' for one value of a sweep"
            )
        name, relation, bound, at = match.groups()
        if name.removesuffix(_OF_FIRST) not in {*MEASURES, "goodput", "time"}:
            raise ValueError(f"'{text}': there is no measure '{name}'; {', '.join(MEASURES)}")
        return cls(text.strip(), name, relation, float(bound), None if at is None else float(at))

    def value(self, figures: Mapping[str, float], first: Mapping[str, float]) -> float | None:
        """Return what is compared; None when the run has no such figure."""
        if not self.measure.endswith(_OF_FIRST):
            return figures.get(self.measure)
        name = self.measure.removesuffix(_OF_FIRST)
        name = {"goodput": "goodput_mbit", "time": "time_ms"}.get(name, name)
        if name not in figures or not first.get(name):
            return None
        return figures[name] / first[name]

    def is_met(self, value: float | None) -> bool:
        """Return whether the value satisfies it; a missing one does not."""
        return value is not None and bool(_OPERATORS[self.relation](value, self.bound))


def measure(
    report: ScenarioReport, *, ideal_mbit: float | None, events: Sequence[str] = ()
) -> dict[str, float]:
    """Return the figures of a run by name; those that it cannot have are left out.

    events are those of the scenario, as text: the first that cuts a link and the first that brings
    one up set the times of first_resend_ms, recover_ms and failback_ms, which need samples.
    """
    traffic, links = report.traffic, report.links
    seconds = report.virtual_seconds
    bits = report.payload_bytes * 8
    figures = {"time_ms": seconds * 1e3}
    if seconds > 0:
        figures["goodput_mbit"] = bits / seconds / 1e6
    if ideal_mbit and bits and seconds > 0:
        figures["goodput_of_ideal"] = bits / seconds / 1e6 / ideal_mbit
        figures["time_of_ideal"] = seconds / (bits / 1e6 / ideal_mbit)
    if times := sorted(report.completions_seconds):
        figures["completion_p50_ms"] = times[len(times) // 2] * 1e3
        figures["completion_p99_ms"] = times[min(len(times) - 1, len(times) * 99 // 100)] * 1e3
    if (spread := _spread(report.by_link)) is not None:
        figures["link_max_mean"] = spread
    figures |= {
        "bytes_resent": traffic["bytes_resent"],
        "packets_lost": traffic["packets_lost"],
        "spurious": traffic["spurious_losses"],
        "timeouts": traffic["probe_timeouts"],
        "suspected": traffic["paths_suspected"],
        "epochs": traffic["epochs_begun"],
        "queue_dropped": links["queue_dropped"],
        "socket_dropped": report.socket_drops,
        "marked": links["marked"],
        "network_mb_max": report.network_bytes_max / 1e6,
    }
    contended = report.contended_bytes
    if len(contended) > 1 and max(contended) > 0:
        figures["fairness"] = min(contended) / max(contended)
    if report.connections:
        figures["connections"] = report.connections
        figures["packets_per_connection"] = traffic["packets_sealed"] / report.connections
    return figures | _failure_times(report.samples, events)


def _spread(by_link: Mapping[str, Mapping[str, int]]) -> float | None:
    """Return max/mean of the bytes of the links of one direction, at worst."""
    directions: dict[str, list[int]] = {}
    for name, counts in by_link.items():
        direction, slash, _index = name.partition("/")
        if slash:
            directions.setdefault(direction, []).append(counts["bytes"])
    busiest = max((sum(each) for each in directions.values()), default=0)
    spreads = [
        max(each) * len(each) / sum(each)
        for each in directions.values()
        if len(each) > 1 and sum(each) > _BUSY * busiest
    ]
    return max(spreads, default=None)


def _event(events: Sequence[str], down: str) -> dict[str, str] | None:
    for event in events:
        keys = dict(word.split("=", 1) for word in event.split())
        if keys.get("down") == down:
            return keys
    return None


class _Series:
    """Samples as functions of time: cumulative counts, in between by the sample before."""

    def __init__(self, samples: Sequence[Mapping[str, object]], link: str) -> None:
        self.times = [_float(sample["at_ms"]) for sample in samples]
        self.payload = [_float(sample["payload_bytes"]) for sample in samples]
        self.resent = [_float(sample["bytes_resent"]) for sample in samples]
        self.all_links = []
        self.cut_links = []
        for sample in samples:
            links = sample["links"]
            assert isinstance(links, dict)
            wires = {name: count for name, count in links.items() if "/" in name}
            self.all_links.append(float(sum(wires.values())))
            cut = (count for name, count in wires.items() if name.partition("/")[2] == link)
            self.cut_links.append(float(sum(cut)))

    def rate(self, counts: Sequence[float], begin_ms: float, end_ms: float) -> float:
        """Return counts per millisecond within an interval."""
        return (counts[self._index(end_ms)] - counts[self._index(begin_ms)]) / (end_ms - begin_ms)

    def first(self, begin_ms: float, counts: Sequence[float], rate: float) -> float | None:
        """Return when the first bin ends, after begin_ms, that has this rate."""
        interval = self.times[1] - self.times[0]
        at = begin_ms + _BIN_MS
        while at <= self.times[-1]:
            if self.rate(counts, at - _BIN_MS, at) >= rate:
                return at
            at += interval
        return None

    def _index(self, at_ms: float) -> int:
        interval = self.times[1] - self.times[0]
        return max(0, min(len(self.times) - 1, int((at_ms - self.times[0]) / interval + 1e-6)))


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _failure_times(
    samples: Sequence[Mapping[str, object]], events: Sequence[str]
) -> dict[str, float]:
    cut = _event(events, "1")
    if cut is None or len(samples) < 2:
        return {}
    series = _Series(samples, cut.get("link", ""))
    cut_ms = float(cut["at_ms"])
    figures = {}
    resent = series.resent[series._index(cut_ms)]
    for at, count in zip(series.times, series.resent, strict=True):
        if at > cut_ms and count > resent:
            figures["first_resend_ms"] = at - cut_ms
            break
    normal_ms = min(_NORMAL_MS, cut_ms / 2)
    normal = series.rate(series.payload, cut_ms - normal_ms, cut_ms)
    all_links = series.rate(series.all_links, cut_ms - normal_ms, cut_ms)
    cut_links = series.rate(series.cut_links, cut_ms - normal_ms, cut_ms)
    left = normal * (1 - cut_links / all_links) if all_links else 0.0
    if (recovered := series.first(cut_ms, series.payload, _RECOVERED * left)) is not None:
        figures["recover_ms"] = recovered - cut_ms
    repair = _event(events, "0")
    if repair is not None and cut_links > 0:
        repair_ms = float(repair["at_ms"])
        back = series.first(repair_ms, series.cut_links, _FAILED_BACK * cut_links)
        if back is not None:
            figures["failback_ms"] = back - repair_ms
    return figures
