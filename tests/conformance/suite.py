"""PyTorch's own distributed tests as a test class of this backend.

The environment says how: BACKEND is "securefabric" (as itself) or "gloo" (standing in for it, after
``securefabric.replace_gloo()``), WORLD_SIZE is the number of ranks. Both are read when torch's
suite is imported. The tests are torch's, unchanged; ours is only how their processes start: forked
from a server that has imported everything, which takes milliseconds instead of seconds. Such a
process has made no group and no thread yet, so to a test it is as good as a fresh one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from torch.testing._internal.common_distributed import DistTestCases

from securefabric import _torch_autoload

# Gated to backends by name, but meant for any backend that can do it, and ours can.
UNGATED = (
    "all_reduce_coalesced_full_group_max",
    "all_reduce_coalesced_full_group_min",
    "all_reduce_coalesced_full_group_product",
    "all_reduce_coalesced_full_group_sum",
    "all_reduce_coalesced_group_max",
    "all_reduce_coalesced_group_min",
    "all_reduce_coalesced_group_product",
    "all_reduce_coalesced_group_sum",
    "all_reduce_coalesced_max",
    "all_reduce_coalesced_min",
    "all_reduce_coalesced_product",
    "all_reduce_coalesced_sum",
    "all_to_all",
    "all_to_all_complex",
    "all_to_all_full_group",
    "all_to_all_group",
    "all_to_all_single_equal_split",
    "all_to_all_single_equal_split_complex",
    "all_to_all_single_equal_split_full_group",
    "all_to_all_single_equal_split_group",
    "all_to_all_single_unequal_split",
    "all_to_all_single_unequal_split_complex",
    "all_to_all_single_unequal_split_full_group",
    "all_to_all_single_unequal_split_group",
    "barrier_timeout_full_group",
    "barrier_timeout_global",
    "barrier_timeout_group",
    "batch_isend_irecv_gloo",
    "batch_isend_irecv_gloo_tags",
    "get_future",
    "grads_same_across_ranks_with_no_sync",
    "scatter_object_list",
    "sparse_all_reduce_sum",
)

BACKEND = os.environ["BACKEND"]
_torch_autoload.register()  # also where the package is not installed
if BACKEND == "gloo":
    __import__("securefabric").replace_gloo()
else:
    for feature in ("gpu", "cuda", "ddp", "subgroup", "plugin"):
        DistTestCases.backend_feature[feature].add(BACKEND)

# After the lines above, since it reads them while it is imported.
import torch.testing._internal.distributed.distributed_test as torch_tests  # noqa: E402

if BACKEND != "gloo":
    torch_tests.PROFILING_SUPPORTED_BACKENDS.append(BACKEND)
    torch_tests.SEND_RECV_PROFILING_SUPPORTED_BACKENDS.append(BACKEND)
for name in UNGATED:  # the gates only set this attribute
    getattr(torch_tests.DistributedTest._DistTestBase, f"test_{name}").__unittest_skip__ = False

FORKSERVER = multiprocessing.get_context("forkserver")


class DistributedTest(torch_tests.TestDistBackend, torch_tests.DistributedTest._DistTestBase):
    """Every test of torch's suite, for the backend and world size of the environment."""

    def setUp(self) -> None:
        super().setUp()
        self._spawn_processes()

    def _spawn_processes(self) -> None:
        def process(
            *, target: Callable[..., None], args: tuple[Any, ...], **settings: Any
        ) -> multiprocessing.process.BaseProcess:
            arguments = (dict(os.environ), target, *args)
            return FORKSERVER.Process(target=_run_as_if_spawned, args=arguments, **settings)

        self._start_processes(process)


def _run_as_if_spawned(
    environment: dict[str, str], target: Callable[..., None], *args: Any, **keywords: Any
) -> None:
    """Be what a spawned process would be: with the parent's environment, and an end that cleans up.

    A fork has the server's environment, and leaves without its exit handlers.
    """
    os.environ.clear()
    os.environ.update(environment)
    torch_tests.INIT_METHOD = os.environ["INIT_METHOD"]  # read at import in a spawned process
    try:
        target(*args, **keywords)
    finally:
        atexit._run_exitfuncs()
