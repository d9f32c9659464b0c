"""Contract cases: all_reduce, reduce, reduce_scatter."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from contract_world import (
    ARITHMETIC,
    BITWISE,
    COMPLEX,
    FLOATS,
    LARGE_SIZES,
    OPS,
    REDUCED_TYPES,
    SIZES,
    WIDE_UNSIGNED,
    Cases,
    World,
    check_equal,
    has_gloo,
    is_defined,
    name_of,
    refused,
)
from torch import Tensor

CASES = Cases()
ORACLE_SIZES = (17, 1000)  # Gloo is slow where ranks share cores
LARGE_TYPES = (torch.float32, torch.bfloat16, torch.int64)


def _agree_with_gloo(actual: Tensor, oracle: Tensor, op: str) -> None:
    """Gloo adds in another order, so floats agree only up to rounding."""
    if actual.dtype.is_floating_point and op not in ("MIN", "MAX"):
        tolerance = 16 * torch.finfo(actual.dtype).eps
        torch.testing.assert_close(actual, oracle, rtol=tolerance, atol=tolerance)
    else:
        check_equal(actual, oracle, f"{op} against gloo")


@CASES.case(over=REDUCED_TYPES)
def all_reduce(world: World, dtype: torch.dtype) -> None:
    for op, reduce_op in OPS.items():
        if not is_defined(op, dtype):
            with refused(op, "not defined"):
                dist.all_reduce(torch.ones(3, dtype=dtype), op=reduce_op)
            continue
        for index, elements in enumerate(SIZES):
            inputs = world.inputs(elements, dtype, world.salt())
            tensor = inputs[world.rank].clone()
            work = dist.all_reduce(tensor, op=reduce_op, async_op=index % 2 == 0)
            if work is not None:
                work.wait()
            world.check_reduced(tensor, inputs, op)
            world.record(tensor)
            if elements in ORACLE_SIZES and has_gloo(op, dtype):
                oracle = inputs[world.rank].clone()
                dist.all_reduce(oracle, op=reduce_op, group=world.gloo)
                _agree_with_gloo(tensor, oracle, op)


@CASES.case(over=REDUCED_TYPES)
def reduce_to_each_root(world: World, dtype: torch.dtype) -> None:
    for op, reduce_op in OPS.items():
        if not is_defined(op, dtype):
            with refused(op, "not defined"):
                dist.reduce(torch.ones(3, dtype=dtype), dst=0, op=reduce_op)
            continue
        for index, elements in enumerate(SIZES):
            root = index % world.size
            inputs = world.inputs(elements, dtype, world.salt())
            tensor = inputs[world.rank].clone()
            dist.reduce(tensor, dst=root, op=reduce_op)
            if world.rank == root:
                world.check_reduced(tensor, inputs, op)
            else:  # ours leaves it alone; torch promises nothing
                check_equal(tensor, inputs[world.rank], "input of a reduce")
            if elements in ORACLE_SIZES and has_gloo(op, dtype):
                oracle = inputs[world.rank].clone()
                dist.reduce(oracle, dst=root, op=reduce_op, group=world.gloo)
                if world.rank == root:
                    _agree_with_gloo(tensor, oracle, op)


@CASES.case(over=REDUCED_TYPES)
def reduce_scatter_tensor(world: World, dtype: torch.dtype) -> None:
    for op, reduce_op in OPS.items():
        if not is_defined(op, dtype):
            with refused(op, "not defined"):
                dist.reduce_scatter_tensor(
                    torch.ones(1, dtype=dtype), torch.ones(world.size, dtype=dtype), op=reduce_op
                )
            continue
        for index, elements in enumerate(SIZES):
            inputs = world.inputs(elements * world.size, dtype, world.salt())
            output = torch.empty(elements, dtype=dtype)
            work = dist.reduce_scatter_tensor(
                output, inputs[world.rank], op=reduce_op, async_op=index % 2 == 1
            )
            if work is not None:
                work.wait()
            own = slice(world.rank * elements, (world.rank + 1) * elements)
            world.check_reduced(output, [tensor[own] for tensor in inputs], op)
            if elements == ORACLE_SIZES[0] and has_gloo(op, dtype) and op != "AVG":
                oracle = torch.empty_like(output)
                dist.reduce_scatter_tensor(
                    oracle, inputs[world.rank], op=reduce_op, group=world.gloo
                )
                _agree_with_gloo(output, oracle, op)


@CASES.case(over=REDUCED_TYPES)
def reduce_scatter_list(world: World, dtype: torch.dtype) -> None:
    """Even and uneven; Gloo has only even ones."""
    for op, reduce_op in OPS.items():
        if not is_defined(op, dtype):
            continue
        for step in (0, 1, 37):
            sizes = [5 + step * rank for rank in range(world.size)]
            sizes[-1] = 0 if step == 1 else sizes[-1]
            inputs = world.inputs(sum(sizes), dtype, world.salt())
            output = torch.empty(sizes[world.rank], dtype=dtype)
            dist.reduce_scatter(output, list(inputs[world.rank].split(sizes)), op=reduce_op)
            parts = [tensor.split(sizes)[world.rank] for tensor in inputs]
            world.check_reduced(output, parts, op, f"in parts of {sizes}")


@CASES.case(over=LARGE_TYPES)
def large_reductions(world: World, dtype: torch.dtype) -> None:
    """Sizes at which everything goes around rings, in segments, with a remainder."""
    for elements in LARGE_SIZES if dtype == torch.float32 else LARGE_SIZES[:1]:
        inputs = world.long_inputs(elements, dtype, world.salt())
        tensor = inputs[world.rank].clone()
        dist.all_reduce(tensor)
        world.check_reduced(tensor, inputs, "SUM")
        world.record(tensor)

        tensor = inputs[world.rank].clone()
        dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        world.check_reduced(tensor, inputs, "AVG")

        tensor = inputs[world.rank].clone()
        dist.reduce(tensor, dst=world.size - 1)
        if world.rank == world.size - 1:
            world.check_reduced(tensor, inputs, "SUM")

        share = elements // world.size
        output = torch.empty(share, dtype=dtype)
        dist.reduce_scatter_tensor(output, inputs[world.rank][: share * world.size].clone())
        own = slice(world.rank * share, (world.rank + 1) * share)
        world.check_reduced(output, [tensor[own] for tensor in inputs], "SUM")

        uneven = [share] * world.size
        uneven[0] += elements - sum(uneven)
        output = torch.empty(uneven[world.rank], dtype=dtype)
        dist.reduce_scatter(output, list(inputs[world.rank].split(uneven)))
        parts = [tensor.split(uneven)[world.rank] for tensor in inputs]
        world.check_reduced(output, parts, "SUM")


@CASES.case(over=("doubling", "ring"))
def reductions_give_the_same_bits_every_time(world: World, algorithm: str) -> None:
    elements = 1000 if algorithm == "doubling" else 300_007
    mine = world.input(elements, torch.float32, world.salt())
    results = []
    for _ in range(3):
        tensor = mine.clone()
        dist.all_reduce(tensor)
        results.append(tensor)
    for result in results[1:]:
        check_equal(result, results[0], "the same all_reduce again")
    world.record(results[0])


@CASES.case(over=FLOATS)
def nan_and_signed_zero(world: World, dtype: torch.dtype) -> None:
    """Any NaN makes a NaN, in MIN and MAX too; -0.0 is smaller than +0.0."""
    last = world.size - 1
    special = torch.tensor([1.0, math.nan, 0.0, math.inf, -1.0], dtype=dtype)
    if world.rank == last:
        special = torch.tensor([math.nan, 1.0, -0.0, 1.0, -1.0], dtype=dtype)
    for op in ("SUM", "MIN", "MAX", "PRODUCT", "AVG"):
        tensor = special.clone()
        dist.all_reduce(tensor, op=OPS[op])
        assert bool(tensor[0].isnan()), op
        assert bool(tensor[1].isnan()) == (world.size > 1), op
        world.record(tensor)
        if op in ("MIN", "MAX"):
            is_negative = op == "MIN" or world.size == 1
            assert float(tensor[2]) == 0.0
            assert bool(torch.signbit(tensor[2])) == is_negative, op
            largest = math.inf if op == "MAX" and world.size > 1 else 1.0
            assert float(tensor[3]) == largest, op


@CASES.case()
def average_of_one_rank_is_a_copy(world: World) -> None:
    group = [dist.new_group([rank]) for rank in range(world.size)][world.rank]
    tensor = torch.tensor([math.pi, -0.0, 1e-45], dtype=torch.float32)
    result = tensor.clone()
    dist.all_reduce(result, op=dist.ReduceOp.AVG, group=group)
    check_equal(result, tensor)


def _every_reduction(
    world: World, inputs: list[Tensor], op: object, check: Callable[[Tensor, list[Tensor]], None]
) -> None:
    """Reduce the inputs by each collective that can, and check what every rank gets."""
    n, me = world.size, world.rank
    group: Any = dist.group.WORLD
    tensor = inputs[me].clone()
    dist.all_reduce(tensor, op=op)
    check(tensor, inputs)
    world.record(tensor)
    tensor = inputs[me].clone()
    options = dist.ReduceOptions()
    options.reduceOp, options.rootRank = op, n - 1
    group.reduce([tensor], options).wait()
    if me == n - 1:
        check(tensor, inputs)
    share = inputs[0].numel() // n
    parts = [tensor[: share * n].split(share) for tensor in inputs]
    mine = [part[me] for part in parts]
    output = torch.empty(share, dtype=inputs[0].dtype)
    dist.reduce_scatter_tensor(output, inputs[me][: share * n], op=op)
    check(output, mine)
    output = torch.empty_like(output)
    dist.reduce_scatter(output, list(parts[me]), op=op)
    check(output, mine)


@CASES.case(over=(*FLOATS, *COMPLEX))
def premultiplied_sum(world: World, dtype: torch.dtype) -> None:
    """The factor is a number or a tensor, and is applied once, before anything is added."""
    make: Any = dist._make_nccl_premul_sum  # type: ignore[attr-defined]
    with refused("factor of PREMUL_SUM must be a real number", "ComplexFloat"):
        dist.all_reduce(torch.ones(4, dtype=dtype), op=make(torch.tensor(1 + 2j)))
    as_real = torch.view_as_real if dtype.is_complex else torch.clone

    def check(actual: Tensor, inputs: list[Tensor]) -> None:
        scaled = [
            (as_real(tensor).flatten().double() * 0.25).to(as_real(actual).dtype)
            for tensor in inputs
        ]
        world.check_reduced(as_real(actual).flatten(), scaled, "SUM", "premultiplied")

    for elements in (world.size, 1000, 70_003):
        for factor in (0.25, torch.tensor([0.25])):
            inputs = world.inputs(elements, dtype, world.salt())
            _every_reduction(world, inputs, make(factor), check)


@CASES.case(over=COMPLEX)
def complex_numbers(world: World, dtype: torch.dtype) -> None:
    """SUM and AVG, part by part."""
    group: Any = dist.group.WORLD
    for op in ("SUM", "AVG"):

        def check(actual: Tensor, inputs: list[Tensor], op: str = op) -> None:
            parts = [torch.view_as_real(tensor).flatten() for tensor in inputs]
            world.check_reduced(torch.view_as_real(actual).flatten(), parts, op)

        for elements in (world.size, 1001, 70_003):
            inputs = world.inputs(elements, dtype, world.salt())
            _every_reduction(world, inputs, OPS[op], check)
    for op in ("MIN", "MAX", "PRODUCT", "BAND", "BOR", "BXOR"):
        with refused():
            dist.all_reduce(torch.ones(3, dtype=dtype), op=OPS[op])
        with refused(op, "not defined"):
            dist.reduce_scatter_tensor(
                torch.ones(1, dtype=dtype), torch.ones(world.size, dtype=dtype), op=OPS[op]
            )
        options = dist.AllreduceOptions()
        options.reduceOp = OPS[op]
        with refused(op, "not defined"):
            group.allreduce([torch.ones(3, dtype=dtype)], options).wait()


@CASES.case(over=WIDE_UNSIGNED)
def unsigned_integers(world: World, dtype: torch.dtype) -> None:
    """Torch itself computes little with these, so the expectation is computed with int64."""
    bits = 8 * dtype.itemsize

    def widen(tensor: Tensor) -> Tensor:
        return tensor.view(torch.int64) if bits == 64 else tensor.to(torch.int64)

    for op in (*ARITHMETIC, "AVG", *BITWISE):

        def check(actual: Tensor, inputs: list[Tensor], op: str = op) -> None:
            wide = [widen(tensor) for tensor in inputs]
            if op == "AVG":
                columns = zip(*(tensor.tolist() for tensor in wide), strict=True)
                expected = [sum(column) % 2**bits // world.size for column in columns]
                assert [value % 2**bits for value in widen(actual).tolist()] == expected
            elif op in ("SUM", "PRODUCT") and bits < 64:
                total = functools.reduce(torch.add if op == "SUM" else torch.mul, wide)
                check_equal(widen(actual), total % 2**bits, f"{op} of {name_of(dtype)}")
            else:
                world.check_reduced(widen(actual), wide, op)

        inputs = world.inputs(1001, dtype, world.salt())
        if bits == 64:  # as int64 for the signed operations: keep the top bit clear
            inputs = [(tensor.view(torch.int64) & (2**63 - 1)).view(dtype) for tensor in inputs]
        _every_reduction(world, inputs, OPS[op], check)


@CASES.case()
def layouts_of_reductions(world: World) -> None:
    """Views, strides and shapes: elements go by their logical order."""
    whole = world.inputs(60, torch.float32, world.salt())
    for make in (
        lambda tensor: tensor.view(6, 10).t(),
        lambda tensor: tensor[::3],
        lambda tensor: tensor.view(3, 4, 5).permute(2, 0, 1)[1:],
        lambda tensor: tensor[7:19],
        lambda tensor: tensor[5],  # no dimension
    ):
        inputs = [tensor.clone() for tensor in whole]
        views = [make(tensor) for tensor in inputs]
        expected = [view.clone() for view in views]
        dist.all_reduce(views[world.rank])
        world.check_reduced(views[world.rank], expected, "SUM")
        world.record(views[world.rank])
        untouched = torch.ones(60, dtype=torch.bool)
        make(untouched).fill_(False)
        check_equal(inputs[world.rank][untouched], whole[world.rank][untouched], "the rest")


@CASES.case(ranks_min=2)
def strides_may_differ_between_ranks(world: World) -> None:
    inputs = [tensor.view(6, 10) for tensor in world.inputs(60, torch.int32, world.salt())]
    mine = inputs[world.rank].clone()
    if world.rank % 2:
        mine = mine.t().contiguous().t()
    dist.all_reduce(mine)
    world.check_reduced(mine, inputs, "SUM")


@CASES.case(over=(10, 100_003))
def reduce_scatter_in_place(world: World, share: int) -> None:
    """The output is this rank's own part of the input."""
    inputs = world.inputs(share * world.size, torch.float32, world.salt())
    buffer = inputs[world.rank].clone()
    own = slice(world.rank * share, (world.rank + 1) * share)
    dist.reduce_scatter_tensor(buffer[own], buffer)
    world.check_reduced(buffer[own], [tensor[own] for tensor in inputs], "SUM")


@CASES.case(over=(10, 100_003), ranks_min=2)
def reduce_scatter_that_overlaps(world: World, share: int) -> None:
    """The output lies over other ranks' parts of the input, which must be read before."""
    inputs = world.inputs(share * world.size, torch.int64, world.salt())
    own = slice(world.rank * share, (world.rank + 1) * share)
    expected = [tensor[own] for tensor in inputs]
    for start in (0, share // 2, share * (world.size - 1)):
        buffer = inputs[world.rank].clone()
        output = buffer[start : start + share]
        dist.reduce_scatter_tensor(output, buffer)
        world.check_reduced(output, expected, "SUM", f"written at {start}")


@CASES.case()
def reduce_scatter_of_a_stack(world: World) -> None:
    """The input may have one dimension more than the output."""
    inputs = [t.view(world.size, 3, 4) for t in world.inputs(world.size * 12, torch.int32, 7)]
    output = torch.empty(3, 4, dtype=torch.int32)
    dist.reduce_scatter_tensor(output, inputs[world.rank])
    world.check_reduced(output, [tensor[world.rank] for tensor in inputs], "SUM")


@CASES.case()
def bad_reductions_are_refused(world: World) -> None:
    """Nothing is sent, and the group works on."""
    with refused("size"):
        dist.reduce_scatter_tensor(torch.empty(3), torch.empty(3 * world.size + 1))
    with refused("Incorrect input list size"):
        dist.reduce_scatter(torch.empty(3), [torch.empty(3)] * (world.size + 1))
    with refused():
        dist.reduce(torch.empty(3), dst=world.size)
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    assert float(tensor) == world.size
