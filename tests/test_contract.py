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

# Ranks, and engines of each.
WORLDS = ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (2, 3), (3, 2))
MODULES = (
    "contract_reductions",
    "contract_movement",
    "contract_coalesced",
    "contract_messages",
    "contract_autograd",
    "contract_backend",
    "contract_barriers",
    "contract_groups",
    "contract_training",
)
CASE_TIMEOUT_S = 120.0


def every_case() -> Iterator[Any]:
    for world_size, engines in WORLDS:
        label = str(world_size) if engines == 1 else f"{world_size}x{engines}"
        for module in MODULES:
            cases = importlib.import_module(module).CASES
            for name in cases:
                if cases.ranks_min[name] <= world_size:
                    case = (world_size, engines, module, name)
                    yield pytest.param(*case, id=f"{label}-{name}")


@pytest.mark.parametrize(("world_size", "engines", "module", "case"), list(every_case()))
def test_contract(pools: Pools, world_size: int, engines: int, module: str, case: str) -> None:
    pools.of_size(world_size, engines).run(module, case, CASE_TIMEOUT_S)
