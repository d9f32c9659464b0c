"""Tensors in the memory of a GPU, where there is one: the cases of contract_cuda.py.

All ranks use the first GPU. Nothing here may touch it: what a process has touched its forks cannot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contract_cuda import CASES
from rank_pool import Pools

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # look without starting CUDA

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WORLDS = ((2, 1), (3, 1), (2, 2))  # ranks, and engines of each
CASE_TIMEOUT_S = 120.0


def every_case() -> Iterator[Any]:
    for world_size, engines in WORLDS:
        for name in CASES:
            if CASES.ranks_min[name] <= world_size:
                yield pytest.param(world_size, engines, name, id=f"{world_size}x{engines}-{name}")


@pytest.mark.parametrize(("world_size", "engines", "case"), list(every_case()))
def test_cuda(pools: Pools, world_size: int, engines: int, case: str) -> None:
    pools.of_size(world_size, engines).run("contract_cuda", case, CASE_TIMEOUT_S)
