"""Ranks that live across tests: a case costs its own work, not the start of processes.

Each rank has our group as the default group and a real Gloo group beside it. The parent hosts the
store. After a failure or a hang all ranks are killed, and the next case gets new ones, since theirs
may be out of step.
"""

from __future__ import annotations

import importlib
import os
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from forked import FORKED
from striping import stripe_small_calls

_GRACE_S = 5.0  # for the other ranks, once one has failed
OPERATION_TIMEOUT_S = 60.0


class RankPool:
    """Processes that are the ranks of one job and run cases by name."""

    def __init__(self, world_size: int, engines: int, key_file: str) -> None:
        self._world_size = world_size
        self._engines = engines
        self._key_file = key_file
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._store: dist.TCPStore | None = None

    def run(self, module: str, case: str, timeout_s: float) -> None:
        """Run a case on all ranks; raises AssertionError with what every rank has to say."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((module, case))
        reports = self._collect(timeout_s)
        failures = [
            f"--- rank {rank} of {self._world_size} ---\n{report}"
            for rank, report in sorted(reports.items())
            if report is not None
        ]
        if failures:
            self.close(is_kind=False)
            raise AssertionError(f"{case}\n" + "\n".join(failures))

    def close(self, *, is_kind: bool = True) -> None:
        """End the ranks; unless is_kind, whatever they are doing."""
        for process, connection in zip(self._processes, self._connections, strict=True):
            if is_kind:
                connection.send(None)
            else:
                process.kill()
        for process in self._processes:
            process.join(timeout=30)
            process.kill()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections, self._store = [], [], None

    def _start(self) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(self._world_size):
            ours, theirs = FORKED.Pipe()
            place = (rank, self._world_size, self._engines)
            arguments = (theirs, *place, self._store.port, self._key_file)
            process = FORKED.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _collect(self, timeout_s: float) -> dict[int, str | None]:
        reports: dict[int, str | None] = {}
        until = time.monotonic() + timeout_s
        while len(reports) < self._world_size:
            waiting = {c: r for r, c in enumerate(self._connections) if r not in reports}
            ready = wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = waiting[connection]  # type: ignore[index]
                try:
                    reports[rank] = connection.recv()  # type: ignore[union-attr]
                except EOFError:
                    self._processes[rank].join(timeout=5)
                    reports[rank] = f"died with exit code {self._processes[rank].exitcode}"
                if reports[rank] is not None:
                    until = min(until, time.monotonic() + _GRACE_S)
        for rank in range(self._world_size):
            reports.setdefault(rank, "did not finish in time")
        return reports


class Pools:
    """One pool at a time: the cases of a world size follow each other."""

    def __init__(self, key_file: str) -> None:
        self._key_file = key_file
        self._size = (0, 0)
        self._pool: RankPool | None = None

    def of_size(self, world_size: int, engines: int = 1) -> RankPool:
        """Return the pool of so many ranks with so many engines each, ending any other."""
        size = (world_size, engines)
        if self._pool is None or self._size != size:
            self.close()
            self._pool, self._size = RankPool(world_size, engines, self._key_file), size
        return self._pool

    def close(self) -> None:
        """End the ranks."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _serve(
    connection: Connection,
    rank: int,
    world_size: int,
    engines: int,
    store_port: int,
    key_file: str,
) -> None:
    from contract_world import World

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ["SECUREFABRIC_KEY_FILE"] = key_file
    os.environ["SECUREFABRIC_ENGINES"] = str(engines)
    stripe_small_calls()
    # torch's new names for old ones; ours must serve both, and 2.11 has only the old ones.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    torch.set_num_threads(1)
    world: World | None = None
    while (command := connection.recv()) is not None:
        module, case = command
        try:
            world = world or _join(rank, world_size, store_port)
            world.begin(case)
            importlib.import_module(module).CASES[case](world)
            world.end()
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send(None)
    if world is not None:
        dist.destroy_process_group()


def _join(rank: int, world_size: int, store_port: int) -> Any:
    from contract_world import World

    from securefabric import _torch_autoload

    _torch_autoload.register()
    timeout = timedelta(seconds=OPERATION_TIMEOUT_S)
    store = dist.TCPStore("127.0.0.1", store_port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "securefabric", store=store, rank=rank, world_size=world_size, timeout=timeout
    )
    return World(rank, world_size, dist.new_group(backend="gloo", timeout=timeout), store)
