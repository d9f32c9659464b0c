"""Stack cases: parameters and activations in pieces; meshes; checkpoints of both."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contract_world import World, check_equal
from stack_world import (
    CLASSES,
    STEPS,
    WIDTH,
    StackCases,
    Transformer,
    loss_of,
    make_model,
    mesh_of,
    parameters_of,
    tokens_of,
    whole,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

CASES = StackCases()


def _shard(model: Transformer, mesh: DeviceMesh, **options: Any) -> Transformer:
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: int, clips: bool = True
) -> list[float]:
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        tokens = tokens_of(rank, step)
        loss_of(model(tokens), tokens).backward()
        if clips:
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            norms.append(round(float(whole(norm)), 4))
        optimizer.step()
    return norms


@CASES.compared(over=("plain", "kept_whole", "bfloat16", "accumulating"))
def fsdp2(world: World, group: Any, variant: str) -> object:
    mesh = DeviceMesh.from_group(group, "cpu")
    options: dict[str, Any] = {"reshard_after_forward": variant != "kept_whole"}
    if variant == "bfloat16":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    model = _shard(make_model(), mesh, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if variant == "accumulating":
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        tokens = tokens_of(world.rank, 99)
        loss_of(model(tokens), tokens).backward()
        model.set_requires_gradient_sync(True)
    norms = _train(model, optimizer, world.rank, STEPS)
    return parameters_of(model), norms


@CASES.case(ranks_min=2)
def fsdp2_with_a_divisor(world: World) -> None:
    """set_gradient_divide_factor reduces with PREMUL_SUM, which Gloo has not: scaled by hand."""
    gradients = []
    for factor in (None, 2.0 * world.size):
        model = _shard(make_model(), DeviceMesh.from_group(dist.group.WORLD, "cpu"))
        if factor is not None:
            assert isinstance(model, FSDPModule)
            model.set_gradient_divide_factor(factor)
            for block in model.blocks:
                assert isinstance(block, FSDPModule)
                block.set_gradient_divide_factor(factor)
        tokens = tokens_of(world.rank, 0)
        loss_of(model(tokens), tokens).backward()
        gradients.append([whole(p.grad) for p in model.parameters() if p.grad is not None])
    for plain, halved in zip(*gradients, strict=True):
        torch.testing.assert_close(halved * 2, plain)


@CASES.compared(ranks_min=4)
def fsdp2_and_tensor_parallel(world: World, group: Any) -> object:
    """A mesh of two dimensions: shards over one, tensor parallel over the other."""
    if world.size % 2:
        return world.size
    mesh = mesh_of(group, (world.size // 2, 2), ("data", "tensor"))
    model = make_model()
    for block in model.blocks:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(block, mesh["tensor"], plan)
    _shard(model, mesh["data"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # torch cannot stack the norms of parameters on different meshes.
    _train(model, optimizer, mesh["data"].get_local_rank(), STEPS, clips=False)
    return parameters_of(model)


@CASES.compared(ranks_min=4)
def hybrid_sharding(world: World, group: Any) -> object:
    """Shards within a row of the mesh, replicas over its columns."""
    if world.size % 2:
        return world.size
    model = _shard(make_model(), mesh_of(group, (2, world.size // 2), ("replicate", "shard")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _train(model, optimizer, world.rank, STEPS)
    return parameters_of(model)


@CASES.compared(ranks_min=2)
def tensor_and_sequence_parallel(world: World, group: Any) -> object:
    mesh = DeviceMesh.from_group(group, "cpu")
    torch.manual_seed(7)
    model = nn.Sequential()
    model.add_module("norm", nn.LayerNorm(WIDTH))
    model.add_module("up", nn.Linear(WIDTH, 4 * world.size))
    model.add_module("down", nn.Linear(4 * world.size, WIDTH))
    model.add_module("head", nn.Linear(WIDTH, CLASSES * world.size))
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
        "head": ColwiseParallel(
            input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False
        ),
    }
    parallelize_module(model, mesh, plan)
    samples = torch.randn(2, 3 * world.size, WIDTH, generator=torch.Generator().manual_seed(8))
    local = samples.chunk(world.size, dim=1)[world.rank]
    targets = torch.arange(2 * 3 * world.size) % (CLASSES * world.size)
    with loss_parallel():
        logits = model(local)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        loss.backward()
    return whole(loss), [whole(p.grad) for p in model.parameters() if p.grad is not None]


@CASES.compared()
def dtensor_redistributions(world: World, group: Any) -> object:
    """Every way from one placement to another, of sizes that no rank count divides."""
    mesh = DeviceMesh.from_group(group, "cpu")
    samples = torch.randn(7, 5, generator=torch.Generator().manual_seed(9))
    placements = (Replicate(), Shard(0), Shard(1))
    results = []
    for source in placements:
        for target in placements:
            tensor = distribute_tensor(samples, mesh, [source]).redistribute(mesh, [target])
            check_equal(tensor.full_tensor(), samples, (source, target))
            results.append(tensor.to_local())
    for reduction in ("sum", "avg", "max", "min"):
        for target in placements:
            partial = DTensor.from_local(samples * (world.rank + 1), mesh, [Partial(reduction)])
            results.append(partial.redistribute(mesh, [target]).to_local())
    product = distribute_tensor(samples, mesh, [Shard(0)]).t() @ distribute_tensor(
        samples, mesh, [Shard(0)]
    )
    results.append(product.full_tensor())
    return results


@CASES.compared(ranks_min=4)
def mesh_with_subgroups(world: World, group: Any) -> object:
    """Slices and flattened slices of a mesh, each with groups of its own."""
    if world.size % 2:
        return world.size
    mesh = mesh_of(group, (world.size // 2, 2), ("row", "column"))
    flat = mesh._flatten("everyone")
    results = []
    for part in (mesh["row"], mesh["column"], flat):
        # A flattened mesh has a group of the default backend, whatever the mesh was made of.
        backend = dist.get_backend(dist.group.WORLD if part is flat else group)
        assert dist.get_backend(part.get_group()) == backend
        tensor = torch.tensor([float(world.rank)])
        dist.all_reduce(tensor, group=part.get_group())
        results.append(tensor)
        others = [torch.empty(1) for _ in range(part.size())]
        dist.all_gather(others, torch.tensor([float(world.rank)]), group=part.get_group())
        results.extend(others)
    return results


@CASES.compared(over=("saved", "saved_asynchronously"))
def checkpoint(world: World, group: Any, variant: str) -> object:
    """Train, save in pieces, load into another model, train on: as if nothing had happened."""
    folder = [tempfile.mkdtemp() if world.rank == 0 else ""]
    dist.broadcast_object_list(folder, src=0, group=group)
    mesh = DeviceMesh.from_group(group, "cpu")
    model = _shard(make_model(), mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _train(model, optimizer, world.rank, 2)
    saved, saved_optimizer = get_state_dict(model, optimizer)
    state = {"model": saved, "optimizer": saved_optimizer}
    if variant == "saved":
        dcp.save(state, checkpoint_id=folder[0], process_group=group)
    else:
        dcp.async_save(state, checkpoint_id=folder[0], process_group=group).result()

    other = _shard(make_model(seed=6), mesh)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    state = dict(zip(("model", "optimizer"), get_state_dict(other, other_optimizer), strict=True))
    dcp.load(state, checkpoint_id=folder[0], process_group=group)
    set_state_dict(
        other,
        other_optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    for one, another in zip(model.parameters(), other.parameters(), strict=True):
        check_equal(whole(another), whole(one))
    _train(other, other_optimizer, world.rank, 1)
    dist.barrier(group=group)
    if world.rank == 0:
        shutil.rmtree(folder[0])
    return parameters_of(other)


@CASES.compared()
def objects(world: World, group: Any) -> object:
    """Object collectives, of sizes that differ by rank."""
    mine = {"rank": world.rank, "text": "x" * (world.rank * 10_000), "list": [world.rank] * 3}
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, mine, group=group)
    at_root: list[Any] | None = [None] * world.size if world.rank == 0 else None
    dist.gather_object(mine, at_root, dst=0, group=group)
    spread = [mine, world.rank] if world.rank == world.size - 1 else [None, None]
    dist.broadcast_object_list(spread, src=world.size - 1, group=group)
    own: list[Any] = [None]
    dist.scatter_object_list(own, gathered if world.rank == 0 else None, src=0, group=group)
    if world.size > 1:
        received: list[Any] = [None]
        if world.rank == 0:
            dist.send_object_list([mine], dst=1, group=group)
        elif world.rank == 1:
            dist.recv_object_list(received, src=0, group=group)
            spread.append(received)
    return gathered, at_root, spread, own
