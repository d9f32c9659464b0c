"""Contract cases: what torch's interface to a backend has beside the collectives themselves."""

from __future__ import annotations

import functools
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract_world import FLOATS, Cases, World, check_equal, refused
from torch import Tensor
from torch._C._distributed_c10d import ErrorType
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import profile

CASES = Cases()
CPU = torch.device("cpu")


def _backend(group: Any) -> Any:
    return group._get_backend(CPU)


# --- Arguments -----------------------------------------------------------------------------------


def _message(call: Callable[[Any], object], group: Any) -> str:
    """Return what the group's error says after the name of backend and operation.

    Without indices: of a list whose first tensor sets the measure, Gloo counts from the second. A
    full stop at the end is newer than torch 2.12.
    """
    try:
        call(_backend(group))
    except RuntimeError as error:
        text = str(error).splitlines()[0].split(": ", 1)[1].rstrip(".")
        return re.sub(r"index \d+", "index", text)
    raise AssertionError("no error")


@CASES.case()
def argument_errors_in_the_words_of_gloo(world: World) -> None:
    """Nothing is sent by either; users and PyTorch's tests match these texts."""
    n = world.size
    one, two = torch.ones(1), torch.ones(2)
    double = torch.ones(1, dtype=torch.float64)
    root = dist.BroadcastOptions()
    bad_root, bad_tensor = dist.BroadcastOptions(), dist.BroadcastOptions()
    bad_root.rootRank, bad_tensor.rootTensor = n, 1
    bad_reduce, bad_gather, bad_scatter = (
        dist.ReduceOptions(),
        dist.GatherOptions(),
        dist.ScatterOptions(),
    )
    bad_reduce.rootRank = bad_gather.rootRank = bad_scatter.rootRank = -1
    own_gather, own_scatter = dist.GatherOptions(), dist.ScatterOptions()
    own_gather.rootRank = own_scatter.rootRank = world.rank
    calls: dict[str, Callable[[Any], object]] = {
        "broadcast root": lambda b: b.broadcast([one], bad_root),
        "broadcast root tensor": lambda b: b.broadcast([one], bad_tensor),
        "broadcast types": lambda b: b.broadcast([one, double], root),
        "broadcast sizes": lambda b: b.broadcast([one, two], root),
        "all_reduce nothing": lambda b: b.allreduce([]),
        "all_reduce types": lambda b: b.allreduce([one, double]),
        "all_reduce sizes": lambda b: b.allreduce([one, two]),
        "all_reduce layouts": lambda b: b.allreduce([one, torch.eye(2).to_sparse()]),
        "reduce root": lambda b: b.reduce([one], bad_reduce),
        "reduce several": lambda b: b.reduce([one, one]),
        "all_gather nothing": lambda b: b.allgather([], []),
        "all_gather lists": lambda b: b.allgather([[one] * n, [one] * n], [one]),
        "all_gather list": lambda b: b.allgather([[one] * (n + 1)], [one]),
        "all_gather types": lambda b: b.allgather([[double] * n], [one]),
        "gather root": lambda b: b.gather([[one] * n], [one], bad_gather),
        "gather inputs": lambda b: b.gather([[one] * n], [one, one], own_gather),
        "gather lists": lambda b: b.gather([], [one], own_gather),
        "gather list": lambda b: b.gather([[one] * (n + 1)], [one], own_gather),
        "gather sizes": lambda b: b.gather([[two] * n], [one], own_gather),
        "scatter root": lambda b: b.scatter([one], [[one] * n], bad_scatter),
        "scatter outputs": lambda b: b.scatter([one, one], [[one] * n], own_scatter),
        "scatter lists": lambda b: b.scatter([one], [], own_scatter),
        "scatter list": lambda b: b.scatter([one], [[one] * (n + 1)], own_scatter),
        "scatter types": lambda b: b.scatter([one], [[double] * n], own_scatter),
    }
    for what, call in calls.items():
        ours, oracle = _message(call, dist.group.WORLD), _message(call, world.gloo)
        assert ours == oracle, f"{what}: ours says {ours!r}, gloo {oracle!r}"


@CASES.case()
def tensors_of_two_devices(world: World) -> None:
    """The other device is one that torch only pretends to have."""
    backend = _backend(dist.group.WORLD)
    with FakeTensorMode():
        elsewhere = torch.empty(4, device="cuda")
    here = torch.empty(4 * world.size)
    with refused("device=cuda:0", "device=cpu"):
        backend._allgather_base(here, elsewhere)
    with refused("device=cuda:0", "device=cpu"):
        backend.allgather([list(here.split(4))], [elsewhere])


@CASES.case()
def several_tensors_of_one_rank(world: World) -> None:
    """A call may bring several tensors, as it did when one process drove several devices."""
    ours, oracle = _backend(dist.group.WORLD), _backend(world.gloo)
    inputs = [world.input(300, torch.int64, world.salt()) for _ in range(3)]

    for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        options = dist.AllreduceOptions()
        options.reduceOp = op
        results = [[tensor.clone() for tensor in inputs] for _ in range(2)]
        for backend, tensors in zip((ours, oracle), results, strict=True):
            backend.allreduce(tensors, options).wait()
        for actual, expected in zip(*results, strict=True):
            check_equal(actual, expected, "all_reduce of several")
        world.record(results[0][0])
    options.reduceOp = dist.ReduceOp.AVG
    with refused("AVG takes one tensor"):
        ours.allreduce([torch.ones(1), torch.ones(1)], options)

    broadcast = dist.BroadcastOptions()
    broadcast.rootRank, broadcast.rootTensor = world.size - 1, 1
    results = [[tensor.clone() for tensor in inputs] for _ in range(2)]
    for backend, tensors in zip((ours, oracle), results, strict=True):
        backend.broadcast(tensors, broadcast).wait()
    for actual, expected in zip(*results, strict=True):
        check_equal(actual, expected, "broadcast of several")

    gathered = [
        [[torch.empty_like(inputs[0]) for _ in range(3 * world.size)] for _ in inputs]
        for _ in range(2)
    ]
    for backend, outputs in zip((ours, oracle), gathered, strict=True):
        backend.allgather(outputs, inputs).wait()
    for list_of_ours, list_of_gloo in zip(*gathered, strict=True):
        for actual, expected in zip(list_of_ours, list_of_gloo, strict=True):
            check_equal(actual, expected, "all_gather of several")


# --- Sparse --------------------------------------------------------------------------------------


def _sparse(world: World, dtype: torch.dtype, salt: int, rank: int) -> Tensor:
    """Return a sparse matrix of rows, with an index that comes twice; nothing on the last rank."""
    count = 0 if rank == world.size - 1 and world.size > 1 else 20
    generator = torch.Generator().manual_seed(salt * 31 + rank)
    indices = torch.randint(0, 9, (2, count), generator=generator)
    if count:
        indices[:, 1] = indices[:, 0]
    values = world.input(count * 3, dtype, salt, rank).view(count, 3)
    return torch.sparse_coo_tensor(indices, values, (9, 9, 3), check_invariants=True)


@CASES.case(over=(*FLOATS, torch.int64))
def sparse_all_reduce(world: World, dtype: torch.dtype) -> None:
    for turn in range(3):
        salt = world.salt()
        tensor = _sparse(world, dtype, salt, world.rank)
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        if turn == 1:
            assert work.get_future().wait()[0].is_sparse
        work.wait()
        parts = [_sparse(world, dtype, salt, rank).to_dense() for rank in range(world.size)]
        dense = tensor.to_dense()
        flat = [part.flatten() for part in parts]
        # Elements that come twice are added before anything is sent, in their own type.
        slack = 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 0
        if dtype == torch.int64:  # wraps around
            check_equal(dense.flatten(), torch.stack(flat).sum(dim=0))
        else:
            total = torch.stack([part.double() for part in flat]).sum(dim=0)
            torch.testing.assert_close(dense.flatten().double(), total, rtol=slack, atol=8 * slack)
        world.record(dense.contiguous())
        if dtype in (torch.float32, torch.float64):
            oracle = _sparse(world, dtype, salt, world.rank)
            dist.all_reduce(oracle, group=world.gloo)
            torch.testing.assert_close(tensor.to_dense(), oracle.to_dense())


@CASES.case()
def many_sparse_calls_between_others(world: World) -> None:
    """Their second stages meet each other's, whatever else is under way."""
    calls = []
    for turn in range(30):
        sparse = (torch.eye(turn + 1) * (world.rank + 1)).to_sparse()
        dense = torch.ones(5000)
        calls.append((dist.all_reduce(sparse, async_op=True), sparse, turn))
        calls.append((dist.all_reduce(dense, async_op=True), dense, -1))
    total = sum(range(1, world.size + 1))
    for work, tensor, turn in reversed(calls):
        assert work is not None
        work.wait()
        if turn < 0:
            assert float(tensor[0]) == world.size
        else:
            check_equal(tensor.to_dense(), torch.eye(turn + 1) * total, f"sparse call {turn}")


@CASES.case(ranks_min=2)
def sparse_tensors_that_differ(world: World) -> None:
    """All ranks learn it, and the group works on."""
    with refused("OperationMismatch", "differ in sizes"):
        dist.all_reduce(torch.eye(3 + world.rank % 2).to_sparse())
    with refused("unsupported reduction operation"):
        dist.all_reduce(torch.eye(3).to_sparse(), op=dist.ReduceOp.MAX)
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    assert float(tensor) == world.size


# --- Groups --------------------------------------------------------------------------------------


@CASES.case()
def two_hundred_groups(world: World) -> None:
    """One fabric serves them: a group costs no thread and no socket."""
    everyone = list(range(world.size))
    dist.barrier()
    files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    groups = [dist.new_group(everyone) for _ in range(200)]
    tensors = [torch.full((10,), float(i)) for i in range(len(groups))]
    works = [
        dist.all_reduce(tensor, group=group, async_op=True)
        for tensor, group in zip(tensors, groups, strict=True)
    ]
    for i, work in enumerate(works):
        assert work is not None
        work.wait()
        assert float(tensors[i][0]) == i * world.size
    assert len(os.listdir("/proc/self/fd")) == files
    # While callbacks are slow, more threads announce ends; at most two of an engine stay.
    until = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) - threads > 6:
        assert time.monotonic() < until
        time.sleep(0.01)
    for group in groups:
        dist.destroy_process_group(group)


@CASES.case()
def group_that_is_split(world: World) -> None:
    """Also the same ranks again; and a split of a split. Nothing needs the store."""
    parent: Any = dist.group.WORLD
    everyone = list(range(world.size))
    halves = [everyone[::2], everyone[1::2] or [0]]
    for turn in range(3):
        for ranks in halves:
            group = parent.split_group(ranks, timeout=timedelta(seconds=30))
            if world.rank not in ranks:
                assert group is None
                continue
            tensor = torch.tensor([float(world.rank)])
            group.allreduce([tensor]).wait()
            assert float(tensor) == sum(ranks)
            assert _backend(group).options._timeout == timedelta(seconds=30)
            again = group.split_group(list(range(len(ranks))))
            tensor = torch.tensor([turn])
            again.allreduce([tensor]).wait()
            assert int(tensor) == turn * len(ranks)
    assert _backend(parent).options._timeout == timedelta(seconds=60)


@CASES.case(ranks_min=2)
def groups_that_are_merged(world: World) -> None:
    """Ranks of two groups without a common one, in another order than the world's."""
    mine = [rank for rank in range(world.size) if rank % 2 == world.rank % 2]
    groups = [dist.new_group([r for r in range(world.size) if r % 2 == odd]) for odd in (0, 1)]
    group: Any = groups[world.rank % 2]
    for turn in range(2):
        store = dist.PrefixStore(f"merged/{world.salt()}", world.store)
        merged = group.merge_remote_group(
            store, world.size, timedelta(seconds=30), group_name=f"merged{turn}"
        )
        tensor = torch.tensor([world.rank + 1])
        merged.allreduce([tensor]).wait()
        assert int(tensor) == world.size * (world.size + 1) // 2
    assert len(mine) == group.size()
    dist.destroy_process_group(group)


@CASES.case()
def name_of_another_backend(world: World) -> None:
    """A group that stands in for Gloo says so, also in the profiler."""
    from securefabric._backend import create_backend

    request: Any = SimpleNamespace(
        store=dist.PrefixStore(f"presented/{world.salt()}", world.store),
        group_rank=world.rank,
        group_size=world.size,
        timeout=timedelta(seconds=20),
        group_id="presented",
        global_ranks_in_group=list(range(world.size)),
    )
    backend: Any = create_backend(request, None, presented_name="gloo")
    assert backend.name() == "gloo"
    assert backend.options.backend == "gloo"
    with profile() as profiled:
        backend.allreduce([torch.ones(3)]).wait()
    assert [event.name for event in profiled.function_events if "all_reduce" in event.name] == [
        "gloo:all_reduce"
    ]
    backend.shutdown()


# --- Staging -------------------------------------------------------------------------------------


def _staging_backend(world: World) -> Any:
    """Return a backend that treats host tensors as those of a device: staged, queued, in pieces."""
    from securefabric._C import Backend, Options
    from securefabric._fabric import current_fabric

    fabric = current_fabric()
    assert fabric is not None
    everyone = list(range(world.size))
    options = Options(timedelta(seconds=50))
    options.test_stages_host_tensors = True
    joined = fabric.join_group(
        dist.PrefixStore(f"staged/{world.salt()}", world.store),
        group_name="staged",
        group_rank=world.rank,
        global_ranks=everyone,
    )
    return Backend(
        fabric=fabric.native,
        group_rank=world.rank,
        group_size=world.size,
        group_name="staged",
        identity=joined.identity,
        global_ranks=everyone,
        options=options,
        board=joined.board,
        keeper=joined.keeper,
    )


@CASES.case()
def staged_tensors(world: World) -> None:
    """The path of a device's tensors, with all calls in flight at once."""
    n, me = world.size, world.rank
    backend = _staging_backend(world)
    large, small = 3 * 2**20 + 5, 1000
    inputs = world.long_inputs(large, torch.int32, world.salt())
    total = functools.reduce(torch.add, inputs)
    small_inputs = world.inputs(small * n, torch.float64, world.salt())

    reduced = inputs[me].clone()
    strided = torch.zeros(large, 2, dtype=torch.int32)
    strided[:, 1] = inputs[me]
    sent = inputs[0].clone() if me == 0 else torch.zeros(large, dtype=torch.int32)
    on_root = inputs[me].clone()
    gathered = [torch.empty(small, dtype=torch.float64) for _ in range(n)]
    scattered = torch.empty(small, dtype=torch.float64)
    exchanged = torch.empty(small * n, dtype=torch.float64)
    to_root = dist.ReduceOptions()
    to_root.rootRank = n - 1
    works = [
        backend.allreduce([reduced]),
        backend.allreduce([strided[:, 1]]),
        backend.broadcast([sent], dist.BroadcastOptions()),
        backend.reduce([on_root], to_root),
        backend.allgather([gathered], [small_inputs[me][:small]]),
        backend._reduce_scatter_base(scattered, small_inputs[me], dist.ReduceScatterOptions()),
        backend.alltoall_base(exchanged, small_inputs[me], [], [], dist.AllToAllOptions()),
    ]
    if n > 1:
        received = torch.empty(small, dtype=torch.float64)
        works.append(backend.send([small_inputs[me][:small]], (me + 1) % n, 3))
        works.append(backend.recv([received], (me - 1) % n, 3))
    future = works[0].get_future()
    for work in reversed(works):
        work.wait()
    check_equal(reduced, total, "all_reduce")
    check_equal(future.wait()[0], total, "its future")
    check_equal(strided[:, 1].contiguous(), total, "all_reduce of a column")
    assert not strided[:, 0].any()
    check_equal(sent, inputs[0], "broadcast")
    check_equal(on_root, total if me == n - 1 else inputs[me], "reduce")
    parts = [tensor.split(small) for tensor in small_inputs]
    for rank in range(n):
        check_equal(gathered[rank], parts[rank][0], "all_gather")
    world.check_reduced(scattered, [part[me] for part in parts], "SUM")
    check_equal(exchanged, torch.cat([part[me] for part in parts]), "all_to_all")
    if n > 1:
        check_equal(received, parts[(me - 1) % n][0], "message")
    backend.shutdown()


@CASES.case()
def all_to_all_with_own_parts_that_differ(world: World) -> None:
    """An error of the rank that made it, before anything is sent."""
    n, me = world.size, world.rank
    sent = [1 + (rank == me) for rank in range(n)]
    words = ("all_to_all", f"rank {me} sends itself 8 bytes and expects 4")
    with refused(*words):
        dist.all_to_all_single(torch.ones(n), torch.ones(n + 1), [1] * n, sent)
    with refused(*words):
        dist.all_to_all([torch.ones(1) for _ in sent], [torch.ones(size) for size in sent])


@CASES.case()
def outputs_that_overlap_themselves(world: World) -> None:
    """Refused before anything is sent, so the group goes on."""
    shared = torch.ones(1).expand(4)
    for call in (
        lambda: dist.all_reduce(shared),
        lambda: dist.all_gather([shared] * world.size, torch.ones(4)),
    ):
        with refused("more than one element of the written-to tensor"):
            call()
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    check_equal(tensor, torch.full((2,), float(world.size)), "afterwards")


@CASES.case()
def error_state_of_a_group(world: World) -> None:
    group: Any = dist.new_group()
    backend = group._get_backend(CPU)
    dist.all_reduce(torch.ones(1), group=group)
    assert backend.get_error() == ErrorType.SUCCESS
    dist.barrier()
    backend.abort()
    assert backend.get_error() == ErrorType.REMOTE_ERROR
    with pytest.raises(dist.DistBackendError):
        dist.all_reduce(torch.ones(1), group=group)
    dist.barrier()  # other groups go on


# --- Works ---------------------------------------------------------------------------------------


@CASES.case()
def tensors_of_inference_mode(world: World) -> None:
    """Whichever thread ends the work writes their results, also into copies of strided ones."""
    n = world.size
    with torch.inference_mode():
        strided = [torch.arange(6.0).view(2, 3).t() for _ in range(3)]
        polled: Any = dist.all_reduce(strided[0], async_op=True)
        while not polled.is_completed():
            time.sleep(0.001)
        polled.wait()
        future: Any = dist.all_reduce(strided[1], async_op=True)
        future.get_future().wait()
        sparse = torch.eye(3).to_sparse()
        dist.all_reduce(sparse)
        check_equal(sparse.to_dense(), torch.eye(3) * n, "sparse")
    dist.all_reduce(strided[2])  # made inside, reduced outside
    for tensor in strided:
        check_equal(tensor, torch.arange(6.0).view(2, 3).t() * n, "strided")


@CASES.case()
def stream_that_is_blocked_until_a_work_ends(world: World) -> None:
    """Without a device there is no stream to block, and the work is as good as before."""
    for group in (dist.group.WORLD, world.gloo):
        tensor = torch.ones(2)
        work: Any = dist.all_reduce(tensor, group=group, async_op=True)
        if torch.cuda.is_available():
            work.block_current_stream()
        else:
            with refused():  # in other words where torch is built for CUDA
                work.block_current_stream()
        work.wait()
        check_equal(tensor, torch.full((2,), float(world.size)))


@CASES.case()
def futures_waited_for_in_callbacks(world: World) -> None:
    """PowerSGD's hook does it: the thread of one callback is not the only one there is."""
    numbers = [torch.full((3,), float(world.rank + i)) for i in range(4)]
    squares = [torch.ones(2) for _ in numbers]
    sums = []
    for number, square in zip(numbers, squares, strict=True):
        # Issued here: ranks that issue from their callbacks may differ in the order.
        first: Any = dist.all_reduce(number, async_op=True)
        second: Any = dist.all_reduce(square, async_op=True)

        def add(future: Any, second: Any = second) -> Any:
            return future.value()[0] + second.get_future().wait()[0][0]

        sums.append(first.get_future().then(add))

    def nested(future: Any) -> Any:
        work: Any = dist.all_reduce(torch.ones(1), async_op=True)
        return future.value() + work.get_future().wait()[0]

    sums[-1] = sums[-1].then(nested)
    n = world.size
    expected = [torch.full((3,), float(n * (n - 1) // 2 + n * i + n)) for i in range(4)]
    expected[-1] += n
    for result, total in zip(sums, expected, strict=True):
        check_equal(result.wait(), total, "the sum of two")


@CASES.case(ranks_min=2)
def profiler_events(world: World) -> None:
    """One event per call, asynchronous, with the shapes of what it was given."""
    n, me = world.size, world.rank
    mine = torch.ones(4, 2)
    lists = [torch.empty(4, 2) for _ in range(n)]
    wide = torch.ones(n, 2)
    peer = me ^ 1
    calls: dict[str, tuple[Callable[[], object], list[list[int]]]] = {
        "all_reduce": (lambda: dist.all_reduce(mine), [[4, 2]]),
        "broadcast": (lambda: dist.broadcast(mine, 0), [[4, 2]]),
        "reduce": (lambda: dist.reduce(mine, 0), [[4, 2]]),
        "all_gather": (lambda: dist.all_gather(lists, mine), [[4, 2]]),
        "gather": (lambda: dist.gather(mine, lists if me == 0 else None), [[4, 2]]),
        "all_to_all": (lambda: dist.all_to_all_single(torch.empty(n, 2), wide), [[n, 2]]),
        "all_gather_into_tensor": (
            lambda: dist.all_gather_into_tensor(torch.empty(4 * n, 2), mine),
            [[4, 2]],
        ),
        "reduce_scatter_tensor": (
            lambda: dist.reduce_scatter_tensor(torch.empty(1, 2), wide),
            [[n, 2]],
        ),
        "sparse_all_reduce": (lambda: dist.all_reduce(torch.eye(3).to_sparse()), [[3, 3]]),
        "barrier": (dist.barrier, []),
    }
    if me < 2:
        calls["send" if me == 0 else "recv"] = (
            lambda: dist.send(mine, peer) if me == 0 else dist.recv(mine, peer),
            [[4, 2]],
        )
    for name, (call, shapes) in calls.items():
        with profile(record_shapes=True) as profiled:
            call()
        title = f"securefabric:{name}"
        events = [event for event in profiled.function_events if event.name == title]
        assert len(events) == 1, (name, [event.name for event in profiled.function_events])
        assert events[0].is_async
        if shapes and name not in ("gather", "sparse_all_reduce"):
            assert events[0].input_shapes == shapes, (name, events[0].input_shapes)


@CASES.case()
def completion_hook_and_durations(world: World) -> None:
    group: Any = dist.new_group(list(range(world.size)))
    infos: list[Any] = []
    lock = threading.Lock()

    def hook(info: Any) -> None:
        with lock:
            infos.append(info)

    group._register_on_completion_hook(hook)
    works = [group.allreduce([torch.ones(1000)]) for _ in range(5)]
    group._wait_for_pending_works()
    assert all(work.is_completed() for work in works)
    assert sorted(info.seq for info in infos) == [1, 2, 3, 4, 5]
    assert all(info.time_finished >= info.time_started for info in infos)
    assert all(work._get_duration() >= 0 for work in works)
    with refused("registered already"):
        group._register_on_completion_hook(hook)
    dist.destroy_process_group(group)


@CASES.case()
def sequence_numbers_and_state(world: World) -> None:
    group: Any = dist.new_group(list(range(world.size)), timeout=timedelta(seconds=40))
    backend = _backend(group)
    backend._set_sequence_number_for_group()
    for turn in range(3):
        work = group.allreduce([torch.ones(1)])
        work.wait()
        assert backend._get_sequence_number_for_group() == turn + 1
    backend.set_timeout(timedelta(seconds=33))
    assert backend.options._timeout == timedelta(seconds=33)
    assert not backend.supports_coalescing
    assert backend.supports_splitting
    backend.eager_connect_single_device(CPU)
    dist.destroy_process_group(group)


@CASES.case()
def monitored_barrier_that_all_pass(world: World) -> None:
    group: Any = dist.group.WORLD
    for turn in range(4):
        tensor = torch.ones(100)
        work = dist.all_reduce(tensor, async_op=True)
        world.store.add(f"monitored/{turn}/{world.rank}", 1)
        group.monitored_barrier(timedelta(seconds=40), wait_all_ranks=turn % 2 == 1)
        assert world.store.check([f"monitored/{turn}/{rank}" for rank in range(world.size)])
        assert work is not None
        work.wait()
