"""PyTorch's own distributed tests: the part that runs every time; `make conformance` runs all.

As itself at two ranks everything; elsewhere what differs by mode or needs more ranks.
"""

from __future__ import annotations

import pytest
from conformance.run import BACKENDS, HERE, WORLD_SIZES, run_apart, summary

# mode, ranks, tests, and how many of them must have run: a pattern that matches nothing is a bug
PARTS = [
    ("own", 2, [], 85),
    (
        "as_gloo",
        2,
        [
            "*timeout*",
            "DistributedDataParallelCPU*",
            "accumulate_gradients_no_sync*",
            "all_gather",
            "all_reduce_coalesced_sum",
            "all_reduce_sum_async",
            "all_to_all*",
            "batch_isend_irecv_gloo*",
            "broadcast",
            "monitored_barrier*",
            "reduce_scatter*",
            "send_recv*",
            "sparse_all_reduce_sum",
        ],
        20,
    ),
    ("own", 3, ["all_gather", "all_reduce_sum", "all_to_all*", "reduce_sum", "scatter*"], 10),
    ("own", 4, ["all_to_all*", "gather_object*", "batch_isend*", "reduce_scatter*"], 8),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "world_size", "patterns", "least"),
    [pytest.param(*part, id=f"{part[0]}-{part[1]}") for part in PARTS],
)
def test_torchs_suite(mode: str, world_size: int, patterns: list[str], least: int) -> None:
    outcomes = run_apart(mode, world_size, patterns, is_quick=True)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert not failed, summary({(mode, world_size): outcomes})
    assert sum(outcome.status == "passed" for outcome in outcomes) >= least


def test_exclusions__each_has_a_reason() -> None:
    import tomllib

    for entry in tomllib.loads((HERE / "not_applicable.toml").read_text())["entry"]:
        assert set(entry) <= {"tests", "reason", "modes", "world_sizes"}, entry
        assert len(entry["reason"]) > 10
        assert entry["tests"] == sorted(set(entry["tests"])), entry["reason"]
        assert set(entry.get("modes", BACKENDS)) <= set(BACKENDS)
        assert set(entry.get("world_sizes", WORLD_SIZES)) <= set(WORLD_SIZES)
