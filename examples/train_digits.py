"""Train a small network on handwritten digits, on several ranks, over an encrypted fabric.

    securefabric keygen job.key && export SECUREFABRIC_KEY_FILE=$PWD/job.key
    torchrun --nproc-per-node 4 examples/train_digits.py
    mpirun -n 4 python examples/train_digits.py
    python -m securefabric.launch examples/train_digits.py      # alone

An ordinary DistributedDataParallel job: the one line that matters is ``init_process_group``.
``--backend gloo`` trains the same way in the clear. With the same seed and number of ranks both
end with the same parameters, up to the order in which floats were added.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

# DistributedDataParallel imports this anyway, but too late: its functions' defaults would then keep
# the group for good, and Gloo's threads, which must not outlive destroy_process_group.
import torch.distributed.nn.functional
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import securefabric
from securefabric.placement import is_under_mpi

TEST_SHARE = 0.2
GLOBAL_BATCH = 48  # samples per step over all ranks; divides by 1, 2, 3, 4, 6, 8, ...
LEARNING_RATE = 1e-2  # of the first epoch; falls along a cosine to zero


@dataclass(frozen=True)
class Digits:
    """1,797 scans of 8 x 8 pixels, the same split on every rank."""

    train_images: Tensor  # (samples, 1, 8, 8), 0 to 1
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data(seed: int) -> Digits:
    bunch = load_digits()  # comes with scikit-learn: nothing is downloaded
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order.tensor_split([round(len(order) * TEST_SHARE)])
    return Digits(images[train], labels[train], images[test], labels[test])


def make_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def own_batches(samples: int, seed: int, epoch: int) -> list[Tensor]:
    """Return this rank's indices, batch by batch; every rank gets as many batches of one size.

    All ranks shuffle alike and each takes every world_size-th sample of a global batch. What does
    not fill a batch is left out of this epoch.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(samples, generator=generator)
    per_rank = max(1, GLOBAL_BATCH // world_size)
    step = per_rank * world_size
    return [order[i + rank : i + step : world_size] for i in range(0, samples - step + 1, step)]


def train(network: nn.Module, data: Digits, *, epochs: int, seed: int) -> None:
    model = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        started = time.perf_counter()
        batches = own_batches(len(data.train_labels), seed, epoch)
        total_loss = torch.zeros(())
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(
                model(data.train_images[batch]), data.train_labels[batch]
            )
            loss.backward()  # type: ignore[no-untyped-call]  # DDP averages the gradients in here
            optimizer.step()
            total_loss += loss.detach()
        schedule.step()
        mean_loss = total_loss / len(batches)
        dist.all_reduce(mean_loss)
        mean_loss /= dist.get_world_size()
        if dist.get_rank() == 0:
            seconds = time.perf_counter() - started
            print(f"epoch {epoch + 1:2d}  loss {mean_loss:.4f}  {seconds:.2f} s", flush=True)


def accuracy(network: nn.Module, data: Digits) -> float:
    with torch.no_grad():
        right = (network(data.test_images).argmax(1) == data.test_labels).float()
    return float(right.mean())


def parameters_of(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def report(network: nn.Module, data: Digits, backend: str) -> None:
    """Print, on rank 0, how good the network is, and what the fabric of each rank did."""
    parameters = parameters_of(network)
    digest = hashlib.sha256(parameters.numpy().tobytes()).hexdigest()[:16]
    fabric = securefabric.summary() if backend == "securefabric" else "no fabric: sent in the clear"
    reports: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
    dist.all_gather_object(reports, (digest, fabric))
    if dist.get_rank() != 0:
        return
    drifted = [rank for rank, (other, _) in enumerate(reports) if other != digest]
    if drifted:
        raise SystemExit(f"replicas drifted apart: ranks {drifted} differ from rank 0")
    print(f"test accuracy {accuracy(network, data):.4f}")
    print(
        f"parameters {len(parameters):,}, norm {parameters.norm():.6f}, sha256 {digest}, "
        f"the same on {len(reports)} ranks"
    )
    print("\n".join(fabric for _, fabric in reports), flush=True)


def init_method() -> str:
    """Ask the launcher how ranks find each other; torchrun says it all in the environment."""
    return "mpi://" if is_under_mpi() and "RANK" not in os.environ else "env://"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a digit classifier on several ranks.")
    parser.add_argument("--backend", choices=("securefabric", "gloo"), default="securefabric")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", default=init_method(), help="default here: %(default)s")
    parser.add_argument("--save", type=Path, help="rank 0 saves the trained parameters here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    dist.init_process_group(arguments.backend, init_method=arguments.init)
    if dist.get_rank() == 0:
        print(f"{arguments.backend}: {dist.get_world_size()} ranks", flush=True)
    data = load_data(arguments.seed)
    network = make_network(arguments.seed)
    train(network, data, epochs=arguments.epochs, seed=arguments.seed)
    report(network, data, arguments.backend)
    if arguments.save is not None and dist.get_rank() == 0:
        torch.save(network.state_dict(), arguments.save)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
