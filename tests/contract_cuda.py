"""Contract cases for tensors in the memory of a GPU, which all ranks share.

Inputs are made, and results judged, in host memory.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract_world import (
    INTEGERS,
    OPS,
    Cases,
    World,
    check_equal,
    is_defined,
    refused,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

CASES = Cases()
GPU = torch.device("cuda", 0)
TYPES = (torch.float32, torch.float16, torch.bfloat16, *INTEGERS)
# Elements: none, one, odd, more than a datagram; the last goes in pieces and leaves a remainder.
SIZES = (0, 1, 17, 16_411)
PIECES = 3 * 2**20 + 5
SLOW_CYCLES = 100_000_000  # of the GPU's clock: some 50 ms


def _wait(work: Any) -> None:
    if work is not None:
        work.wait()


def _slow_kernel() -> None:
    torch.cuda._sleep(SLOW_CYCLES)


# --- Every operation -----------------------------------------------------------------------------


@CASES.case(over=TYPES)
def all_reduce(world: World, dtype: torch.dtype) -> None:
    for op in (op for op in OPS if is_defined(op, dtype)):
        for index, elements in enumerate(SIZES):
            inputs = world.inputs(elements, dtype, world.salt())
            tensor = inputs[world.rank].to(GPU)
            _wait(dist.all_reduce(tensor, op=OPS[op], async_op=index % 2 == 1))
            world.check_reduced(tensor.cpu(), inputs, op, "on the GPU")
            world.record(tensor.cpu())


@CASES.case(over=(torch.float32, torch.bfloat16))
def large_calls_go_in_pieces(world: World, dtype: torch.dtype) -> None:
    inputs = world.long_inputs(PIECES, dtype, world.salt())
    tensor = inputs[world.rank].to(GPU)
    dist.all_reduce(tensor)
    world.check_reduced(tensor.cpu(), inputs, "SUM", "in pieces")
    world.record(tensor.cpu())
    root = world.size - 1
    tensor = inputs[world.rank].to(GPU)
    dist.broadcast(tensor, src=root)
    check_equal(tensor.cpu(), inputs[root], "broadcast in pieces")
    tensor = inputs[world.rank].to(GPU)
    dist.reduce(tensor, dst=root)
    if world.rank == root:
        world.check_reduced(tensor.cpu(), inputs, "SUM", "to the root, in pieces")


@CASES.case(over=(torch.float32, torch.bfloat16, torch.int64))
def operations_that_move_parts(world: World, dtype: torch.dtype) -> None:
    n, me = world.size, world.rank
    for index, elements in enumerate((*SIZES, 2**18 + 1)):
        is_async, root = index % 2 == 0, index % n
        inputs = world.inputs(elements * n, dtype, world.salt())
        mine = inputs[me].to(GPU)
        own = slice(me * elements, (me + 1) * elements)

        part = torch.empty(elements, dtype=dtype, device=GPU)
        _wait(dist.reduce_scatter_tensor(part, mine, async_op=is_async))
        world.check_reduced(part.cpu(), [tensor[own] for tensor in inputs], "SUM", "scattered")

        whole = torch.empty(elements * n, dtype=dtype, device=GPU)
        _wait(dist.all_gather_into_tensor(whole, mine[own], async_op=is_async))
        expected = torch.cat([inputs[r][r * elements :][:elements] for r in range(n)])
        check_equal(whole.cpu(), expected, "gathered by all")

        _wait(dist.all_to_all_single(whole, mine, async_op=is_async))
        check_equal(whole.cpu(), torch.cat([tensor[own] for tensor in inputs]), "exchanged")

        rows = [torch.empty(elements, dtype=dtype, device=GPU) for _ in range(n)]
        _wait(dist.all_gather(rows, mine[own], async_op=is_async))
        check_equal(torch.cat(rows).cpu(), expected, "gathered by all in a list")

        is_root = me == root
        _wait(dist.gather(mine[own], rows if is_root else None, dst=root, async_op=is_async))
        if is_root:
            check_equal(torch.cat(rows).cpu(), expected, "gathered")

        parts = list(mine.split(max(elements, 1)))[:n] if elements else [mine[:0]] * n
        _wait(dist.scatter(part, parts if is_root else None, src=root, async_op=is_async))
        check_equal(part.cpu(), inputs[root][own], "scattered by the root")


@CASES.case()
def all_to_all_of_uneven_parts(world: World) -> None:
    n, me = world.size, world.rank
    rows = [[(source + target) % 3 for target in range(n)] for source in range(n)]
    inputs = [world.input(sum(rows[r]), torch.float32, 5 + r, r) for r in range(n)]
    received = [rows[source][me] for source in range(n)]
    output = torch.empty(sum(received), device=GPU)
    dist.all_to_all_single(output, inputs[me].to(GPU), received, rows[me])
    expected = [inputs[source].split(rows[source])[me] for source in range(n)]
    check_equal(output.cpu(), torch.cat(expected), "uneven")


@CASES.case(ranks_min=2)
def messages(world: World) -> None:
    following, preceding = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for elements in (1, 16_411, PIECES):
        salt = world.salt()
        target = torch.empty(elements, device=GPU)
        mine = world.input(elements, torch.float32, salt).to(GPU)
        batch = [
            dist.P2POp(dist.irecv, target, preceding),
            dist.P2POp(dist.isend, mine, following),
        ]
        for work in dist.batch_isend_irecv(batch):
            work.wait()
        check_equal(target.cpu(), world.input(elements, torch.float32, salt, preceding), "batched")
        salt = world.salt()
        mine = world.input(elements, torch.float32, salt).to(GPU)
        receive: Any = dist.irecv(target, preceding)
        dist.send(mine, following)
        receive.wait()
        check_equal(target.cpu(), world.input(elements, torch.float32, salt, preceding), "single")


@CASES.case(over=(False, True))
def coalesced(world: World, is_async: bool) -> None:
    inputs = [world.inputs(size, torch.float32, world.salt()) for size in (1, 7, 70_001)]
    tensors = [of_ranks[world.rank].to(GPU) for of_ranks in inputs]
    coalescing: Any = dist._coalescing_manager  # type: ignore[attr-defined]
    with coalescing(device=GPU, async_ops=is_async) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor)
    if is_async:
        manager.wait()
    for tensor, of_ranks in zip(tensors, inputs, strict=True):
        world.check_reduced(tensor.cpu(), of_ranks, "SUM", "coalesced")


@CASES.case()
def strided_tensors(world: World) -> None:
    inputs = world.inputs(35, torch.float32, world.salt())
    grid = torch.zeros(5, 14, device=GPU)
    grid[:, ::2] = inputs[world.rank].view(7, 5).t().to(GPU)
    dist.all_reduce(grid[:, ::2])
    world.check_reduced(grid[:, ::2].t().reshape(35).cpu(), inputs, "SUM", "strided")
    assert not grid[:, 1::2].any(), "the elements between are not ours"
    wide = world.input(2 * PIECES, torch.float32, world.salt(), 0)
    target = torch.zeros(2 * PIECES, device=GPU)
    if world.rank == 0:
        target.copy_(wide)
    dist.broadcast(target[::2], src=0)
    check_equal(target[::2].cpu(), wide[::2], "strided, in pieces")


@CASES.case()
def barrier_and_objects(world: World) -> None:
    dist.barrier(device_ids=[0])
    everyones: list[Any] = [None] * world.size
    dist.all_gather_object(everyones, {"rank": world.rank})
    assert everyones == [{"rank": rank} for rank in range(world.size)]


# --- Streams, memory, futures --------------------------------------------------------------------


@CASES.case(over=(5, PIECES))
def what_is_sent_is_what_the_stream_computes(world: World, elements: int) -> None:
    """Enqueued kernels come before the copy out; what is enqueued after wait() after the one in."""
    stream = torch.cuda.Stream(GPU)
    for is_async in (False, True):
        with torch.cuda.stream(stream):
            tensor = torch.zeros(elements, device=GPU)
            _slow_kernel()
            tensor += world.rank + 1
            _wait(dist.all_reduce(tensor, async_op=is_async))
            doubled = tensor * 2
        stream.synchronize()
        total = world.size * (world.size + 1) // 2
        check_equal(doubled.cpu(), torch.full((elements,), 2.0 * total), f"async: {is_async}")


@CASES.case(over=(5, PIECES))
def asynchronous_call_returns_at_once(world: World, elements: int) -> None:
    """While the caller's stream is busy: it has to wait for nothing."""
    tensor = torch.full((elements,), float(world.rank), device=GPU)
    dist.all_reduce(tensor.clone())  # pinned memory and links are there
    torch.cuda.synchronize()
    is_free = torch.cuda.Event()
    _slow_kernel()
    is_free.record()
    work: Any = dist.all_reduce(tensor, async_op=True)
    assert not is_free.query(), "the call has waited for the stream"
    assert not work.is_completed()
    work.wait()
    check_equal(tensor.cpu(), torch.full((elements,), float(sum(range(world.size)))))


@CASES.case(over=(17, PIECES))
def memory_that_is_given_back_early(world: World, elements: int) -> None:
    """The allocator hands a deleted tensor's memory out again: not before it has been read."""
    n = world.size
    inputs = [world.input(elements, torch.float32, 77, rank) for rank in range(n)]
    mine = inputs[world.rank].to(GPU)
    output = torch.empty(elements * n, device=GPU)
    _slow_kernel()
    work: Any = dist.all_gather_into_tensor(output, mine, async_op=True)
    del mine
    with torch.cuda.stream(torch.cuda.Stream(GPU)):
        others = [torch.full((elements,), -1.0, device=GPU) for _ in range(4)]
    work.wait()
    check_equal(output.cpu(), torch.cat(inputs), "from memory that was given back")
    assert len(others) == 4


@CASES.case()
def many_calls_in_flight(world: World) -> None:
    """Of all sizes, from two streams, waited for backwards, with host tensors between them."""
    streams = [torch.cuda.Stream(GPU) for _ in range(2)]
    calls = []
    for index in range(40):
        elements = (3, 70_001, 1, 2**20 + 7)[index % 4]
        device = torch.device("cpu") if index % 5 == 4 else GPU
        with torch.cuda.stream(streams[index % 2]):
            tensor = torch.full((elements,), float(world.rank + index), device=device)
            calls.append((index, tensor, dist.all_reduce(tensor, async_op=True)))
    for index, tensor, work in reversed(calls):
        with torch.cuda.stream(streams[index % 2]):
            _wait(work)
            total = float(sum(rank + index for rank in range(world.size)))
            check_equal(tensor.cpu(), torch.full_like(tensor, total, device="cpu"), f"call {index}")


@CASES.case()
def futures_know_the_stream(world: World) -> None:
    for elements in (9, PIECES):
        tensor = torch.full((elements,), float(world.rank), device=GPU)
        _slow_kernel()
        work: Any = dist.all_reduce(tensor, async_op=True)
        halves = work.get_future().then(lambda future: future.value()[0] / 2).wait()
        total = sum(range(world.size)) / 2
        check_equal(halves.cpu(), torch.full((elements,), total), "in a callback")


# --- What is refused, and what fails -------------------------------------------------------------


@CASES.case()
def capture_of_a_graph_is_refused(world: World) -> None:
    tensor = torch.full((8,), float(world.rank), device=GPU)
    graph = torch.cuda.CUDAGraph()
    with (
        suppress(torch.AcceleratorError),  # before 2.12 the question alone spoils the capture
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
        refused("graph"),
    ):
        dist.all_reduce(tensor)
    torch.cuda.synchronize()
    dist.all_reduce(tensor)  # nothing was sent before, so the ranks are still in step
    check_equal(tensor.cpu(), torch.full((8,), float(sum(range(world.size)))))


@CASES.case()
def tensors_of_two_devices_in_one_call_are_refused(world: World) -> None:
    with refused("device"):
        dist.all_gather_into_tensor(torch.empty(4 * world.size), torch.ones(4, device=GPU))
    with refused("device"):
        dist.all_gather([torch.empty(4)] * world.size, torch.ones(4, device=GPU))
    dist.barrier()


@CASES.case(ranks_min=2)
def rank_that_does_not_come(world: World) -> None:
    """The error comes in time and names who is missing, though the tensor is on a GPU."""
    group: Any = dist.new_group(list(range(world.size)), timeout=timedelta(seconds=2))
    if world.rank == 0:
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"rank 1\b"):
            dist.all_reduce(torch.ones(PIECES, device=GPU), group=group)
        assert time.monotonic() - started < 30
        torch.cuda.synchronize()  # nothing of the call is left behind on the GPU
    dist.barrier()


# --- Training ------------------------------------------------------------------------------------


def _network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(32, 257), nn.ReLU(), nn.Linear(257, 8)).to(GPU)


def _samples(world: World) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return list(torch.randn(12 * world.size, 32, generator=generator).to(GPU).chunk(world.size))


def _loss(network: nn.Module, samples: Tensor) -> Tensor:
    return network(samples).square().mean()


def _expected_gradients(world: World) -> list[Tensor]:
    network = _network()
    _loss(network, torch.cat(_samples(world))).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@CASES.case(over=("plain", "small_buckets"))
def ddp(world: World, variant: str) -> None:
    model = DistributedDataParallel(
        _network(), device_ids=[0], bucket_cap_mb=25 if variant == "plain" else 0.001
    )
    for _ in range(3):
        model.zero_grad()
        _loss(model, _samples(world)[world.rank]).backward()
    for parameter, expected in zip(model.parameters(), _expected_gradients(world), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected)
        world.record(parameter.grad.cpu())


@CASES.case()
def fsdp2(world: World) -> None:
    mesh = init_device_mesh("cuda", (world.size,))
    network = _network()
    for layer in network:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for _ in range(3):
        network.zero_grad()
        _loss(network, _samples(world)[world.rank]).backward()
    for parameter, expected in zip(network.parameters(), _expected_gradients(world), strict=True):
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(parameter.grad.full_tensor(), expected)


@CASES.case()
def dtensor(world: World) -> None:
    mesh = init_device_mesh("cuda", (world.size,))
    whole = torch.arange(60.0, device=GPU).view(12, 5)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    check_equal(sharded.full_tensor().cpu(), whole.cpu(), "gathered")
    moved = sharded.redistribute(mesh, [Shard(1)]).full_tensor()
    check_equal(moved.cpu(), whole.cpu(), "all_to_all")
    product = sharded.t() @ sharded  # partial sums
    torch.testing.assert_close(
        product.redistribute(mesh, [Replicate()]).to_local(), whole.t() @ whole
    )
