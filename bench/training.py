"""Time whole training steps of a decoder under DistributedDataParallel, backends taking turns.

    python bench/training.py --ranks 2,4                 # starts the ranks itself, with mpirun
    mpirun -n 2 python bench/training.py                 # one number of ranks

Every backend trains a copy of its own of the same model, from the same weights on the same samples;
one more copy never communicates (`no_sync`). In each round every copy makes a step, the first in
turn; all ranks meet before each step, which is not timed. A step is forward, backward with the
all_reduce of the gradients, and the optimizer, and it takes as long as on its slowest rank. The
copies that communicate must report the same losses.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from _backends import Backend, TorchBackend, is_launched, join, leave
from _decoder import BYTES, Decoder, Shape, draw_batch, load_text
from _devices import add_device_option, check_device
from _launch import run_as_rank, start_ranks
from _measure import describe_machine, percentile, ratios, say, write_json
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

NAMES: Final = ("securefabric", "gloo")
ALONE: Final = "no communication"
SEED: Final = 1
LEARNING_RATE: Final = 3e-4
LOSS_TOLERANCE: Final = 1e-3  # relative: with more than two ranks the order of additions differs


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """What the steps of one copy took."""

    backend: str
    steps: int
    p50_us: float
    p99_us: float
    cpu_s_per_step: float
    """User and system time of all threads of all ranks together; the mean."""
    losses: list[float]
    """Of each step, the mean over the ranks; those before the timed steps included."""


@dataclass
class Copy:
    """One copy of the model, trained over one backend."""

    name: str
    backend: TorchBackend
    model: DistributedDataParallel
    optimizer: torch.optim.Optimizer
    times_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def step(self, tokens: Tensor, following: Tensor, *, is_timed: bool) -> None:
        """Learn from one batch."""
        self.backend.synchronise()
        started_cpu_s, started = self.backend.cpu_s(), time.perf_counter()
        self.optimizer.zero_grad()
        syncing = self.model.no_sync() if self.name == ALONE else contextlib.nullcontext()
        with syncing:
            scores = self.model(tokens)
            loss = functional.cross_entropy(scores.reshape(-1, BYTES), following.reshape(-1))
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.backend.synchronise()
        ended, ended_cpu_s = time.perf_counter(), self.backend.cpu_s()
        self.losses.append(loss.item())
        if is_timed:
            self.times_s.append(ended - started)
            self.cpu_s += ended_cpu_s - started_cpu_s

    def result(self, everyone: Backend) -> StepRow:
        """Return what all ranks measured."""
        times_s = [max(times) for times in zip(*everyone.all_gather(self.times_s), strict=True)]
        losses = zip(*everyone.all_gather(self.losses), strict=True)
        return StepRow(
            backend=self.name,
            steps=len(times_s),
            p50_us=percentile(times_s, 50) * 1e6,
            p99_us=percentile(times_s, 99) * 1e6,
            cpu_s_per_step=sum(everyone.all_gather(self.cpu_s)) / len(times_s),
            losses=[sum(of_step) / len(of_step) for of_step in losses],
        )


def make_copy(name: str, backend: TorchBackend, shape: Shape) -> Copy:
    torch.manual_seed(SEED)
    decoder = Decoder(shape).to(backend.device)  # drawn in host memory: the same on any device
    model = DistributedDataParallel(decoder, process_group=backend.group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    return Copy(name, backend, model, optimizer)


def train(copies: list[Copy], shape: Shape, arguments: argparse.Namespace) -> None:
    """Make all steps; each round begins with another copy."""
    meet, text = copies[0].backend, load_text()
    for step in range(arguments.warmup + arguments.steps):
        if step % 10 == 0:
            say(meet, f"training step {step} on {meet.ranks} ranks ...")
        tokens, following = draw_batch(text, shape, step * meet.ranks + meet.rank)
        batch = (tokens.to(meet.device), following.to(meet.device))
        first = step % len(copies)
        for copy in copies[first:] + copies[:first]:
            meet.barrier()
            copy.step(*batch, is_timed=step >= arguments.warmup)


def measure(arguments: argparse.Namespace) -> int:
    """Measure as one of the launched ranks; the first prints."""
    backends = [
        each
        for each in join(arguments.backends, arguments.device)
        if isinstance(each, TorchBackend)
    ]
    first = backends[0]
    shape = Shape(
        layers=arguments.layers,
        width=arguments.width,
        context=arguments.context,
        batch=arguments.batch,
    )
    copies = [make_copy(backend.name, backend, shape) for backend in backends]
    copies.append(make_copy(ALONE, first, shape))
    train(copies, shape, arguments)
    rows = {copy.name: copy.result(first) for copy in copies}
    wrong = count_wrong(rows)
    parameters = sum(parameter.numel() for parameter in copies[0].model.parameters())
    document = {
        "ranks": first.ranks,
        "machine": describe_machine(backends),
        "model": {**asdict(shape), "parameters": parameters, "gradient_bytes": 4 * parameters},
        "rows": rows,
        "ratios": ratios(rows, first.name),
        "wrong_losses": wrong,
    }
    if first.rank == 0:
        print_table(rows, first, parameters, wrong)
        if arguments.json is not None:
            write_json(arguments.json, document)
    leave()
    return 1 if wrong else 0


def count_wrong(rows: dict[str, StepRow]) -> int:
    """Return how many losses differ from those of the first copy by more than rounding."""
    together = [row.losses for row in rows.values() if row.backend != ALONE]
    return sum(
        not abs(other - one) <= LOSS_TOLERANCE * abs(one)  # a loss that is no number differs, too
        for losses in together[1:]
        for one, other in zip(together[0], losses, strict=True)
    )


def print_table(rows: dict[str, StepRow], first: TorchBackend, parameters: int, wrong: int) -> None:
    gradients_mb = 4 * parameters / 1e6
    print(f"\n# a training step on {first.ranks} ranks: {gradients_mb:.1f} MB of gradients")
    columns = ("p50 (ms)", "p99 (ms)", "CPU (ms)", "vs alone", "first loss", "last loss")
    print(f"# {'backend':>17}" + "".join(f"{column:>12}" for column in columns))
    alone = rows[ALONE].p50_us
    for row in rows.values():
        times_us = (row.p50_us, row.p99_us, row.cpu_s_per_step * 1e6)
        cells = [f"{us / 1e3:.2f}" for us in times_us]
        cells += [f"{row.p50_us / alone:.2f}", f"{row.losses[0]:.4f}", f"{row.losses[-1]:.4f}"]
        print(f"{row.backend:>19}" + "".join(f"{cell:>12}" for cell in cells))
    for rival, ratio in ratios(rows, first.name).items():
        print(f"# {first.name} / {rival}, median of the whole step: {ratio:.2f}")
    print(f"# losses that differ between the backends: {wrong}", flush=True)


def start(arguments: argparse.Namespace) -> int:
    """Start the ranks, once for each number of them, and gather what they wrote."""
    status, documents = start_ranks(__file__, arguments.ranks)
    if arguments.json is not None:
        write_json(arguments.json, {"runs": documents})
    return status


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ranks",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[2, 4],
        help="numbers of ranks to start (2,4); not asked where a launcher started this",
    )
    parser.add_argument(
        "--backends",
        type=lambda text: text.split(","),
        default=list(NAMES),
        help="the first is compared with each of the others (securefabric,gloo)",
    )
    add_device_option(parser)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each copy (60)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones (3)")
    sizes = Shape()
    parser.add_argument("--layers", type=int, default=sizes.layers, help="(%(default)s)")
    parser.add_argument("--width", type=int, default=sizes.width, help="(%(default)s)")
    parser.add_argument(
        "--context", type=int, default=sizes.context, help="tokens of a sample (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=sizes.batch, help="samples of a rank (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="also write everything here")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.backends if name not in NAMES]
    if unknown:
        parser.error(f"no {unknown[0]}; there are {', '.join(NAMES)}")
    check_device(parser, arguments.device, arguments.backends)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if not is_launched():
        return start(arguments)
    return run_as_rank(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
