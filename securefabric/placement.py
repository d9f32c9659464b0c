"""Which rank this process is, read from the variables that launchers set.

No import of torch, MPI or anything else of the package: launchers ask before the script starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Placement", "discover", "first_host", "is_under_mpi"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A process's place in its job, as its launcher says."""

    rank: int
    world_size: int
    local_rank: int | None
    """The rank among the processes of this host; None when the launcher does not say."""
    local_world_size: int | None
    """How many of the job's processes run on this host; None when the launcher does not say."""
    launcher: str


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """The names of one launcher's variables; the first that is set counts."""

    name: str
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...] = ()
    local_world_size: tuple[str, ...] = ()


# In this order: torchrun may itself be started by srun, and Open MPI by Slurm; the innermost wins.
# Under sbatch without srun SLURM_PROCID is 0 and SLURM_NTASKS counts tasks that do not run, so the
# variable that only a step has comes first.
_LAUNCHERS: Final = (
    _Launcher(
        name="torchrun",
        rank=("RANK",),
        world_size=("WORLD_SIZE",),
        local_rank=("LOCAL_RANK",),
        local_world_size=("LOCAL_WORLD_SIZE",),
    ),
    _Launcher(
        name="Open MPI",
        rank=("OMPI_COMM_WORLD_RANK",),
        world_size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_world_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        name="MVAPICH",
        rank=("MV2_COMM_WORLD_RANK",),
        world_size=("MV2_COMM_WORLD_SIZE",),
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
        local_world_size=("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        name="PMI",
        rank=("PMI_RANK",),
        world_size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        local_world_size=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
    _Launcher(
        name="Slurm",
        rank=("SLURM_PROCID",),
        world_size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=("SLURM_LOCALID",),
    ),
)
# Set in every process of an MPI job, whether or not rank and size are told as variables too.
_MPI_MARKS: Final = ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def discover(environment: Mapping[str, str] = os.environ) -> Placement | None:
    """Return this process's placement; None when no launcher tells rank and world size.

    Raises ValueError when a launcher's variables contradict each other or are no numbers.
    """
    for launcher in _LAUNCHERS:
        rank = _number(environment, launcher.rank)
        world_size = _number(environment, launcher.world_size)
        if rank is not None and world_size is not None:
            return _checked(
                Placement(
                    rank=rank,
                    world_size=world_size,
                    local_rank=_number(environment, launcher.local_rank),
                    local_world_size=_local_world_size(environment, launcher),
                    launcher=launcher.name,
                )
            )
    return None


def is_under_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an MPI launcher started this process, so that mpi4py can connect to the others."""
    return any(name in environment for name in _MPI_MARKS)


def first_host(nodelist: str) -> str:
    """Return the first host that Slurm's notation names: "node[07-09,12],gpu1" gives "node07"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip())
    if first is None:
        raise ValueError(f"no host in node list {nodelist!r}")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        text = environment.get(name)
        if text:
            try:
                return int(text)
            except ValueError:
                raise ValueError(f"{name}={text!r} is not a number") from None
    return None


def _local_world_size(environment: Mapping[str, str], launcher: _Launcher) -> int | None:
    if launcher.name == "Slurm":  # tasks per node, as in "2(x3),1": told where all have as many
        text = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
        same = re.fullmatch(r"([0-9]+)(\(x[0-9]+\))?", text)
        return int(same[1]) if same else None
    return _number(environment, launcher.local_world_size)


def _checked(placement: Placement) -> Placement:
    local_rank = placement.local_rank
    local_world_size = placement.local_world_size
    if not 0 <= placement.rank < placement.world_size:
        raise ValueError(
            f"{placement.launcher} says rank {placement.rank} of {placement.world_size}"
        )
    if local_rank is not None and not 0 <= local_rank < (local_world_size or local_rank + 1):
        raise ValueError(f"{placement.launcher} says local rank {local_rank} of {local_world_size}")
    return placement
