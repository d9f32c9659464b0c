"""The contract of every collective, with Gloo and arithmetic in float64 as the judges.

Cases are in contract_*.py. A world size has one set of processes, in which its cases run one after
the other: see rank_pool.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from rank_pool import Pools

WORLD_SIZES = (1, 2, 3, 4, 5)
MODULES = (
    "contract_reductions",
    "contract_movement",
    "contract_coalesced",
    "contract_messages",
    "contract_backend",
    "contract_groups",
    "contract_training",
)
CASE_TIMEOUT_S = 120.0


def every_case() -> Iterator[Any]:
    for world_size in WORLD_SIZES:
        for module in MODULES:
            cases = importlib.import_module(module).CASES
            for name in cases:
                if cases.ranks_min[name] <= world_size:
                    yield pytest.param(world_size, module, name, id=f"{world_size}-{name}")


@pytest.mark.parametrize(("world_size", "module", "case"), list(every_case()))
def test_contract(pools: Pools, world_size: int, module: str, case: str) -> None:
    pools.of_size(world_size).run(module, case, CASE_TIMEOUT_S)
