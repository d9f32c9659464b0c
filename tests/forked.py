"""Processes that start quickly: forks of a server that has imported torch, once for all tests.

The server has made no group and no thread, so to a rank it is as good as a fresh interpreter. What
is in its environment was there when the first test used it.
"""

from __future__ import annotations

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "torch.distributed._functional_collectives",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.distributed.optim",
        "torch.distributed.pipelining",
        "torch.distributed.tensor.parallel",
    ]
)
