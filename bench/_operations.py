"""The collectives under test: what each moves, what it must deliver, how its bandwidth is counted.

Sizes and factors are those of nccl-tests (doc/PERFORMANCE.md and src/*.cu): `size` is the whole
array, so for all_gather, reduce_scatter, all_to_all, gather and scatter it is the number of ranks
times `count`, which is one rank's part. Algorithm bandwidth is size / time; bus bandwidth is that
times a factor that makes it comparable with the speed of a link, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

ROOT: Final = 0
PERIOD: Final = 65_537  # elements after which a test pattern repeats; a prime, so no chunk fits it

DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
}
REDUCE_OPS: Final = ("sum", "avg", "prod", "min", "max", "band", "bor", "bxor")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One collective."""

    name: str
    bus_factor: Callable[[int], float]
    """From the number of ranks: bus bandwidth / algorithm bandwidth."""
    is_reduction: bool = False
    inputs: str = "own"
    """Of a rank: "own" is count elements, "whole" is count times the number of ranks."""
    outputs: str = "own"
    """Likewise; "root" is "whole" on the root and nothing elsewhere."""
    in_place: bool = False
    """Whether input and output are one buffer."""
    has_root: bool = False

    def is_divided(self) -> bool:
        """Whether the size counts all ranks' parts."""
        return "whole" in (self.inputs, self.outputs) or self.outputs == "root"


def _full(_: int) -> float:
    return 1.0


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks


OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation(
            name="all_reduce",
            bus_factor=lambda ranks: 2 * (ranks - 1) / ranks,
            is_reduction=True,
            in_place=True,
        ),
        Operation(name="all_gather", bus_factor=_others, outputs="whole"),
        Operation(name="reduce_scatter", bus_factor=_others, is_reduction=True, inputs="whole"),
        Operation(name="broadcast", bus_factor=_full, in_place=True, has_root=True),
        Operation(name="reduce", bus_factor=_full, is_reduction=True, in_place=True, has_root=True),
        Operation(name="all_to_all", bus_factor=_others, inputs="whole", outputs="whole"),
        Operation(name="gather", bus_factor=_others, outputs="root", has_root=True),
        Operation(name="scatter", bus_factor=_others, inputs="whole", has_root=True),
        Operation(name="send_recv", bus_factor=_full),  # each rank to the next, around the ring
        Operation(name="barrier", bus_factor=lambda _: 0.0),
    )
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one size on one rank: its buffers and what they must hold afterwards."""

    operation: Operation
    dtype: torch.dtype
    reduce_op: str
    rank: int
    ranks: int
    count: int
    """Elements: of the array, or of one rank's part where the size counts all parts."""
    input: Tensor
    output: Tensor
    """The input itself when the operation is in place."""

    @property
    def size_bytes(self) -> int:
        """The size that nccl-tests reports."""
        parts = self.ranks if self.operation.is_divided() else 1
        return self.count * parts * self.dtype.itemsize

    def fill(self) -> None:
        """Put this rank's pattern into the input, and into an output of its own what is wrong."""
        if not self.operation.in_place:
            self.output.fill_(101)
        _repeat(_tile(self.rank, self.dtype, self.reduce_op), 0, self.input)

    def wrong(self) -> int:
        """Return how many elements of the output are not what they must be after fill()."""
        wanted = torch.empty_like(self.output)
        self._expect(wanted)
        if self.reduce_op == "avg" and self.operation.is_reduction:
            error = (self.output.double() - wanted.double()).abs()
            return int((error > 2**-6).sum())  # the sum is exact; the quotient rounds once
        return int((self.output != wanted).sum())

    def _expect(self, wanted: Tensor) -> None:
        name, n, count = self.operation.name, self.ranks, self.count
        if self.operation.is_reduction:
            if name == "reduce" and self.rank != ROOT:
                wanted.copy_(self.output)  # undefined there
                return
            start = self.rank * count if name == "reduce_scatter" else 0
            _repeat(_reduced_tile(n, self.dtype, self.reduce_op), start, wanted)
        elif name == "broadcast":
            _repeat(self._tile_of(ROOT), 0, wanted)
        elif name == "send_recv":
            _repeat(self._tile_of((self.rank - 1) % n), 0, wanted)
        elif name == "scatter":
            _repeat(self._tile_of(ROOT), self.rank * count, wanted)
        elif name in ("all_gather", "gather", "all_to_all"):
            start = self.rank * count if name == "all_to_all" else 0
            for source in range(n if wanted.numel() else 0):
                _repeat(self._tile_of(source), start, wanted[source * count :][:count])

    def _tile_of(self, rank: int) -> Tensor:
        return _tile(rank, self.dtype, self.reduce_op)


def make_case(
    operation: Operation,
    size_bytes: int,
    *,
    dtype: torch.dtype,
    reduce_op: str,
    rank: int,
    ranks: int,
    device: torch.device | None = None,
) -> Case:
    """Return a case of about this size: at least one element per rank where it is divided.

    Its buffers lie on the device; in host memory without one.
    """
    parts = ranks if operation.is_divided() else 1
    count = max(1, size_bytes // dtype.itemsize // parts)
    if operation.name == "barrier":
        count = 0

    def buffer(kind: str) -> Tensor:
        is_whole = kind == "whole" or (kind == "root" and rank == ROOT)
        elements = count * ranks if is_whole else 0 if kind == "root" else count
        return torch.zeros(elements, dtype=dtype, device=device)

    source = buffer(operation.inputs)
    return Case(
        operation=operation,
        dtype=dtype,
        reduce_op=reduce_op,
        rank=rank,
        ranks=ranks,
        count=count,
        input=source,
        output=source if operation.in_place else buffer(operation.outputs),
    )


def parse_size(text: str) -> int:
    """Return the bytes that "8", "64K", "16M" or "1G" stand for."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    unit = units.get(text[-1:].upper(), 1)
    value = int(text if unit == 1 else text[:-1]) * unit
    if value < 1:
        raise ValueError(f"size {text!r} is not positive")
    return value


def format_size(size_bytes: int) -> str:
    """Return "8", "64K", "16M": exact, in the largest unit that divides it."""
    for unit, letter in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{letter}"
    return str(size_bytes)


def _tile(rank: int, dtype: torch.dtype, reduce_op: str) -> Tensor:
    """One period of a rank's pattern: small integers whose reduction is exact in every type."""
    low, high = (1, 3) if reduce_op == "prod" else (0, 4)
    generator = torch.Generator().manual_seed(1_000 + rank)
    return torch.randint(low, high, (PERIOD,), generator=generator).to(dtype)


def _reduced_tile(ranks: int, dtype: torch.dtype, reduce_op: str) -> Tensor:
    tiles = [_tile(rank, dtype, reduce_op) for rank in range(ranks)]
    combine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sum": torch.add,
        "avg": torch.add,
        "prod": torch.mul,
        "min": torch.minimum,
        "max": torch.maximum,
        "band": torch.bitwise_and,
        "bor": torch.bitwise_or,
        "bxor": torch.bitwise_xor,
    }
    total = tiles[0]
    for tile in tiles[1:]:
        total = combine[reduce_op](total, tile)
    return total / ranks if reduce_op == "avg" else total


def _repeat(tile: Tensor, start: int, target: Tensor) -> None:
    """Fill the target with the elements from `start` on of the endlessly repeated tile."""
    first = start % PERIOD
    periods = math.ceil((first + target.numel()) / PERIOD)
    target.copy_(tile.repeat(periods)[first : first + target.numel()])
