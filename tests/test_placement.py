from __future__ import annotations

import pytest

from securefabric.placement import Placement, discover, first_host, is_under_mpi

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_RANK": "2",
}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1"}


def placed(
    rank: int, world_size: int, local_rank: int | None, local_world_size: int | None, launcher: str
) -> Placement:
    return Placement(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        launcher=launcher,
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, placed(5, 8, 1, 4, "torchrun")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, placed(0, 1, None, None, "torchrun")),
        ({"RANK": "0"}, None),
        ({"RANK": "", "WORLD_SIZE": "2"}, None),
        (OPEN_MPI, placed(2, 4, 2, 4, "Open MPI")),
        (
            {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"},
            placed(1, 2, None, None, "MVAPICH"),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "3"}, placed(1, 3, None, None, "PMI")),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"},
            placed(1, 3, 0, 2, "PMI"),
        ),
        ({"PMIX_RANK": "1"}, None),
        (SLURM, placed(3, 6, 1, None, "Slurm")),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "6"}, placed(3, 6, 1, 6, "Slurm")),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, placed(3, 6, 1, 2, "Slurm")),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}, placed(3, 6, 1, None, "Slurm")),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "1"},
            placed(0, 1, None, None, "Slurm"),
        ),
        ({**SLURM, **OPEN_MPI}, placed(2, 4, 2, 4, "Open MPI")),
        ({**SLURM, **OPEN_MPI, **TORCHRUN}, placed(5, 8, 1, 4, "torchrun")),
    ],
)
def test_discover__table(environment: dict[str, str], expected: Placement | None) -> None:
    assert discover(environment) == expected


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "torchrun says rank 4 of 4"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "torchrun says rank -1"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK='one' is not a number"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "local rank 4 of 4"),
    ],
)
def test_discover__contradictions_are_named(environment: dict[str, str], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        discover(environment)


def test_is_under_mpi__table() -> None:
    assert is_under_mpi(OPEN_MPI)
    assert is_under_mpi({"PMIX_RANK": "0"})
    assert not is_under_mpi(TORCHRUN)
    assert not is_under_mpi(SLURM)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node7", "node7"),
        ("node7,node8", "node7"),
        ("node[07-09,12],gpu1", "node07"),
        ("gpu-a100-[3,5]", "gpu-a100-3"),
        ("rack[1-2]node[01-04]-ib", "rack1node01-ib"),
        (" a.example.org ", "a.example.org"),
    ],
)
def test_first_host__table(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", "[1-2", ","])
def test_first_host__no_host_is_an_error(nodelist: str) -> None:
    with pytest.raises(ValueError, match="no host"):
        first_host(nodelist)
