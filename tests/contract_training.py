"""Contract cases: the layers of torch that train on top of a backend, one step of each."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
from contract_world import Cases, World, check_equal
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

CASES = Cases()
SAMPLES = 60  # divides by every world size


def _network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 7))


def _samples() -> Tensor:
    return torch.randn(SAMPLES, 12, generator=torch.Generator().manual_seed(6))


def _own_share(world: World) -> Tensor:
    return _samples().chunk(world.size)[world.rank]


def _loss(network: nn.Module, samples: Tensor) -> Tensor:
    return network(samples).square().mean()


def _expected_gradients() -> list[Tensor]:
    """What one process with all samples computes."""
    network = _network()
    _loss(network, _samples()).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@CASES.case(over=("plain", "small_buckets", "static_graph", "unused", "accumulating"))
def ddp(world: World, variant: str) -> None:
    model = DistributedDataParallel(
        _network(),
        bucket_cap_mb=0.001 if variant == "small_buckets" else 25,
        static_graph=variant == "static_graph",
        find_unused_parameters=variant == "unused",
    )
    micro_batches = _own_share(world).chunk(2 if variant == "accumulating" else 1)
    for _ in range(2):
        model.zero_grad()
        for index, samples in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with nullcontext() if is_last else model.no_sync():
                share = len(samples) * world.size / SAMPLES
                (_loss(model, samples) * share).backward()
    for parameter, expected in zip(model.parameters(), _expected_gradients(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected)
        world.record(parameter.grad)


@CASES.case(ranks_min=2)
def ddp_with_uneven_inputs(world: World) -> None:
    """join: ranks that have no more samples shadow the others' collectives."""
    model = DistributedDataParallel(_network())
    with model.join():
        for _ in range(1 + world.rank):
            _loss(model, _own_share(world)).backward()
    dist.barrier()


@CASES.case()
def fsdp2(world: World) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    network = _network()
    for layer in network:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for _ in range(2):
        network.zero_grad()
        _loss(network, _own_share(world)).backward()
    for parameter, expected in zip(network.parameters(), _expected_gradients(), strict=True):
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(parameter.grad.full_tensor(), expected)


@CASES.case()
def dtensor(world: World) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    whole = torch.arange(60.0).view(12, 5)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    check_equal(sharded.full_tensor(), whole, "gathered")
    check_equal(sharded.redistribute(mesh, [Shard(1)]).full_tensor(), whole, "all_to_all")
    product = sharded.t() @ sharded  # partial sums
    torch.testing.assert_close(
        product.redistribute(mesh, [Replicate()]).to_local(), whole.t() @ whole
    )
