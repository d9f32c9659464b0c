"""Tuning files: from which size on large-data algorithms serve an operation, as measured.

A file is JSON:

    {"version": 1, "rows": [{"operation": "all_reduce", "ranks": 4, "small_bytes": 131072,
                             "segments_per_chunk": 8}, ...]}

``python -m securefabric.tune`` writes one; ``SECUREFABRIC_TUNING_FILE`` names it. All ranks of a
job need the same rows: messages have the shape that the algorithm gives them, so the roster refuses
a rank whose rows differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from . import _cbor
from .errors import ConfigError

__all__ = ["TUNABLE", "TuningRow", "read_tuning", "tuning_digest", "write_tuning"]

TUNABLE: Final = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce")
"""Operations with one algorithm for small data and another for large."""
SEGMENTS_DEFAULT: Final = 8  # native/collective/plan_options.h

_VERSION: Final = 1
_FILE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, order=True)
class TuningRow:
    """What was measured for one operation in a group of so many ranks."""

    operation: str
    ranks: int
    small_bytes: int
    """Up to so many bytes take the algorithm for small data: bytes of the tensor (all_reduce,
    broadcast, reduce), of the gathered tensor (all_gather), of one rank's part (reduce_scatter)."""
    segments_per_chunk: int = SEGMENTS_DEFAULT
    """Pieces into which large-data algorithms cut what one rank has, to pipeline it."""

    def __post_init__(self) -> None:
        if self.operation not in TUNABLE:
            raise ValueError(f"operation {self.operation!r} is none of {', '.join(TUNABLE)}")
        for name in ("ranks", "small_bytes", "segments_per_chunk"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**63:
                raise ValueError(f"{name} {value!r} is no natural number")

    def as_tuple(self) -> tuple[str, int, int, int]:
        """As the native core takes it."""
        return (self.operation, self.ranks, self.small_bytes, self.segments_per_chunk)


def read_tuning(path: str) -> list[TuningRow]:
    """Return the rows of a tuning file; none for an empty path. Raises ConfigError."""
    if not path:
        return []
    try:
        with Path(path).open("rb") as file:
            text = file.read(_FILE_BYTES_MAX + 1)
        if len(text) > _FILE_BYTES_MAX:
            raise ValueError(f"it has more than {_FILE_BYTES_MAX} bytes")
        return _rows_of(json.loads(text))
    except OSError as error:
        raise ConfigError(
            f"tuning file {path} cannot be read ({error.strerror}): make one with "
            "`python -m securefabric.tune`, or unset SECUREFABRIC_TUNING_FILE"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"tuning file {path} is not usable: {error}; make a new one with "
            "`python -m securefabric.tune`"
        ) from None


def write_tuning(path: str, rows: Iterable[TuningRow], made_on: str) -> None:
    """Write a tuning file in place of the one that is there. Raises OSError."""
    document = {
        "version": _VERSION,
        "made_on": made_on,
        "rows": [asdict(row) for row in sorted(rows)],
    }
    fresh = Path(f"{path}.new")
    fresh.write_text(json.dumps(document, indent=1) + "\n")
    fresh.rename(path)


def tuning_digest(rows: Iterable[TuningRow]) -> bytes:
    """Return what ranks compare: SHA-256 of the sorted rows; empty without any."""
    values = [list(row.as_tuple()) for row in sorted(rows)]
    return hashlib.sha256(_cbor.encode(values)).digest() if values else b""


def _rows_of(document: object) -> list[TuningRow]:
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise ValueError(f"it is no tuning file of version {_VERSION}")
    rows = document.get("rows")
    if not isinstance(rows, list):
        raise ValueError("its rows are no list")
    read = []
    for number, row in enumerate(rows):
        try:
            read.append(TuningRow(**row))
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {number}: {error}") from None
    places = [(row.operation, row.ranks) for row in read]
    twice = {place for place in places if places.count(place) > 1}
    if twice:
        operation, ranks = min(twice)
        raise ValueError(f"{operation} for {ranks} ranks is there twice")
    return read
