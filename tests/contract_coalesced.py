"""Contract cases: several tensors in one call, and the functional collectives of compilers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract_world import Cases, World, check_equal
from torch import Tensor
from torch.distributed import _functional_collectives as functional

CASES = Cases()
SHAPES = ((7,), (3, 5), (0,), (70_001,), ())


def _inputs(world: World, dtype: torch.dtype) -> list[list[Tensor]]:
    """Return tensors of several shapes; outer index: the rank."""
    salt = world.salt()
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [
        [part.view(shape) for part, shape in zip(whole.split(sizes), SHAPES, strict=True)]
        for whole in world.inputs(sum(sizes), dtype, salt)
    ]


@CASES.case(over=(torch.float32, torch.bfloat16, torch.int64))
def all_reduce_coalesced(world: World, dtype: torch.dtype) -> None:
    inputs = _inputs(world, dtype)
    for is_async in (False, True):
        tensors = [tensor.clone() for tensor in inputs[world.rank]]
        work = dist.all_reduce_coalesced(tensors, async_op=is_async)
        if is_async:
            results = work.wait()  # a future, here
            assert [result.shape for result in results] == [tensor.shape for tensor in tensors]
        for index, tensor in enumerate(tensors):
            world.check_reduced(tensor, [of_rank[index] for of_rank in inputs], "SUM")
            world.record(tensor)


@CASES.case(over=(torch.float32, torch.bool))
def all_gather_coalesced(world: World, dtype: torch.dtype) -> None:
    inputs = _inputs(world, dtype)
    outputs = [[torch.empty_like(tensor) for tensor in of_rank] for of_rank in inputs]
    dist.all_gather_coalesced(outputs, inputs[world.rank])
    for rank in range(world.size):
        for index, tensor in enumerate(inputs[rank]):
            check_equal(outputs[rank][index], tensor, f"tensor {index} of rank {rank}")


@CASES.case(over=(False, True))
def coalescing_manager(world: World, is_async: bool) -> None:
    """What FSDP2 and DTensor do with it: one kind of operation, several tensors."""
    n, me = world.size, world.rank
    wholes = [world.inputs(n * size, torch.float32, world.salt()) for size in (1, 7, 70_001)]
    reduced = [inputs[me].clone() for inputs in wholes]
    scattered = [torch.empty(inputs[me].numel() // n) for inputs in wholes]
    gathered = [torch.empty(inputs[me].numel() * n) for inputs in wholes]

    def in_one(call: Callable[[int], object]) -> None:
        with dist._coalescing_manager(async_ops=is_async) as manager:
            for index in range(len(wholes)):
                call(index)
        if is_async:
            manager.wait()

    in_one(lambda i: dist.all_reduce(reduced[i]))
    in_one(lambda i: dist.reduce_scatter_tensor(scattered[i], wholes[i][me]))
    in_one(lambda i: dist.all_gather_into_tensor(gathered[i], wholes[i][me]))
    for index, inputs in enumerate(wholes):
        world.check_reduced(reduced[index], inputs, "SUM")
        own = slice(me * scattered[index].numel(), (me + 1) * scattered[index].numel())
        world.check_reduced(scattered[index], [tensor[own] for tensor in inputs], "SUM")
        check_equal(gathered[index], torch.cat(inputs), "gathered")


@CASES.case()
def coalescing_manager_with_a_device(world: World) -> None:
    """With a device torch brackets the calls with startCoalescing and endCoalescing."""
    inputs = [world.inputs(100, torch.float32, world.salt()) for _ in range(3)]
    tensors = [of_call[world.rank].clone() for of_call in inputs]
    device = torch.device("cpu")
    with dist._coalescing_manager(device=device, async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    for tensor, of_call in zip(tensors, inputs, strict=True):
        world.check_reduced(tensor, of_call, "SUM")


@CASES.case()
def coalescing_manager_whose_body_raises(world: World) -> None:
    """torch ends nothing then: later calls work, and are no part of the next manager's."""
    group: Any = dist.new_group()
    device = torch.device("cpu")

    def raise_in_one() -> None:
        with dist._coalescing_manager(group, device=device):
            dist.broadcast(torch.ones(3), src=0, group=group)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        raise_in_one()
    dist.distributed_c10d._world.pg_coalesce_state.pop(group)  # torch's own trace of it
    for turn in range(3):
        tensor = torch.full((5,), float(world.rank + turn))
        dist.broadcast(tensor, src=world.size - 1, group=group)
        check_equal(tensor, torch.full((5,), float(world.size - 1 + turn)))
        with dist._coalescing_manager(group, device=device, async_ops=True) as manager:
            dist.broadcast(tensor, src=0, group=group)
        (work,) = manager.works
        assert [result.data_ptr() for result in work.result()] == [tensor.data_ptr()]
        manager.wait()
    dist.destroy_process_group(group)


@CASES.case()
def functional_collectives(world: World) -> None:
    n, me, group = world.size, world.rank, dist.group.WORLD
    inputs = world.inputs(4 * n, torch.float32, world.salt())
    mine = inputs[me].view(n, 4)
    before = mine.clone()

    world.check_reduced(functional.all_reduce(mine, "sum", group).flatten(), inputs, "SUM")
    world.check_reduced(functional.all_reduce(mine, "avg", group).flatten(), inputs, "AVG")
    gathered = functional.all_gather_tensor(mine, 0, group)
    check_equal(gathered, torch.cat(inputs).view(n * n, 4), "all_gather_tensor")
    if n > 1:
        gathered = functional.all_gather_tensor(mine, 1, group)
        check_equal(gathered, torch.cat([t.view(n, 4) for t in inputs], dim=1), "along rows")
    scattered = functional.reduce_scatter_tensor(mine, "sum", 0, group)
    rows = [tensor.view(n, 4)[me : me + 1] for tensor in inputs]
    world.check_reduced(scattered, rows, "SUM")
    exchanged = functional.all_to_all_single(mine, None, None, group)
    check_equal(exchanged, torch.cat(rows), "all_to_all_single")
    sent = functional.broadcast(mine, n - 1, group)
    check_equal(sent, inputs[n - 1].view(n, 4), "broadcast")
    check_equal(mine, before, "functional collectives leave their input alone")


@CASES.case()
def functional_all_to_all_uneven(world: World) -> None:
    n, me = world.size, world.rank
    rows = [[source + to for to in range(n)] for source in range(n)]
    salt = world.salt()
    inputs = [world.input(sum(rows[rank]), torch.int64, salt, rank) for rank in range(n)]
    received = [rows[source][me] for source in range(n)]
    output = functional.all_to_all_single(inputs[me], received, rows[me], dist.group.WORLD)
    expected = [inputs[source].split(rows[source])[me] for source in range(n)]
    check_equal(output, torch.cat(expected))


@CASES.case()
def functional_coalesced(world: World) -> None:
    n, me, group = world.size, world.rank, dist.group.WORLD
    wholes = [world.inputs(size * n, torch.float32, world.salt()) for size in (3, 1000)]
    mine = [inputs[me] for inputs in wholes]
    reduced = functional.all_reduce_coalesced(mine, "sum", group)
    gathered = functional.all_gather_into_tensor_coalesced(mine, group)
    scattered = functional.reduce_scatter_tensor_coalesced(mine, "sum", [0, 0], group)
    for index, inputs in enumerate(wholes):
        world.check_reduced(reduced[index], inputs, "SUM")
        check_equal(gathered[index], torch.cat(inputs), "all_gather_into_tensor_coalesced")
        share = inputs[me].numel() // n
        own = slice(me * share, (me + 1) * share)
        world.check_reduced(scattered[index], [tensor[own] for tensor in inputs], "SUM")


@CASES.case()
def work_that_nobody_waits_for(world: World) -> None:
    """The tensor stays alive until the operation is over; the result waits in the tensor."""
    results = []
    for _ in range(20):
        inputs = world.inputs(5000, torch.float32, world.salt())
        results.append((functional.all_reduce(inputs[world.rank], "sum", dist.group.WORLD), inputs))
        dist.all_reduce(inputs[world.rank].clone(), async_op=True)
    dist.barrier()
    for result, inputs in results:
        world.check_reduced(functional.wait_tensor(result), inputs, "SUM")


# --- Tensors that overlap ------------------------------------------------------------------------


def _calls_with_overlaps(world: World, backend: Any) -> dict[str, list[Tensor]]:
    """Return what calls leave in tensors that come twice or share memory, and in their futures."""
    n, me = world.size, world.rank
    left: dict[str, list[Tensor]] = {}

    def note(what: str, work: Any, *tensors: Tensor) -> None:
        value = work.get_future().wait()
        parts = [part if isinstance(part, list) else [part] for part in value]
        left[what] = [tensor.clone() for tensor in (*tensors, *chain(*parts))]

    for size in (4, 100_000):
        twice, line = torch.arange(size) + me, torch.arange(size) + 3 * me
        grid = (torch.arange(4 * size) + me).view(size, 4)
        ends = [line[: size - 1], line[1:]]
        columns = [grid[:, 0], grid[:, 0], grid[:, 1]]
        note(f"twice, {size}", backend.allreduce_coalesced([twice, twice]), twice)
        note(f"ends, {size}", backend.allreduce_coalesced(ends), line)
        note(f"columns, {size}", backend.allreduce_coalesced(columns), grid)
        same = torch.zeros(size, dtype=torch.int64)
        mine = torch.arange(size) + me
        note(f"gathered, {size}", backend.allgather([[same] * n], [mine]), same)
        row = torch.zeros(size + n, dtype=torch.int64)
        rows = [row[i : i + size] for i in range(n)]
        note(f"rows, {size}", backend.allgather([rows], [mine]), row)
        lists = [[row[i : i + size] for _ in range(2 * n)] for i in range(2)]
        note(f"several, {size}", backend.allgather(lists, [mine, mine + 1]), row)
        read = [row[:size], row[n:]]
        note(f"lists, {size}", backend.allgather([rows * 2, rows * 2], read), row)
        to_me = dist.GatherOptions()
        to_me.rootRank = n - 1
        into = [rows] if me == n - 1 else []
        note(f"root, {size}", backend.gather(into, [mine], to_me), row)
        note(f"exchanged, {size}", backend.alltoall(rows, [mine] * n), row)
    return left


@CASES.case(ranks_min=2)
def tensors_that_come_twice_or_overlap(world: World) -> None:
    """As with Gloo, which reads all of them first and then writes all of them in order."""
    for _ in range(2):
        ours = _calls_with_overlaps(world, dist.group.WORLD)
        oracle = _calls_with_overlaps(world, world.gloo)
        for what, tensors in oracle.items():
            assert len(ours[what]) == len(tensors)
            for index, (actual, expected) in enumerate(zip(ours[what], tensors, strict=True)):
                check_equal(actual, expected, f"{what}, {index}")


@CASES.case()
def outputs_of_a_manager_that_overlap(world: World) -> None:
    n, me = world.size, world.rank
    for size in (5, 50_001):
        whole = torch.arange(n * size, dtype=torch.float64)
        scattered = torch.zeros(size, dtype=torch.float64)
        with dist._coalescing_manager():
            dist.reduce_scatter_tensor(scattered, whole)
            dist.reduce_scatter_tensor(scattered, whole + 1)
        own = whole[me * size : (me + 1) * size]
        check_equal(scattered, (own + 1) * n, "the last one counts")
        # The second call reads what the first one writes: both read before.
        long = torch.full((2 * n * size,), float(me), dtype=torch.float64)
        with dist._coalescing_manager():
            dist.all_gather_into_tensor(long[: n * size], torch.full_like(own, 7.0))
            dist.all_gather_into_tensor(long[n * size :], long[:size])
        check_equal(long[: n * size], torch.full((n * size,), 7.0, dtype=torch.float64))
        ranks = torch.arange(n, dtype=torch.float64).repeat_interleave(size)
        check_equal(long[n * size :], ranks, "what was there before")


@CASES.case()
def futures_of_lists(world: World) -> None:
    """A list for each input of all_gather, or each rank of its coalesced form, as Gloo gives."""
    one = torch.ones(3)
    for inputs in ([one], [one, one], [one] * 3):
        shapes = []
        for group in (dist.group.WORLD, world.gloo):
            lists = [[torch.empty(3) for _ in range(len(inputs) * world.size)] for _ in inputs]
            by_rank = [[torch.empty(3) for _ in inputs] for _ in range(world.size)]
            calls = [group.allgather(lists, inputs), group.allgather_coalesced(by_rank, inputs)]
            values = [call.get_future().wait() for call in calls]
            shapes.append(
                [
                    [len(part) if isinstance(part, list) else part.shape for part in value]
                    for value in values
                ]
            )
        assert shapes[0] == shapes[1]
