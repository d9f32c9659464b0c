"""Contract cases: what is over when a barrier is, and when a group goes out of scope."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract_backend import _backend, _staging_backend
from contract_world import Cases, World, check_equal
from torch import Tensor

CASES = Cases()

WAYS: dict[str, Callable[[Any], object]] = {
    "wait": lambda group: group.barrier().wait(),
    "future": lambda group: group.barrier().get_future().wait(),
    "second of two": lambda group: (group.barrier(), group.barrier().wait()),
    "function": lambda _: dist.barrier(),
}


@CASES.case(over=tuple(WAYS))
def barrier_ends_what_was_begun_before(world: World, way: str) -> None:
    """Also what nobody waits for, is copied back in the end, or is done in several stages."""
    group: Any = dist.group.WORLD
    n = world.size
    for turn in range(6):
        dense = [torch.full((size,), float(i)) for i, size in enumerate((1, 10_000, 300_000) * 3)]
        strided = [torch.full((4, 2000), float(i)).t() for i in range(4)]
        sparse = [torch.eye(20).to_sparse() for _ in range(2)]
        gathered = [[torch.zeros(5000) for _ in range(n)] for _ in range(3)]
        for tensor in (*dense, *strided, *sparse):
            dist.all_reduce(tensor, async_op=True)
        for lists in gathered:
            dist.all_gather(lists, torch.full((5000,), 7.0), async_op=True)
        WAYS[way](group)
        for i, tensor in enumerate(dense):
            check_equal(tensor, torch.full(tensor.shape, float(i * n)), f"dense {i}, turn {turn}")
        for i, tensor in enumerate(strided):
            check_equal(tensor, torch.full(tensor.shape, float(i * n)), f"strided {i}")
        for tensor in sparse:
            check_equal(tensor.to_dense(), torch.eye(20) * n, "sparse")
        for lists in gathered:
            check_equal(torch.cat(lists), torch.full((5000 * n,), 7.0), "gathered")


@CASES.case()
def barrier_ends_what_is_staged(world: World) -> None:
    backend = _staging_backend(world)
    for _ in range(3):
        tensors = [torch.full((2 * 2**20 + 3,), float(i)) for i in range(3)]
        for tensor in tensors:
            backend.allreduce([tensor])
        backend.barrier().wait()
        for i, tensor in enumerate(tensors):
            check_equal(tensor, torch.full(tensor.shape, float(i * world.size)), f"tensor {i}")
    backend.shutdown()


@CASES.case(ranks_min=2)
def barrier_does_not_wait_for_messages(world: World) -> None:
    """The other end of one may come after the barrier; nor do later operations wait for it."""
    n, me = world.size, world.rank
    received, total = torch.zeros(100_000), torch.ones(3)
    work: Any = dist.irecv(received, (me - 1) % n)
    barrier: Any = dist.barrier(async_op=True)
    later: Any = dist.all_reduce(total, async_op=True)
    later.wait()
    barrier.wait()
    sent: Any = dist.isend(torch.full((100_000,), float(me)), (me + 1) % n)
    work.wait()
    sent.wait()
    check_equal(total, torch.full((3,), float(n)))
    check_equal(received, torch.full((100_000,), float((me - 1) % n)))


@CASES.case(ranks_min=2)
def barrier_that_waits_for_what_never_ends(world: World) -> None:
    """Its own timeout counts from the call, and its error says what it waits for."""
    group: Any = dist.new_group()
    dist.barrier(group)
    options = dist.BarrierOptions()
    options.timeout = timedelta(seconds=1)
    if world.rank == 0:
        unanswered = group.allreduce([torch.ones(3)])
        with pytest.raises(dist.DistBackendError, match=r"Timed out .*had begun before"):
            _backend(group).barrier(options).wait()
        with pytest.raises(dist.DistBackendError, match="had begun before"):
            unanswered.wait()
    world.store.set(f"never/{world.rank}", "")
    world.store.wait([f"never/{rank}" for rank in range(world.size)], timedelta(seconds=60))
    dist.destroy_process_group(group)


@CASES.case()
def groups_that_are_dropped(world: World) -> None:
    """Nobody waits for the works, nor shuts the group down: all the same, each of them ends."""
    results: list[Tensor] = []
    works: list[Any] = []
    for turn in range(10):
        backend = _staging_backend(world) if turn % 3 == 2 else _hand_made(world)
        results += [torch.full((70_001,), float(turn)), torch.full((3,), float(turn))]
        works += [backend.allreduce([tensor]) for tensor in results[-2:]]
        works.append(backend.barrier())
        del backend
    for work in works:
        work.wait()
    for index, tensor in enumerate(results):
        check_equal(tensor, torch.full(tensor.shape, float(index // 2 * world.size)), index)


def _hand_made(world: World) -> Any:
    from securefabric._backend import create_backend

    request: Any = SimpleNamespace(
        store=dist.PrefixStore(f"by hand/{world.salt()}", world.store),
        group_rank=world.rank,
        group_size=world.size,
        timeout=timedelta(seconds=50),
        group_id="by hand",
        global_ranks_in_group=list(range(world.size)),
    )
    return create_backend(request, None)
