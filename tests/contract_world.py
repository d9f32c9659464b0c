"""What a contract case sees: its rank, inputs that every rank can compute, and the judges.

All ranks run the same calls in the same order, so inputs come from a counter: `world.input(...)` of
any rank can be computed on every rank, and expectations need no communication.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

ReduceOp = dist.ReduceOp

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
REDUCED_TYPES = (*FLOATS, *INTEGERS, torch.bool)
MOVED_TYPES = (*REDUCED_TYPES, *WIDE_UNSIGNED, torch.complex64, torch.float8_e4m3fn)
COMPLEX = (torch.complex64, torch.complex128)
# Types without arithmetic of ours: they are only moved.
OPAQUE_TYPES = (
    torch.complex32,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
)
ARITHMETIC = {
    "SUM": ReduceOp.SUM,
    "PRODUCT": ReduceOp.PRODUCT,
    "MIN": ReduceOp.MIN,
    "MAX": ReduceOp.MAX,
}
BITWISE = {"BAND": ReduceOp.BAND, "BOR": ReduceOp.BOR, "BXOR": ReduceOp.BXOR}
OPS = {**ARITHMETIC, "AVG": ReduceOp.AVG, **BITWISE}
# Empty, one element, odd, more than a datagram, more than one packet of every path.
SIZES = (0, 1, 3, 17, 1000, 16_411)
# Elements; the rings start at 64 KiB, and these leave a remainder in every chunk and segment.
LONG_PERIOD = 65_537  # a prime, so that no chunk or segment equals another
LARGE_SIZES = (3 * 2**18 + 1, 17 * 2**18 + 3)


def name_of(dtype: torch.dtype) -> str:
    """Return "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def is_defined(op: str, dtype: torch.dtype) -> bool:
    """Whether a reduction exists on a type."""
    if op in BITWISE:
        return not dtype.is_floating_point
    return op != "AVG" or dtype != torch.bool


def has_gloo(op: str, dtype: torch.dtype) -> bool:
    """Whether Gloo computes the reduction, and computes it right."""
    is_exotic = op == "AVG" and not dtype.is_floating_point
    return is_defined(op, dtype) and dtype not in (torch.int16, torch.bool) and not is_exotic


class Cases(dict[str, Callable[["World"], None]]):
    """The cases of a module by name. A case needs at least `ranks_min[name]` ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks_min: dict[str, int] = {}

    def case(
        self, *, over: Sequence[Any] = (), ranks_min: int = 1
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register a function as a case; with `over`, once for each of these as an argument."""

        def register(function: Callable[..., None]) -> Callable[..., None]:
            for value in over or (None,):
                name = function.__name__
                call: Callable[[World], None] = function
                if value is not None:
                    label = name_of(value) if isinstance(value, torch.dtype) else str(value)
                    name = f"{name}-{label}"
                    call = functools.partial(_call_with, function, value)
                self[name] = call
                self.ranks_min[name] = ranks_min
            return function

        return register


def _call_with(function: Callable[..., None], value: Any, world: World) -> None:
    function(world, value)


class World:
    """One rank of a pool. Our group is the default group, `gloo` the oracle beside it."""

    def __init__(self, rank: int, size: int, gloo: Any, store: dist.Store) -> None:
        self.rank = rank
        self.size = size
        self.gloo = gloo
        self.store = store
        self.others = [other for other in range(size) if other != rank]
        self._salt = 0
        self._digest = hashlib.sha256()

    # --- Inputs ---

    def salt(self) -> int:
        """Return a number that no earlier call has returned, the same on all ranks."""
        self._salt += 1
        return self._salt

    def input(
        self, elements: int, dtype: torch.dtype, salt: int, rank: int | None = None
    ) -> Tensor:
        """Return the elements that a rank (this one) contributes to the call with this salt."""
        source = self.rank if rank is None else rank
        generator = torch.Generator().manual_seed(salt * 1_009 + source)
        if (dtype.is_floating_point or dtype.is_complex) and dtype not in OPAQUE_TYPES:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            return torch.randn(elements, generator=generator, dtype=wide).to(dtype)
        if dtype == torch.bool:
            return torch.randint(0, 2, (elements,), generator=generator).bool()
        raw = torch.randint(-(2**63), 2**63 - 1, (elements,), generator=generator)
        return raw.view(torch.uint8)[: elements * dtype.itemsize].clone().view(dtype)

    def long_inputs(self, elements: int, dtype: torch.dtype, salt: int) -> list[Tensor]:
        """Return what all ranks contribute to a large call: quicker, since it repeats itself."""
        periods = elements // LONG_PERIOD + 1
        return [tile.repeat(periods)[:elements] for tile in self.inputs(LONG_PERIOD, dtype, salt)]

    def inputs(self, elements: int, dtype: torch.dtype, salt: int) -> list[Tensor]:
        """Return what all ranks contribute."""
        return [self.input(elements, dtype, salt, rank) for rank in range(self.size)]

    # --- Judges ---

    def begin(self, case: str) -> None:
        """Start a case."""
        self._salt = int.from_bytes(hashlib.sha256(case.encode()).digest()[:3], "big")
        self._digest = hashlib.sha256()

    def end(self) -> None:
        """End a case: what was given to `record` must have been the same on all ranks."""
        mine = torch.tensor(list(self._digest.digest()), dtype=torch.uint8)
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyones, mine, group=self.gloo)
        for rank, other in enumerate(everyones):
            assert torch.equal(other, mine), f"rank {rank} has other bits than rank {self.rank}"

    def record(self, tensor: Tensor) -> None:
        """Remember bits that all ranks must have alike."""
        self._digest.update(bytes_of(tensor))

    def check_reduced(
        self, actual: Tensor, inputs: Sequence[Tensor], op: str, what: str = ""
    ) -> None:
        """Compare with the reduction of the inputs, computed here: exactly where it is exact."""
        dtype = actual.dtype
        if dtype.is_floating_point and op not in ("MIN", "MAX"):
            expected, bound = _float_reference(inputs, op)
            error = (actual.double() - expected).abs()
            assert bool((error <= bound).all()), (
                f"{op} of {name_of(dtype)} x {actual.numel()} {what}: off by "
                f"{float((error - bound).max())} more than rounding allows"
            )
        else:
            check_equal(actual, _exact_reference(inputs, op), f"{op} {what}")


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's elements in logical order, as bytes."""
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().flatten())
    return dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def check_equal(actual: Tensor, expected: Tensor, what: object = "") -> None:
    """Compare byte for byte."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    if bytes_of(actual) == bytes_of(expected):
        return
    size = actual.element_size()
    pairs = [
        torch.frombuffer(bytearray(bytes_of(t)), dtype=torch.uint8) for t in (actual, expected)
    ]
    wrong = (pairs[0] != pairs[1]).view(-1, size).any(dim=1).nonzero().flatten()
    at = int(wrong[0])
    raise AssertionError(
        f"{what}: {len(wrong)} of {actual.numel()} elements differ, the first at {at}: "
        f"{actual.flatten()[at]} is not {expected.flatten()[at]}"
    )


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Expect an error that says all these words; nothing may be sent before it."""
    refusals = (RuntimeError, ValueError, TypeError)
    with pytest.raises(refusals) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"the error does not say {missing}: {caught.value}"


def _float_reference(inputs: Sequence[Tensor], op: str) -> tuple[Tensor, Tensor]:
    """Return the result in float64, and how far rounding in the type may lead from it."""
    dtype = inputs[0].dtype
    wide = [tensor.double() for tensor in inputs]
    rounding = torch.finfo(dtype).eps * len(inputs)
    tiny = torch.finfo(dtype).tiny
    if op == "PRODUCT":
        expected = functools.reduce(torch.mul, wide)
        return expected, expected.abs() * rounding + tiny
    total = functools.reduce(torch.add, wide)
    magnitude = functools.reduce(torch.add, [tensor.abs() for tensor in wide])
    divisor = len(inputs) if op == "AVG" else 1
    return total / divisor, magnitude / divisor * rounding + tiny


def _exact_reference(inputs: Sequence[Tensor], op: str) -> Tensor:
    is_bool = inputs[0].dtype == torch.bool
    if op == "AVG":
        total = functools.reduce(torch.add, inputs)
        return torch.div(total, len(inputs), rounding_mode="trunc")
    combine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "SUM": torch.logical_or if is_bool else torch.add,
        "PRODUCT": torch.logical_and if is_bool else torch.mul,
        "MIN": torch.minimum,
        "MAX": torch.maximum,
        "BAND": torch.bitwise_and,
        "BOR": torch.bitwise_or,
        "BXOR": torch.bitwise_xor,
    }
    return functools.reduce(combine[op], inputs)
