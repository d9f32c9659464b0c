"""A rank that cannot join: the others hear of it from the store, with the reason."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
from ranks import join, run_ranks


def _refused_join(rank: int) -> None:
    join()
    dist.all_reduce(torch.ones(4))


@pytest.mark.parametrize("refuser", [0, 1])
def test_rank_with_a_bad_setting__is_named_on_the_other_at_once(
    key_file: str, refuser: int
) -> None:
    """At once: long before the join timeout, and the bound of the test."""
    bad = {"SECUREFABRIC_SPIN": "fast"}
    outcomes = run_ranks(
        _refused_join,
        2,
        key_file=key_file,
        environment=lambda rank: {
            "SECUREFABRIC_JOIN_TIMEOUT_S": "3600",
            **(bad if rank == refuser else {}),
        },
    )
    own, other = outcomes[refuser].error, outcomes[1 - refuser].error
    assert own is not None
    assert other is not None
    assert own.startswith("ConfigError: option spin='fast'")
    assert "ConfigError" in other
    assert f"rank {refuser} cannot join the job" in other
    assert "fast" in other


def test_ports_that_do_not_suffice__all_ranks_learn_it(key_file: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        first = probe.getsockname()[1]
    outcomes = run_ranks(
        _refused_join,
        2,
        key_file=key_file,
        environment={
            "SECUREFABRIC_JOIN_TIMEOUT_S": "3600",
            "SECUREFABRIC_PORTS": f"{min(first, 65533)}-{min(first, 65533) + 2}",
        },
    )
    for outcome in outcomes:
        assert outcome.error is not None, outcomes
        assert "ConfigError" in outcome.error
        assert "SECUREFABRIC_PORTS" in outcome.error
