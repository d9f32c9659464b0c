"""Stack cases: replicas that average gradients, with everything DDP can be asked for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from contract_world import World
from stack_world import (
    STEPS,
    StackCases,
    loss_of,
    make_model,
    parameters_of,
    tokens_of,
)
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.modules import _functions
from torch.nn.parallel import DistributedDataParallel

CASES = StackCases()


def _train(
    model: nn.Module, world: World, optimizer: torch.optim.Optimizer | None = None, **forward: Any
) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        tokens = tokens_of(world.rank, step)
        loss_of(model(tokens, **forward), tokens).backward()
        optimizer.step()


@CASES.compared(over=("plain", "small_buckets", "bucket_views", "static_graph"))
def ddp(world: World, group: Any, variant: str) -> object:
    model = DistributedDataParallel(
        make_model(),
        process_group=group,
        bucket_cap_mb=0.001 if variant == "small_buckets" else 25,
        gradient_as_bucket_view=variant == "bucket_views",
        static_graph=variant == "static_graph",
    )
    _train(model, world)
    for parameter in model.parameters():
        world.record(parameter)  # replicas do not drift, not by a bit
    return parameters_of(model)


@CASES.compared()
def ddp_with_unused_parameters(world: World, group: Any) -> object:
    """Rank 0 leaves a layer out; the others' gradients still count."""
    model = DistributedDataParallel(make_model(), process_group=group, find_unused_parameters=True)
    _train(model, world, uses_all=world.rank != 0)
    return parameters_of(model)


@CASES.compared()
def ddp_without_sync(world: World, group: Any) -> object:
    """no_sync: gradients of several micro-batches, reduced once."""
    model = DistributedDataParallel(make_model(), process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(3):
            tokens = tokens_of(world.rank, 10 * step + part)
            with nullcontext() if part == 2 else model.no_sync():
                loss_of(model(tokens), tokens).backward()
        optimizer.step()
    return parameters_of(model)


@CASES.compared(ranks_min=2)
def ddp_join(world: World, group: Any) -> object:
    """Ranks run out of samples at different times."""
    model = DistributedDataParallel(make_model(), process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with model.join():
        for step in range(1 + 2 * world.rank):
            optimizer.zero_grad()
            tokens = tokens_of(world.rank, step)
            loss_of(model(tokens), tokens).backward()
            optimizer.step()
    return parameters_of(model)


@CASES.compared(over=("fp16", "powersgd", "powersgd_in_fp16", "then"))
def ddp_hook(world: World, group: Any, hook: str) -> object:
    """Communication hooks, which live on the futures of our works."""
    model = DistributedDataParallel(make_model(), process_group=group)
    state = powerSGD_hook.PowerSGDState(
        group, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=0.5
    )
    if hook == "fp16":
        model.register_comm_hook(group, default_hooks.fp16_compress_hook)
    elif hook == "powersgd":
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook == "powersgd_in_fp16":
        wrapped = default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook)
        model.register_comm_hook(state, wrapped)
    else:
        model.register_comm_hook(group, _average_twice)
    _train(model, world)
    return parameters_of(model)


def _average_twice(group, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations
    """Issue a collective from the callback of another one."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)

    def again(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        total = future.value()[0] / dist.get_world_size(group)
        dist.all_reduce(total, group=group)
        return total / dist.get_world_size(group)

    return work.get_future().then(again)  # type: ignore[no-any-return, union-attr]


@CASES.compared(over=("plain", "with_join"))
def zero_redundancy(world: World, group: Any, variant: str) -> object:
    """Each rank keeps a share of the optimizer's state."""
    model = DistributedDataParallel(make_model(), process_group=group)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.AdamW, process_group=group, lr=0.01
    )
    if variant == "plain":
        _train(model, world, optimizer)
    else:
        with Join([model, optimizer]):
            for step in range(1 + world.rank):
                optimizer.zero_grad()
                tokens = tokens_of(world.rank, step)
                loss_of(model(tokens), tokens).backward()
                optimizer.step()
    optimizer.consolidate_state_dict(to=0)
    moments = []
    if world.rank == 0:
        moments = [state["exp_avg"] for state in optimizer.state_dict()["state"].values()]
    return parameters_of(model), moments


@CASES.compared(ranks_min=2)
def sync_batch_norm(world: World, group: Any) -> object:
    """torch's SyncBatchNorm function, over CPU kernels of its statistics that torch lacks."""
    samples = _images(world.rank).requires_grad_()
    weight, bias = torch.full((3,), 1.5, requires_grad=True), torch.zeros(3, requires_grad=True)
    mean, variance = torch.zeros(3), torch.ones(3)
    with _cpu_batch_norm():
        out = _functions.SyncBatchNorm.apply(
            samples, weight, bias, mean, variance, 1e-5, 0.1, group, world.size
        )
        (out * out.detach().cos()).sum().backward()
    for gradient in (weight.grad, bias.grad):  # DDP's part
        dist.all_reduce(gradient, group=group)

    everything = torch.cat([_images(rank) for rank in range(world.size)])
    expected = nn.functional.batch_norm(everything, None, None, weight, bias, training=True)
    first = sum(len(_images(rank)) for rank in range(world.rank))
    torch.testing.assert_close(out, expected[first : first + len(samples)], rtol=1e-4, atol=1e-4)
    return out, samples.grad, weight.grad, bias.grad, mean, variance


def _images(rank: int) -> Tensor:
    return torch.randn(2 + rank, 3, 4, generator=torch.Generator().manual_seed(rank))


class _cpu_batch_norm:  # noqa: N801  used as a function
    """While entered, torch's kernels for synchronised batch norm exist for CPU tensors too."""

    def __enter__(self) -> None:
        self._library = torch.library.Library("aten", "IMPL")
        for kernel in (
            _batch_norm_stats,
            _batch_norm_gather_stats_with_counts,
            _batch_norm_elemt,
            _batch_norm_backward_reduce,
            _batch_norm_backward_elemt,
        ):
            self._library.impl(kernel.__name__.removeprefix("_"), kernel, "CPU")

    def __exit__(self, *_: object) -> None:
        self._library._destroy()


def _over_channels(of_channel: Tensor, like: Tensor) -> Tensor:
    return of_channel.view(1, -1, *([1] * (like.dim() - 2)))


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _batch_norm_stats(samples: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(samples, _all_but_channels(samples), correction=0)
    return mean, (variance + eps).rsqrt()


def _batch_norm_gather_stats_with_counts(
    samples: Tensor,
    means: Tensor,
    inverse_deviations: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts / counts.sum()).view(-1, 1)
    mean = (means * share).sum(0)
    variances = inverse_deviations.pow(-2) - eps
    variance = ((variances + (means - mean) ** 2) * share).sum(0)
    total = counts.sum()
    assert running_mean is not None
    assert running_variance is not None
    running_mean.lerp_(mean, momentum)
    running_variance.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def _batch_norm_elemt(
    samples: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    scale = _over_channels(inverse * weight, samples)
    return (samples - _over_channels(mean, samples)) * scale + _over_channels(bias, samples)


def _batch_norm_backward_reduce(
    gradient: Tensor,
    samples: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    *_: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dims = _all_but_channels(samples)
    sum_dy = gradient.sum(dims)
    sum_dy_xmu = (gradient * (samples - _over_channels(mean, samples))).sum(dims)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * inverse, sum_dy


def _batch_norm_backward_elemt(
    gradient: Tensor,
    samples: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    counts: Tensor,
) -> Tensor:
    total = counts.sum()
    centred = samples - _over_channels(mean, samples)
    slope = _over_channels(sum_dy_xmu / total * inverse**2, samples)
    shifted = gradient - _over_channels(sum_dy / total, samples) - centred * slope
    return shifted * _over_channels(inverse * weight, samples)
