"""What torch builds on a backend, on small real models: the same on ours as on Gloo.

Cases are in stack_*.py and run in the pools of rank_pool.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from rank_pool import Pools

WORLD_SIZES = (2, 4)
MODULES = ("stack_data_parallel", "stack_sharded", "stack_pipeline")
CASE_TIMEOUT_S = 150.0


def every_case() -> Iterator[Any]:
    """With two ranks everything; with four what needs them."""
    for world_size in WORLD_SIZES:
        for module in MODULES:
            cases = importlib.import_module(module).CASES
            for name in cases:
                is_enough = cases.ranks_min[name] <= world_size
                if is_enough and (world_size == WORLD_SIZES[0] or cases.ranks_min[name] > 2):
                    yield pytest.param(world_size, module, name, id=f"{world_size}-{name}")


@pytest.mark.parametrize(("world_size", "module", "case"), list(every_case()))
def test_stack(pools: Pools, world_size: int, module: str, case: str) -> None:
    pools.of_size(world_size).run(module, case, CASE_TIMEOUT_S)
