"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from securefabric.identity import write_key_file

if TYPE_CHECKING:
    from rank_pool import Pools

LAUNCHER_PREFIXES = ("OMPI_", "MPI_", "MV2_", "PMI", "SLURM_", "TORCHELASTIC_", "SECUREFABRIC_")
LAUNCHER_NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
KEPT = ("SECUREFABRIC_VECTORS",)  # names test data, not a setting


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take away what launchers and users set, so that a test sees defaults."""
    for name in list(os.environ):
        if name in LAUNCHER_NAMES or (name.startswith(LAUNCHER_PREFIXES) and name not in KEPT):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    """Ranks that live across the tests of a module."""
    from rank_pool import Pools  # imports torch, which not every test needs

    path = str(tmp_path_factory.mktemp("pools") / "job.key")
    write_key_file(path)
    pools = Pools(path)
    yield pools
    pools.close()


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    """A fresh job key's file."""
    path = str(tmp_path / "job.key")
    write_key_file(path)
    return path
