"""Contract cases: send and receive, objects, barriers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract_world import MOVED_TYPES, SIZES, Cases, World, check_equal, refused

CASES = Cases()
LARGE = 2 * 2**20 + 3  # elements of float32


@CASES.case(over=MOVED_TYPES, ranks_min=2)
def send_and_receive(world: World, dtype: torch.dtype) -> None:
    """Around the ring, every size; the even ranks send first."""
    following, preceding = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for elements in SIZES:
        salt = world.salt()
        mine = world.input(elements, dtype, salt)
        received = torch.empty_like(mine)
        if world.rank == 0:
            dist.send(mine, following)
            assert dist.recv(received, preceding) == preceding
        else:
            assert dist.recv(received, preceding) == preceding
            dist.send(mine, following)
        check_equal(received, world.input(elements, dtype, salt, preceding), f"{elements}")


@CASES.case(ranks_min=2)
def messages_of_a_pair_keep_their_order(world: World) -> None:
    count = 40
    sizes = [1 if i % 3 else 40_000 for i in range(count)]
    if world.rank == 0:
        works = [dist.isend(torch.full((size,), i), 1) for i, size in enumerate(sizes)]
        for work in works:
            work.wait()
    elif world.rank == 1:
        targets = [torch.empty(size, dtype=torch.int64) for size in sizes]
        works = [dist.irecv(target, 0) for target in targets]
        for i in reversed(range(count)):
            works[i].wait()
            check_equal(targets[i], torch.full((sizes[i],), i), f"message {i}")


@CASES.case(ranks_min=2)
def tags_are_told_apart(world: World) -> None:
    tags = (5, 0, 3, 2**31 - 1)
    if world.rank == 0:
        for tag in tags:
            dist.send(torch.tensor([tag]), 1, tag=tag)
    elif world.rank == 1:
        for tag in reversed(tags):
            target = torch.empty(1, dtype=torch.int64)
            dist.recv(target, 0, tag=tag)
            assert int(target) == tag


@CASES.case(ranks_min=2)
def receive_from_any_source(world: World) -> None:
    if world.rank != 0:
        dist.send(torch.tensor([10 * world.rank]), 0, tag=7)
        dist.send(torch.tensor([10 * world.rank + 1]), 0, tag=7)
        return
    seen: dict[int, list[int]] = {rank: [] for rank in world.others}
    for _ in range(2 * len(world.others)):
        target = torch.empty(1, dtype=torch.int64)
        source = dist.recv(target, tag=7)
        seen[source].append(int(target))
    assert seen == {rank: [10 * rank, 10 * rank + 1] for rank in world.others}


@CASES.case(ranks_min=3)
def any_source_leaves_named_sources_alone(world: World) -> None:
    """A receive that names its source is not served by another rank's message."""
    if world.rank in (1, 2):
        dist.send(torch.tensor([world.rank]), 0)
    elif world.rank == 0:
        from_two, from_any = (torch.empty(1, dtype=torch.int64) for _ in range(2))
        named = dist.irecv(from_two, 2)
        assert dist.recv(from_any) == 1
        named.wait()
        assert (int(from_two), int(from_any)) == (2, 1)


@CASES.case(ranks_min=2)
def message_that_nobody_waits_for_yet(world: World) -> None:
    """A small one is over for the sender at once; both arrive when they are asked for."""
    if world.rank == 0:
        dist.send(torch.arange(1000), 1)
        large = dist.isend(torch.arange(LARGE, dtype=torch.float32), 1, tag=1)
        dist.send(torch.arange(3), 1, tag=2)
        large.wait()
    elif world.rank == 1:
        last, small = torch.empty(3, dtype=torch.int64), torch.empty(1000, dtype=torch.int64)
        large_one = torch.empty(LARGE)
        dist.recv(last, 0, tag=2)
        dist.recv(large_one, 0, tag=1)
        dist.recv(small, 0)
        check_equal(large_one, torch.arange(LARGE, dtype=torch.float32))
        check_equal(small, torch.arange(1000))


@CASES.case(ranks_min=2)
def both_directions_at_once(world: World) -> None:
    peer = world.rank ^ 1
    if peer >= world.size:
        return
    target = torch.empty(LARGE)
    receive = dist.irecv(target, peer)
    send = dist.isend(torch.full((LARGE,), float(world.rank)), peer)
    send.wait()
    receive.wait()
    check_equal(target, torch.full((LARGE,), float(peer)))


@CASES.case(ranks_min=2)
def batch_of_sends_and_receives(world: World) -> None:
    """Everybody with everybody, receives before sends, as pipelines do it."""
    for elements in (0, 3, 50_000):
        salt = world.salt()
        mine = world.input(elements, torch.bfloat16, salt)
        targets = {peer: torch.empty_like(mine) for peer in world.others}
        batch = [dist.P2POp(dist.irecv, target, peer) for peer, target in targets.items()]
        batch += [dist.P2POp(dist.isend, mine, peer) for peer in world.others]
        for work in dist.batch_isend_irecv(batch):
            work.wait()
        for peer, target in targets.items():
            check_equal(target, world.input(elements, torch.bfloat16, salt, peer), f"from {peer}")


@CASES.case(ranks_min=2)
def strided_messages(world: World) -> None:
    if world.rank == 0:
        dist.send(torch.arange(20).view(4, 5).t(), 1)
    elif world.rank == 1:
        target = torch.zeros(5, 8, dtype=torch.int64)
        dist.recv(target[:, ::2], 0)
        check_equal(target[:, ::2], torch.arange(20).view(4, 5).t())
        assert not target[:, 1::2].any()


@CASES.case(ranks_min=2)
def messages_beside_collectives(world: World) -> None:
    """Neither waits for the other's turn."""
    following, preceding = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    target = torch.empty(100_000)
    receive = dist.irecv(target, preceding, tag=1)
    for _ in range(5):
        tensor = torch.ones(1000)
        dist.all_reduce(tensor)
        assert float(tensor[0]) == world.size
    send = dist.isend(torch.full((100_000,), float(world.rank)), following, tag=1)
    dist.barrier()
    send.wait()
    receive.wait()
    check_equal(target, torch.full((100_000,), float(preceding)))


@CASES.case()
def peers_that_are_no_rank_are_refused(world: World) -> None:
    group: Any = dist.group.WORLD
    for peer in (-1, -(2**31), world.size, 2**31 - 1, world.rank):
        for call in (group.send, group.recv):
            with pytest.raises(RuntimeError, match=r"invalid rank|cannot send to itself"):
                call([torch.ones(1)], peer, 0)


@CASES.case()
def messages_to_nobody_are_refused(world: World) -> None:
    with refused():
        dist.send(torch.ones(1), world.rank)
    with refused():
        dist.send(torch.ones(1), world.size)
    with refused("tag"):
        dist.send(torch.ones(1), (world.rank + 1) % world.size if world.size > 1 else 1, tag=-1)


@CASES.case()
def objects(world: World) -> None:
    n, me = world.size, world.rank
    mine = {"rank": me, "text": "x" * (10 ** (me + 1)), "tensor": torch.arange(me)}

    gathered: list[dict[str, object]] = [{}] * n
    dist.all_gather_object(gathered, mine)
    assert [len(str(other["text"])) for other in gathered] == [10 ** (r + 1) for r in range(n)]

    on_root: list[object] | None = [None] * n if me == n - 1 else None
    dist.gather_object(me * me, on_root, dst=n - 1)
    assert on_root is None or on_root == [rank * rank for rank in range(n)]

    items = ["a", {"b": 1}, None] if me == 0 else [None] * 3
    dist.broadcast_object_list(items, src=0)
    assert items == ["a", {"b": 1}, None]

    part: list[object] = [None]
    dist.scatter_object_list(part, [f"for {rank}" for rank in range(n)] if me == 0 else None, 0)
    assert part == [f"for {me}"]


@CASES.case(ranks_min=2)
def objects_between_two(world: World) -> None:
    if world.rank == 0:
        dist.send_object_list(["one", {"two": 2}], 1)
    elif world.rank == 1:
        items: list[object] = [None, None]
        dist.recv_object_list(items, 0)
        assert items == ["one", {"two": 2}]


@CASES.case()
def nobody_leaves_a_barrier_before_all_have_entered(world: World) -> None:
    for turn in range(10):
        key = f"barrier/{turn}/"
        # add() waits for the store's answer; set() does not, and could be overtaken by a check.
        world.store.add(f"{key}{world.rank}", 1)
        if turn % 2:
            work = dist.barrier(async_op=True)
            assert work is not None
            work.wait()
        else:
            dist.barrier()
        assert world.store.check([f"{key}{rank}" for rank in range(world.size)])


@CASES.case()
def monitored_waits_and_futures(world: World) -> None:
    """A work answers its questions, before and after."""
    inputs = world.inputs(1000, torch.float32, world.salt())
    tensor = inputs[world.rank].clone()
    called: list[list[torch.Tensor]] = []
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    done = work.get_future().then(lambda future: called.append(future.value()))
    assert work.wait()
    done.wait()
    assert work.is_completed()
    assert work.is_success()
    assert [list(value) for value in called[0]] == [tensor.tolist()]
    world.check_reduced(tensor, inputs, "SUM")
    late = work.get_future()
    assert late.done()
    assert late.value()[0].data_ptr() == tensor.data_ptr()


@CASES.case()
def callback_may_start_another_collective(world: World) -> None:
    tensor = torch.ones(10)
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    again = work.get_future().then(lambda future: dist.all_reduce(future.value()[0], async_op=True))
    again.wait().wait()
    check_equal(tensor, torch.full((10,), float(world.size**2)))
