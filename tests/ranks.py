"""Runs a function on several ranks, each a process of its own, and says how each of them ended.

The parent hosts the store, as a launcher does, so that a rank may be killed without taking the
store along. Every run is bounded in time; what still lives then is killed and reported.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from testbed.namespaces import Bed
from torch._C._distributed_c10d import TCPStore

SPAWNED = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a rank ended."""

    value: Any = None
    """What the function returned."""
    error: str | None = None
    """"ClassName: message" of what it raised."""
    details: str = ""
    """The traceback, for people."""
    exit_code: int | None = None
    """Of the process; negative: the signal that killed it; None: it had to be killed for time."""


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    key_file: str,
    environment: Mapping[str, str] | Callable[[int], Mapping[str, str]] | None = None,
    timeout_s: float = 90.0,
    absent: frozenset[int] = frozenset(),
    meanwhile: Callable[[dict[int, Any]], None] | None = None,
    bed: Bed | None = None,
    context: Any = SPAWNED,
) -> list[Outcome]:
    """Call ``function(rank, *args)`` in ``world_size`` processes and return their outcomes.

    ``absent`` ranks are never started. ``meanwhile`` runs in the parent while the ranks do, with
    the processes by rank. On a ``bed`` the ranks take turns over its hosts. The function joins the
    job itself, see ``join``. With FORKED of forked.py as the context, torch is imported before the
    ranks' environment is set, once for all tests.
    """
    # A helper that outlives the run, so it must not be born on a host of the bed.
    multiprocessing.resource_tracker.ensure_running()
    master = "127.0.0.1" if bed is None else bed.hosts[0].management
    with contextlib.nullcontext() if bed is None else bed.hosts[0].entered():
        store = TCPStore(master, 0, is_master=True, wait_for_workers=False)
    results: Any = context.Queue()
    processes: dict[int, Any] = {}
    for rank in range(world_size):
        if rank in absent:
            continue
        own = environment(rank) if callable(environment) else (environment or {})
        settings = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": master,
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "SECUREFABRIC_KEY_FILE": key_file,
            "SECUREFABRIC_ENGINES": "1",  # on hosts of any size
            "OMP_NUM_THREADS": "1",
            **({} if bed is None else bed.environment(rank, world_size)),
            **own,
        }
        processes[rank] = context.Process(
            target=_child, args=(function, rank, args, settings, results), daemon=True
        )
        with contextlib.nullcontext() if bed is None else bed.host_of(rank).entered():
            processes[rank].start()
    if meanwhile is not None:
        meanwhile(processes)
    return _collect(processes, results, world_size, time.monotonic() + timeout_s)


def _collect(
    processes: dict[int, Any], results: Any, world_size: int, until: float
) -> list[Outcome]:
    reports: dict[int, dict[str, Any]] = {}
    while time.monotonic() < until and any(p.is_alive() for p in processes.values()):
        _take_reports(results, reports, wait_s=0.05)
    for rank, process in processes.items():
        if process.is_alive():
            process.kill()
            reports.setdefault(rank, {"error": "Hang: killed for time"})
        process.join()
    _take_reports(results, reports, wait_s=0.5 if len(reports) < len(processes) else 0.0)
    return [
        Outcome(
            **reports.get(rank, {}),
            exit_code=processes[rank].exitcode if rank in processes else None,
        )
        for rank in range(world_size)
    ]


def _take_reports(results: Any, reports: dict[int, dict[str, Any]], wait_s: float) -> None:
    try:
        while True:
            rank, report = results.get(timeout=wait_s) if wait_s else results.get_nowait()
            reports[rank] = report
    except queue.Empty:
        pass


def _child(
    function: Callable[..., Any],
    rank: int,
    args: tuple[Any, ...],
    settings: Mapping[str, str],
    results: Any,
) -> None:
    os.environ.update(settings)
    import securefabric  # noqa: F401  registers the backend where the package is not installed
    from securefabric import _torch_autoload

    _torch_autoload.register()
    try:
        results.put((rank, {"value": function(rank, *args)}))
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        results.put((rank, {"error": text, "details": traceback.format_exc()}))
    finally:
        results.close()
        results.join_thread()


def join(timeout_s: float = 60.0) -> None:
    """Join the job that ``run_ranks`` has described in the environment."""
    dist.init_process_group("securefabric", timeout=timedelta(seconds=timeout_s))


def meet(what: str, ranks: int) -> None:
    """Come to a point that so many ranks come to, and wait for them, by the store alone."""
    store = dist.distributed_c10d._get_default_store()
    store.add(what, 1)
    await_meeting(what, ranks)


def await_meeting(what: str, ranks: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    until = time.monotonic() + 60
    while store.add(what, 0) < ranks:
        assert time.monotonic() < until, f"{what}: {store.add(what, 0)} of {ranks} ranks"
        time.sleep(0.01)
