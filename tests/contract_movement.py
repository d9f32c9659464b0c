"""Contract cases: broadcast, all_gather, gather, scatter, all_to_all. Bytes must arrive as sent."""

from __future__ import annotations

import torch
import torch.distributed as dist
from contract_world import (
    LARGE_SIZES,
    MOVED_TYPES,
    OPAQUE_TYPES,
    SIZES,
    WIDE_UNSIGNED,
    Cases,
    World,
    check_equal,
    refused,
)

CASES = Cases()
ORACLE_SIZES = (17, 1000)
# Gloo calls these "Invalid scalar type", even to copy them.
NOT_IN_GLOO = (torch.int16, *WIDE_UNSIGNED, torch.float8_e4m3fn)


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()


def _has_gloo(elements: int, dtype: torch.dtype) -> bool:
    return elements in ORACLE_SIZES and dtype not in NOT_IN_GLOO


@CASES.case(over=MOVED_TYPES)
def broadcast_from_each_root(world: World, dtype: torch.dtype) -> None:
    for index, elements in enumerate(SIZES):
        root = index % world.size
        inputs = world.inputs(elements, dtype, world.salt())
        tensor = inputs[world.rank].clone()
        _wait(dist.broadcast(tensor, src=root, async_op=index % 2 == 0))
        check_equal(tensor, inputs[root], f"broadcast of {elements}")
        if _has_gloo(elements, dtype):
            oracle = inputs[world.rank].clone()
            dist.broadcast(oracle, src=root, group=world.gloo)
            check_equal(tensor, oracle, "gloo")


@CASES.case(over=MOVED_TYPES)
def all_gather_list(world: World, dtype: torch.dtype) -> None:
    for index, elements in enumerate(SIZES):
        inputs = world.inputs(elements, dtype, world.salt())
        outputs = [torch.empty(elements, dtype=dtype) for _ in range(world.size)]
        _wait(dist.all_gather(outputs, inputs[world.rank], async_op=index % 2 == 0))
        for rank in range(world.size):
            check_equal(outputs[rank], inputs[rank], f"part of rank {rank}")
        if _has_gloo(elements, dtype):
            oracles = [torch.empty(elements, dtype=dtype) for _ in range(world.size)]
            dist.all_gather(oracles, inputs[world.rank], group=world.gloo)
            check_equal(torch.cat(outputs), torch.cat(oracles), "gloo")


@CASES.case(over=MOVED_TYPES)
def all_gather_into_tensor(world: World, dtype: torch.dtype) -> None:
    for index, elements in enumerate(SIZES):
        inputs = world.inputs(elements, dtype, world.salt())
        output = torch.empty(elements * world.size, dtype=dtype)
        _wait(dist.all_gather_into_tensor(output, inputs[world.rank], async_op=index % 2 == 1))
        check_equal(output, torch.cat(inputs), f"all_gather of {elements}")
        stacked = torch.empty((world.size, elements), dtype=dtype)
        dist.all_gather_into_tensor(stacked, inputs[world.rank])
        check_equal(stacked.flatten(), output, "as a stack")
        if _has_gloo(elements, dtype):
            oracle = torch.empty_like(output)
            dist.all_gather_into_tensor(oracle, inputs[world.rank], group=world.gloo)
            check_equal(output, oracle, "gloo")


@CASES.case(over=MOVED_TYPES)
def all_gather_of_uneven_parts(world: World, dtype: torch.dtype) -> None:
    """Gloo refuses these."""
    for step in (1, 7, 1009):
        sizes = [rank * step for rank in range(world.size)]  # rank 0 has nothing
        salt = world.salt()
        inputs = [world.input(size, dtype, salt, rank) for rank, size in enumerate(sizes)]
        outputs = [torch.empty(size, dtype=dtype) for size in sizes]
        dist.all_gather(outputs, inputs[world.rank])
        for rank in range(world.size):
            check_equal(outputs[rank], inputs[rank], f"part of rank {rank} of {sizes}")


@CASES.case(over=MOVED_TYPES)
def gather_to_each_root(world: World, dtype: torch.dtype) -> None:
    for index, elements in enumerate(SIZES):
        root = index % world.size
        is_root = world.rank == root
        inputs = world.inputs(elements, dtype, world.salt())
        outputs = [torch.empty(elements, dtype=dtype) for _ in range(world.size if is_root else 0)]
        _wait(dist.gather(inputs[world.rank], outputs or None, dst=root, async_op=index % 2 == 0))
        for rank in range(len(outputs)):
            check_equal(outputs[rank], inputs[rank], f"part of rank {rank}")


@CASES.case(over=MOVED_TYPES)
def scatter_from_each_root(world: World, dtype: torch.dtype) -> None:
    for index, elements in enumerate(SIZES):
        root = index % world.size
        inputs = world.inputs(elements, dtype, world.salt())
        output = torch.empty(elements, dtype=dtype)
        parts = inputs if world.rank == root else None
        _wait(dist.scatter(output, parts, src=root, async_op=index % 2 == 1))
        check_equal(output, inputs[world.rank], f"scatter of {elements}")


@CASES.case(over=MOVED_TYPES)
def all_to_all_single(world: World, dtype: torch.dtype) -> None:
    n, me = world.size, world.rank
    for index, elements in enumerate(SIZES):
        inputs = world.inputs(elements * n, dtype, world.salt())
        own = slice(me * elements, (me + 1) * elements)
        output = torch.empty(elements * n, dtype=dtype)
        _wait(dist.all_to_all_single(output, inputs[me], async_op=index % 2 == 0))
        check_equal(output, torch.cat([tensor[own] for tensor in inputs]), f"{elements} each")
        if _has_gloo(elements, dtype):
            oracle = torch.empty_like(output)
            dist.all_to_all_single(oracle, inputs[me], group=world.gloo)
            check_equal(output, oracle, "gloo")


@CASES.case(over=MOVED_TYPES)
def all_to_all_single_uneven(world: World, dtype: torch.dtype) -> None:
    """Rows of three elements; rank r sends (r + to) * step rows, so rank 0 sends itself none."""
    n, me = world.size, world.rank
    for step in (0, 1, 29):
        rows = [[(source + to) * step for to in range(n)] for source in range(n)]
        salt = world.salt()
        inputs = [
            world.input(3 * sum(rows[source]), dtype, salt, source).view(-1, 3)
            for source in range(n)
        ]
        received = [rows[source][me] for source in range(n)]
        output = torch.empty((sum(received), 3), dtype=dtype)
        dist.all_to_all_single(output, inputs[me], received, rows[me])
        expected = [inputs[source].split(rows[source])[me] for source in range(n)]
        check_equal(output, torch.cat(expected), f"rows {rows}")


@CASES.case(over=MOVED_TYPES)
def all_to_all_list(world: World, dtype: torch.dtype) -> None:
    """Even and uneven, with empty members."""
    n, me = world.size, world.rank
    for step in (0, 5, 1009):
        sizes = [[4 + step * abs(source - to) for to in range(n)] for source in range(n)]
        sizes[0][n - 1] = 0
        salt = world.salt()
        inputs = [
            list(world.input(sum(sizes[source]), dtype, salt, source).split(sizes[source]))
            for source in range(n)
        ]
        outputs = [torch.empty(sizes[source][me], dtype=dtype) for source in range(n)]
        _wait(dist.all_to_all(outputs, inputs[me], async_op=step == 5))
        for source in range(n):
            check_equal(outputs[source], inputs[source][me], f"from rank {source}")


@CASES.case(over=LARGE_SIZES)
def large_movements(world: World, elements: int) -> None:
    """Sizes at which everything is cut into segments, with a remainder."""
    n, me = world.size, world.rank
    share = elements // n
    inputs = world.long_inputs(elements, torch.int32, world.salt())

    tensor = inputs[me].clone()
    dist.broadcast(tensor, src=n - 1)
    check_equal(tensor, inputs[n - 1], "broadcast")

    output = torch.empty(share * n, dtype=torch.int32)
    dist.all_gather_into_tensor(output, inputs[me][:share].clone())
    check_equal(output, torch.cat([tensor[:share] for tensor in inputs]), "all_gather")

    dist.all_to_all_single(output, inputs[me][: share * n].clone())
    own = slice(me * share, (me + 1) * share)
    check_equal(output, torch.cat([tensor[own] for tensor in inputs]), "all_to_all")

    part = torch.empty(share, dtype=torch.int32)
    parts = [inputs[0][rank * share :][:share] for rank in range(n)]
    dist.scatter(part, parts if me == 0 else None, src=0)
    check_equal(part, parts[me], "scatter")

    gathered = [torch.empty_like(part) for _ in range(n)] if me == n - 1 else None
    dist.gather(part, gathered, dst=n - 1)
    for rank, other in enumerate(gathered or []):
        check_equal(other, parts[rank], "gather")


@CASES.case()
def large_uneven_all_gather(world: World) -> None:
    sizes = [1 if rank % 2 else 200_003 * (rank + 1) for rank in range(world.size)]
    inputs = [world.long_inputs(size, torch.float64, 5)[rank] for rank, size in enumerate(sizes)]
    outputs = [torch.empty(size, dtype=torch.float64) for size in sizes]
    dist.all_gather(outputs, inputs[world.rank])
    for rank in range(world.size):
        check_equal(outputs[rank], inputs[rank], f"part of rank {rank}")


@CASES.case(over=(10, 100_003))
def all_gather_in_place(world: World, elements: int) -> None:
    """The input is this rank's own part of the output."""
    inputs = world.inputs(elements, torch.float32, world.salt())
    buffer = torch.full((elements * world.size,), -1.0)
    own = slice(world.rank * elements, (world.rank + 1) * elements)
    buffer[own] = inputs[world.rank]
    dist.all_gather_into_tensor(buffer, buffer[own])
    check_equal(buffer, torch.cat(inputs), "into a tensor")

    buffer.fill_(-1.0)
    buffer[own] = inputs[world.rank]
    dist.all_gather(list(buffer.split(elements)), buffer[own])
    check_equal(buffer, torch.cat(inputs), "into views of one buffer")


@CASES.case(over=(10, 100_003))
def inputs_that_overlap_outputs(world: World, elements: int) -> None:
    """No output is written before the input that it covers was read."""
    n, me = world.size, world.rank
    inputs = world.inputs(elements * n, torch.int64, world.salt())
    own = slice(me * elements, (me + 1) * elements)

    buffer = inputs[me].clone()
    dist.all_to_all_single(buffer, buffer)
    check_equal(buffer, torch.cat([tensor[own] for tensor in inputs]), "all_to_all in place")

    for start in (0, elements // 2, elements * (n - 1)):  # the input is elsewhere in the output
        buffer = inputs[me].clone()
        if start + elements <= buffer.numel():
            mine = [tensor[start : start + elements] for tensor in inputs]
            dist.all_gather_into_tensor(buffer, buffer[start : start + elements])
            check_equal(buffer, torch.cat(mine), f"all_gather from {start}")

    buffer = inputs[me].clone()
    parts = list(buffer.split(elements))
    dist.scatter(parts[0], parts if me == n - 1 else None, src=n - 1)
    check_equal(parts[0], inputs[n - 1][own], "scatter into one of its inputs")


@CASES.case()
def layouts_of_movements(world: World) -> None:
    """Views and strides: elements go by their logical order, and the rest stays as it was."""
    n, me = world.size, world.rank
    inputs = [tensor.view(4, 6) for tensor in world.inputs(24, torch.float32, world.salt())]

    target = torch.zeros(8, 6)
    tensor = target[::2]
    tensor.copy_(inputs[me])
    dist.broadcast(tensor, src=0)
    check_equal(target[::2], inputs[0], "broadcast into every second row")
    assert not target[1::2].any()

    outputs = [torch.zeros(6, 4).t() for _ in range(n)]
    dist.all_gather(outputs, inputs[me].t().contiguous().t())
    for rank in range(n):
        check_equal(outputs[rank], inputs[rank], f"part of rank {rank}, transposed")

    output = torch.zeros(4 * n, 12)[:, ::2]
    dist.all_gather_into_tensor(output, inputs[me])
    check_equal(output, torch.cat(inputs), "into every second column")

    output = torch.zeros(n, 2).t()[0]
    dist.all_to_all_single(output, inputs[me].flatten()[:n])
    check_equal(output, torch.stack([tensor.flatten()[me] for tensor in inputs]), "a column")


@CASES.case()
def root_may_send_what_it_cannot_write(world: World) -> None:
    source = torch.tensor([float(world.rank)]).expand(1000)
    target = source if world.rank == 0 else source.clone()
    dist.broadcast(target, src=0)
    check_equal(target, torch.zeros(1000))


@CASES.case()
def lazy_negatives_are_resolved(world: World) -> None:
    """The imaginary part of a conjugate is a view whose sign is not yet in memory."""
    inputs = [t.conj().imag for t in world.inputs(33, torch.complex64, world.salt())]
    assert inputs[0].is_neg()
    outputs = [torch.empty(33) for _ in range(world.size)]
    dist.all_gather(outputs, inputs[world.rank])
    for rank in range(world.size):
        check_equal(outputs[rank], inputs[rank].resolve_neg(), f"part of rank {rank}")


@CASES.case(over=(*OPAQUE_TYPES, torch.complex128))
def any_type_is_moved_as_bytes(world: World, dtype: torch.dtype) -> None:
    """Whatever the bits are: they are not looked at."""
    n, me = world.size, world.rank
    for elements in (3, 1000):
        inputs = world.inputs(elements * n, dtype, world.salt())
        parts = [tensor.split(elements) for tensor in inputs]
        tensor = inputs[me].clone()
        dist.broadcast(tensor, src=n - 1)
        check_equal(tensor, inputs[n - 1], "broadcast")
        outputs = [torch.empty_like(inputs[0]) for _ in range(n)]
        dist.all_gather(outputs, inputs[me])
        for rank in range(n):
            check_equal(outputs[rank], inputs[rank], "all_gather")
        output = torch.empty(elements * n, dtype=dtype)
        dist.all_gather_into_tensor(output, parts[me][0])
        for rank in range(n):
            check_equal(output.split(elements)[rank], parts[rank][0], "all_gather_into_tensor")
        dist.all_to_all_single(output, inputs[me])
        for rank in range(n):
            check_equal(output.split(elements)[rank], parts[rank][me], "all_to_all")
        dist.gather(inputs[me], outputs if me == 0 else None, dst=0)
        if me == 0:
            for rank in range(n):
                check_equal(outputs[rank], inputs[rank], "gather")
        piece = torch.empty(elements, dtype=dtype)
        dist.scatter(piece, list(parts[n - 1]) if me == n - 1 else None, src=n - 1)
        check_equal(piece, parts[n - 1][me], "scatter")
        if n > 1:
            work = dist.isend(parts[me][0], (me + 1) % n)
            dist.recv(piece, (me - 1) % n)
            work.wait()
            check_equal(piece, parts[(me - 1) % n][0], "message")
    if dtype in OPAQUE_TYPES:
        group = dist.group.WORLD
        assert group is not None
        with refused("SUM is not defined on"):
            group.allreduce([world.input(4, dtype, 1)]).wait()


@CASES.case()
def bad_movements_are_refused(world: World) -> None:
    """Nothing is sent, and the group works on."""
    n = world.size
    with refused("world_size"):
        dist.all_gather_into_tensor(torch.empty(3 * n + 1), torch.empty(3))
    with refused("invalid output tensor list at index 0"):
        dist.all_gather([torch.empty(3)] * (n + 1), torch.empty(3))
    with refused("type"):
        dist.all_gather([torch.empty(3, dtype=torch.float64)] * n, torch.empty(3))
    with refused("does not divide equally" if n > 1 else "doesn't match total dim 0 size"):
        splits = None if n > 1 else [3]
        dist.all_to_all_single(torch.empty(n + 1), torch.empty(n + 1), splits, splits)
    with refused("Number of tensor splits not equal to group size"):
        dist.all_to_all_single(torch.empty(n), torch.empty(n), [1] * (n + 1), [1] * n)
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    assert float(tensor) == n
