"""Stack cases: pipelines, batches of messages, and collectives inside compiled functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from contract_world import World
from stack_world import STEPS, WIDTH, Block, StackCases, loss_of, make_model, tokens_of
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)
from torch.nn.parallel import DistributedDataParallel

CASES = StackCases()
MICRO_BATCHES = 4


def _stages(world: World, group: Any, per_rank: int) -> list[PipelineStage]:
    count = world.size * per_rank
    torch.manual_seed(3)
    blocks = [Block() for _ in range(count)]
    own = range(world.rank, count, world.size)
    return [
        PipelineStage(blocks[index], index, count, torch.device("cpu"), group=group)
        for index in own
    ]


@CASES.compared(over=("gpipe", "1f1b", "interleaved"), ranks_min=2)
def pipeline(world: World, group: Any, schedule: str) -> object:
    stages = _stages(world, group, per_rank=2 if schedule == "interleaved" else 1)
    runner: Any
    batches = max(MICRO_BATCHES, world.size)
    if schedule == "gpipe":
        runner = ScheduleGPipe(stages[0], batches, loss_fn=nn.functional.mse_loss)
    elif schedule == "1f1b":
        runner = Schedule1F1B(stages[0], batches, loss_fn=nn.functional.mse_loss)
    else:
        batches = world.size * 2
        runner = ScheduleInterleaved1F1B(stages, batches, loss_fn=nn.functional.mse_loss)
    losses: list[Tensor] = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        samples = torch.randn(2 * batches, 5, WIDTH, generator=generator)
        target = torch.randn(2 * batches, 5, WIDTH, generator=generator)
        inputs = (samples,) if world.rank == 0 else ()
        if world.rank == world.size - 1:
            runner.step(*inputs, target=target, losses=losses)
        else:
            runner.step(*inputs)
    gradients = [p.grad for stage in stages for p in stage.submod.parameters()]
    return losses, gradients


@CASES.compared(ranks_min=2)
def batches_of_messages(world: World, group: Any) -> object:
    """Both directions of a ring at once, several sizes, as pipelines exchange them."""
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    received = []
    for size in (1, 1000, 100_000):
        arrivals = [torch.empty(size), torch.empty(size, dtype=torch.int64)]
        forward = torch.arange(size) + float(world.rank)
        backward = torch.arange(size) * 3 + world.rank
        batch = [
            dist.P2POp(dist.isend, forward, after, group, tag=1),
            dist.P2POp(dist.irecv, arrivals[1], after, group, tag=2),
            dist.P2POp(dist.isend, backward, before, group, tag=2),
            dist.P2POp(dist.irecv, arrivals[0], before, group, tag=1),
        ]
        for work in dist.batch_isend_irecv(batch):
            work.wait()
        received += arrivals
    return received


def _functional(samples: Tensor, group: Any) -> Tensor:
    summed = funcol.all_reduce(samples * 2, "sum", group)
    gathered = funcol.all_gather_tensor(summed, 0, group)
    scattered = funcol.reduce_scatter_tensor(gathered.cos(), "avg", 0, group)
    exchanged = funcol.all_to_all_single(scattered, None, None, group)
    several = funcol.all_reduce_coalesced([exchanged, exchanged.sin()], "max", group)
    return several[0] + several[1] + funcol.broadcast(samples, 0, group)


@CASES.compared(over=("eager", "aot_eager", "inductor"))
def functional_collectives(world: World, group: Any, compiler: str) -> object:
    """Functional collectives, traced through torch.compile without a break."""
    if compiler == "inductor" and world.size != 2:
        return world.size  # it compiles C++ for each process, which is the same with more
    torch._dynamo.reset()
    run = _functional
    if compiler != "eager":
        run = torch.compile(_functional, backend=compiler, fullgraph=True)
    samples = torch.randn(6 * world.size, 4, generator=torch.Generator().manual_seed(world.rank))
    return run(samples, group), run(samples + 1, group)


@CASES.compared(ranks_min=2)
def compiled_ddp(world: World, group: Any) -> object:
    """torch.compile splits the graph at DDP's buckets."""
    torch._dynamo.reset()
    model = DistributedDataParallel(make_model(), process_group=group, bucket_cap_mb=1)
    compiled = torch.compile(model, backend="aot_eager")
    for step in range(2):
        tokens = tokens_of(world.rank, step)
        loss_of(compiled(tokens), tokens).backward()
    return [p.grad for p in model.parameters()]
