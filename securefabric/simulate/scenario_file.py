"""Scenarios as TOML files: what they may say, and what is wrong with one.

    about = "One of four links is cut in mid transfer"   # a sentence for --list
    ideal_mbit = 800          # payload per second that the network could carry, for *_of_ideal
    expect = ["timeouts == 0", "goodput_of_first >= 0.9 at 0.001"]

    [job]                     # ranks, op, dtype, count, ...
    [rank]                    # sockets, paths, CPU costs, ...
    [network]                 # parallel_links, shared
    [link]                    # rate_mbit, loss, ...; also [sender_port] and [receiver_port]

    [[event]]                 # a change while the job runs
    at_ms = 500
    link = 1
    down = 1

    [sweep]                   # a run for each value; several settings go in step
    loss = [0, 0.001, 0.01]

`python -m securefabric.simulate --help` lists every setting.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .._core import Scenario, scenario_knobs
from .measures import Criterion

__all__ = ["CHOICES", "FOLDER", "ScenarioError", "ScenarioFile", "load", "shipped"]

FOLDER = Path(__file__).parent / "scenarios"
# Settings of [job] that are words.
CHOICES = ("op", "dtype", "reduce_op")
# Words for what the seed draws.
_DRAWN = ("mixed", "any")
_TOP = ("about", "ideal_mbit", "expect", "event", "sweep")


class ScenarioError(ValueError):
    """A scenario that cannot be simulated; the message says where and why."""


@dataclass(frozen=True, kw_only=True)
class ScenarioFile:
    """What a file says, checked for names and types; the core checks values."""

    name: str
    about: str = ""
    # Settings by flag, and the words of CHOICES.
    settings: Mapping[str, float | str] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    # Points of the sweep: settings that differ; one empty point when there is no sweep.
    points: tuple[Mapping[str, float], ...] = ({},)
    ideal_mbit: float | None = None
    criteria: tuple[Criterion, ...] = ()

    def build(self, point: Mapping[str, float], seed: int) -> Scenario:
        """Return the core's options for one point of the sweep.

        Raises ScenarioError for values that are out of bounds.
        """
        scenario = Scenario()
        scenario.seed = seed
        try:
            for flag, value in {**self.settings, **point}.items():
                if flag in CHOICES:
                    setattr(scenario, flag, None if value in _DRAWN else value)
                else:
                    scenario[flag] = float(value)
            for event in self.events:
                scenario.add_event(event)
        except ValueError as error:
            raise ScenarioError(f"scenario {self.name}: {error}") from None
        return scenario


def shipped() -> list[str]:
    """Return the names of the scenarios that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> ScenarioFile:
    """Read a shipped scenario by name, or a file by its path.

    Raises ScenarioError when there is none, or when it says what cannot be understood.
    """
    path = Path(name)
    if name in shipped():
        path = FOLDER / f"{name}.toml"
    elif path.suffix != ".toml":
        raise ScenarioError(
            f"no scenario is named '{name}'{_did_you_mean(name, [*shipped(), 'soak'])}; --list "
            "shows them all, and a path must end in .toml"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"cannot read scenario {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"scenario {path} is not TOML: {error}") from None
    return _parse(path.stem if name in shipped() else name, content)


def _parse(name: str, content: dict[str, object]) -> ScenarioFile:
    flags: dict[str, dict[str, str]] = {}
    for section, key, flag, _help, _usual, _whole in scenario_knobs():
        flags.setdefault(section, {})[key] = flag
    flags["job"] |= {choice: choice for choice in CHOICES}

    settings: dict[str, float | str] = {}
    for section, values in content.items():
        if section in _TOP:
            continue
        if section not in flags or not isinstance(values, dict):
            known = [*flags, *_TOP]
            raise ScenarioError(
                f"scenario {name}: nothing is named '{section}'{_did_you_mean(section, known)}; "
                f"there are {', '.join(known)}"
            )
        for key, value in values.items():
            if key not in flags[section]:
                raise ScenarioError(
                    f"scenario {name}: [{section}] has no setting '{key}'"
                    f"{_did_you_mean(key, list(flags[section]))}"
                )
            settings[flags[section][key]] = _value(f"scenario {name}: {section}.{key}", key, value)

    every = {flag for section in flags.values() for flag in section.values()}
    points = _points(name, content.get("sweep", {}), every)
    ideal = content.get("ideal_mbit")
    return ScenarioFile(
        name=name,
        about=str(content.get("about", "")),
        settings=settings,
        events=tuple(_events(name, content.get("event", []))),
        points=points,
        ideal_mbit=None if ideal is None else _number(f"scenario {name}: ideal_mbit", ideal),
        criteria=tuple(_criteria(name, content.get("expect", []), points)),
    )


def _value(where: str, key: str, value: object) -> float | str:
    if key not in CHOICES:
        return _number(where, value)
    if not isinstance(value, str):
        raise ScenarioError(f"{where} must be a word in quotes, not {value!r}")
    return value


def _number(where: str, value: object) -> float:
    if not isinstance(value, int | float):
        raise ScenarioError(f"{where} must be a number, not {value!r}")
    return float(value)


def _events(name: str, events: object) -> list[str]:
    if not isinstance(events, list):
        raise ScenarioError(f"scenario {name}: events are written [[event]], in double brackets")
    return [" ".join(f"{key}={_plain(value)}" for key, value in event.items()) for event in events]


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _points(name: str, sweep: object, every: set[str]) -> tuple[Mapping[str, float], ...]:
    if not isinstance(sweep, dict):
        raise ScenarioError(f"scenario {name}: a sweep is a table: [sweep]")
    if not sweep:
        return ({},)
    for key, values in sweep.items():
        if key not in every:
            raise ScenarioError(
                f"scenario {name}: cannot sweep '{key}'{_did_you_mean(key, sorted(every))}; "
                "settings of ports are named in_... and out_..."
            )
        if not isinstance(values, list) or not values:
            raise ScenarioError(f"scenario {name}: sweep.{key} must be a list of numbers")
    if len({len(values) for values in sweep.values()}) > 1:
        raise ScenarioError(f"scenario {name}: the lists of the sweep differ in length")
    return tuple(
        {
            key: _number(f"scenario {name}: sweep.{key}", value)
            for key, value in zip(sweep, row, strict=True)
        }
        for row in zip(*sweep.values(), strict=True)
    )


def _criteria(name: str, texts: object, points: tuple[Mapping[str, float], ...]) -> list[Criterion]:
    if not isinstance(texts, list):
        raise ScenarioError(f"scenario {name}: expect must be a list of criteria")
    criteria = []
    for text in texts:
        try:
            criterion = Criterion.parse(str(text))
        except ValueError as error:
            raise ScenarioError(f"scenario {name}: {error}") from None
        firsts = [next(iter(point.values()), None) for point in points]
        if criterion.at is not None and criterion.at not in firsts:
            raise ScenarioError(f"scenario {name}: '{text}' is at no value of the sweep")
        criteria.append(criterion)
    return criteria


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
