"""Where the tensors of a benchmark lie: in host memory, or on a GPU of this host."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import torch

from securefabric.placement import discover

DEVICES: Final = ("cpu", "cuda")
HOST_ONLY: Final = ("mpi",)  # backends that take no tensor of a device; we use no CUDA-aware MPI


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where the tensors lie (cpu); with cuda the ranks of a host share its GPUs",
    )


def check_device(parser: argparse.ArgumentParser, device: str, backends: Sequence[str]) -> None:
    """End the program where the backends cannot be measured with tensors on this device."""
    if device == "cpu":
        return
    for name in HOST_ONLY:
        if name in backends:
            parser.error(f"{name} takes no tensors on a GPU: leave it out, or --device cuda")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without it"
        parser.error(f"--device cuda: torch {torch.__version__} finds no CUDA here; it was {built}")


def own_device(device: str, rank: int) -> torch.device:
    """Return this rank's device, and make it the current one."""
    if device == "cpu":
        return torch.device("cpu")
    placement = discover()
    local = placement.local_rank if placement is not None else None
    index = (rank if local is None else local) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
