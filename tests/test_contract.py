"""The contract of every collective, with Gloo and arithmetic in float64 as the judges.

Cases are in contract_*.py. A world size has one set of processes, in which its cases run one after
the other: see rank_pool.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from rank_pool import RankPool

from securefabric.identity import write_key_file

WORLD_SIZES = (1, 2, 3, 4, 5)
MODULES = (
    "contract_reductions",
    "contract_movement",
    "contract_coalesced",
    "contract_messages",
    "contract_groups",
    "contract_training",
)
CASE_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RankPool]:
    path = str(tmp_path_factory.mktemp("contract") / "job.key")
    write_key_file(path)
    pool = RankPool(request.param, path)
    yield pool
    pool.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = []
    for world_size in WORLD_SIZES:  # the outer loop: one pool lives at a time
        for module in MODULES:
            cases = importlib.import_module(module).CASES
            for name in cases:
                if cases.ranks_min[name] <= world_size:
                    rows.append(pytest.param(world_size, module, name, id=f"{world_size}-{name}"))
    metafunc.parametrize(("pool", "module", "case"), rows, indirect=["pool"], scope="module")


def test_contract(pool: RankPool, module: str, case: str) -> None:
    pool.run(module, case, CASE_TIMEOUT_S)
