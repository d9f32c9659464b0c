"""Contract cases: subgroups, many groups, many operations in flight, several threads."""

from __future__ import annotations

import copy
import itertools
import threading
from datetime import timedelta

import torch
import torch.distributed as dist
from contract_world import Cases, World, check_equal, refused
from torch.distributed.device_mesh import init_device_mesh

CASES = Cases()


def _sum_of(ranks: list[int] | range) -> float:
    return float(sum(rank + 1 for rank in ranks))


def _check_group(world: World, group: dist.ProcessGroup, ranks: list[int]) -> None:
    tensor = torch.full((100,), float(world.rank + 1))
    dist.all_reduce(tensor, group=group)
    check_equal(tensor, torch.full((100,), _sum_of(ranks)), f"group {ranks}")


@CASES.case()
def every_subgroup(world: World) -> None:
    for size in range(1, world.size + 1):
        for ranks in map(list, itertools.combinations(range(world.size), size)):
            group = dist.new_group(ranks)
            if world.rank in ranks:
                _check_group(world, group, ranks)
                assert dist.get_group_rank(group, world.rank) == ranks.index(world.rank)
                dist.destroy_process_group(group)
            else:
                with refused():
                    dist.get_group_rank(group, world.rank)


@CASES.case(ranks_min=2)
def unsorted_ranks(world: World) -> None:
    """new_group sorts; a group of a mesh, or local synchronisation, need not have WORLD's order."""
    backwards = list(reversed(range(world.size)))
    group = dist.new_group(backwards, backend="securefabric", group_desc="backwards")
    outputs = [torch.empty(1) for _ in range(world.size)]
    dist.all_gather(outputs, torch.tensor([float(world.rank)]), group=group)
    order = dist.get_process_group_ranks(group)
    assert [int(output) for output in outputs] == order
    tensor = torch.tensor([float(world.rank)])
    dist.broadcast(tensor, src=order[-1], group=group)
    assert int(tensor) == order[-1]
    dist.destroy_process_group(group)


@CASES.case(ranks_min=2)
def roots_and_peers_are_global_ranks(world: World) -> None:
    """A group without rank 0: torch translates, and so must what we are told."""
    ranks = list(range(1, world.size))
    group = dist.new_group(ranks)
    if world.rank == 0:
        return
    for root in ranks:
        tensor = torch.tensor([float(world.rank)])
        dist.broadcast(tensor, src=root, group=group)
        assert int(tensor) == root
    if len(ranks) > 1 and world.rank in ranks[:2]:
        peer = ranks[1] if world.rank == ranks[0] else ranks[0]
        target = torch.empty(1)
        works = [
            dist.irecv(target, peer, group=group),
            dist.isend(torch.tensor([float(world.rank)]), peer, group=group),
        ]
        for work in works:
            assert work is not None
            work.wait()
        assert int(target) == peer
    dist.destroy_process_group(group)


@CASES.case(ranks_min=3)
def only_members_make_the_group(world: World) -> None:
    """use_local_synchronization: the other ranks do not call new_group at all."""
    ranks = [0, world.size - 1]
    torch_world = dist.distributed_c10d._world
    count = torch_world.group_count
    if world.rank in ranks:
        group = dist.new_group(ranks, use_local_synchronization=True)
        _check_group(world, group, ranks)
        dist.destroy_process_group(group)
    # From 2.14 on torch counts such a group, on its members; it names later groups by that number.
    torch_world.group_count = count


@CASES.case()
def fifty_groups(world: World) -> None:
    """All in use at once, in another order on every rank."""
    everyone = list(range(world.size))
    groups = [dist.new_group(everyone) for _ in range(50)]
    tensors = [torch.full((1000 + i,), float(world.rank + i)) for i in range(len(groups))]
    order = [(i * 7 + world.rank * 13) % len(groups) for i in range(len(groups))]
    works = {i: dist.all_reduce(tensors[i], group=groups[i], async_op=True) for i in order}
    for i in reversed(order):
        work = works[i]
        assert work is not None
        work.wait()
        total = float(sum(rank + i for rank in everyone))
        check_equal(tensors[i], torch.full((1000 + i,), total), f"group {i}")
    for group in groups:
        dist.destroy_process_group(group)


@CASES.case()
def group_that_is_made_again(world: World) -> None:
    """The same members, and after destruction the same name: nothing of the old one is heard."""
    for turn in range(5):
        group = dist.new_group(list(range(world.size)), timeout=timedelta(seconds=30))
        tensor = torch.full((3,), float(turn))
        dist.all_reduce(tensor, group=group)
        check_equal(tensor, torch.full((3,), float(turn * world.size)))
        dist.destroy_process_group(group)


@CASES.case()
def many_operations_in_flight(world: World) -> None:
    """A hundred at once, of mixed kinds and sizes, waited for in the reverse order."""
    calls = []
    for i in range(100):
        elements = (1, 300, 5_000, 40_000)[i % 4]
        inputs = world.inputs(elements, torch.int64, world.salt())
        if i % 3 == 0:
            tensor = inputs[world.rank].clone()
            work = dist.broadcast(tensor, src=i % world.size, async_op=True)
            calls.append((work, tensor, inputs[i % world.size]))
        elif i % 3 == 1:
            tensor = inputs[world.rank].clone()
            work = dist.all_reduce(tensor, async_op=True)
            calls.append((work, tensor, torch.stack(inputs).sum(dim=0)))
        else:
            tensor = torch.empty(elements * world.size, dtype=torch.int64)
            work = dist.all_gather_into_tensor(tensor, inputs[world.rank], async_op=True)
            calls.append((work, tensor, torch.cat(inputs)))
    for i, (work, tensor, expected) in reversed(list(enumerate(calls))):
        assert work is not None
        work.wait()
        check_equal(tensor, expected, f"operation {i}")


@CASES.case()
def threads_with_groups_of_their_own(world: World) -> None:
    groups = [dist.new_group(list(range(world.size))) for _ in range(4)]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for turn in range(25):
                tensor = torch.full((2000,), float(world.rank + index + turn))
                dist.all_reduce(tensor, group=groups[index])
                total = float(sum(rank + index + turn for rank in range(world.size)))
                check_equal(tensor, torch.full((2000,), total), f"thread {index}, turn {turn}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for group in groups:
        dist.destroy_process_group(group)
    if failures:
        raise failures[0]


@CASES.case(ranks_min=4)
def device_mesh(world: World) -> None:
    if world.size % 2:
        return
    mesh = init_device_mesh("cpu", (2, world.size // 2), mesh_dim_names=("rows", "columns"))
    row, column = divmod(world.rank, world.size // 2)
    columns = world.size // 2
    of_row = [row * columns + other for other in range(columns)]
    of_column = [other * columns + column for other in range(2)]
    _check_group(world, mesh.get_group("columns"), of_row)
    _check_group(world, mesh.get_group("rows"), of_column)


@CASES.case()
def names_and_options(world: World) -> None:
    assert dist.get_backend() == "securefabric"
    assert dist.is_backend_available("securefabric")
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.name() == "securefabric"
    assert backend.options._timeout == timedelta(seconds=60)
    copied = copy.deepcopy(backend.options)  # as split_group does
    assert type(copied) is type(backend.options)
    assert copied._timeout == timedelta(seconds=60)


@CASES.case()
def gloo_works_beside_us(world: World) -> None:
    """Two backends in one process do not disturb each other."""
    for _ in range(10):
        ours, theirs = torch.ones(1000), torch.ones(1000)
        works = [
            dist.all_reduce(ours, async_op=True),
            dist.all_reduce(theirs, group=world.gloo, async_op=True),
        ]
        for work in works:
            assert work is not None
            work.wait()
        check_equal(ours, theirs)
