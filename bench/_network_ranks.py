"""What the ranks of the network measurements run, each in a process on its host of the bed."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from testbed.stages import Stages

import securefabric

WARM_UP_CALLS = 3
WARM_UP_NUMEL = 2 << 20


def _join(backend: str) -> None:
    dist.init_process_group(backend, timeout=timedelta(seconds=120))


def reduce_by_phase(
    rank: int,
    backend: str,
    folder: str,
    phases: list[str],
    seconds: float,
    numel: int,
    sample_s: float,
) -> dict[str, Any]:
    """Reduce for some seconds in each phase; when each call ended, and what the paths looked like.

    The ranks agree after each call whether to go on. sample_s > 0: samples of rank 0's paths and
    counters, so often. Times are those of the machine's monotonic clock, which all hosts share.
    """
    _join(backend)
    stages = Stages(folder)
    tensor = torch.ones(numel)
    going = torch.ones(1)
    for _ in range(WARM_UP_CALLS):
        dist.all_reduce(tensor[:WARM_UP_NUMEL])
    ended: dict[str, list[float]] = {}
    samples: dict[str, list[Any]] = {}
    for phase in phases:
        stages.reach(phase, rank)
        with _Sampler(sample_s if rank == 0 and backend == "securefabric" else 0.0) as sampler:
            ended[phase] = [time.monotonic()]
            until = ended[phase][0] + seconds
            while True:
                tensor.fill_(1.0)
                dist.all_reduce(tensor)
                if tensor[0] != dist.get_world_size() or tensor[-1] != tensor[0]:
                    raise AssertionError(f"wrong sum in {phase}")
                ended[phase].append(time.monotonic())
                going[0] = float(ended[phase][-1] < until)
                dist.all_reduce(going, op=dist.ReduceOp.MIN)
                if not going.item():
                    break
        samples[phase] = sampler.samples
    counted = asdict(securefabric.stats()) if backend == "securefabric" else {}
    dist.barrier()
    dist.destroy_process_group()
    return {"ended": ended, "samples": samples, "counted": counted}


class _Sampler:
    """Looks at this rank's paths and resends again and again, in a thread of its own.

    Meanwhile no garbage is collected: that stops the thread for 100 ms and more, which would look
    as if nothing had arrived.
    """

    def __init__(self, pause_s: float) -> None:
        self.samples: list[Any] = []
        self._pause_s = pause_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Sampler:
        if self._pause_s > 0:
            gc.disable()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._pause_s > 0:
            self._thread.join()
            gc.enable()

    def _run(self) -> None:
        while not self._is_over.wait(self._pause_s):
            paths = [
                [path.socket, path.peer_socket, path.state, path.srtt_us, path.window_bytes]
                for path in securefabric.paths()
            ]
            counted = securefabric.stats()
            self.samples.append(
                {
                    "at": time.monotonic(),
                    "resent": counted.fragments_resent,
                    "received_bytes": counted.message_bytes_received,
                    "epochs": counted.epochs_begun,
                    "sealed": counted.packets_sealed,
                    "acks": counted.acks_sent,
                    "lost": counted.packets_lost,
                    "paths": paths,
                }
            )


def send_at_once(
    rank: int, backend: str, folder: str, numel: int, repeats: int
) -> list[tuple[float, float]]:
    """Every rank but 0 sends to rank 0 at the same moment: (start, end) of each sender's calls.

    A send ends when all its bytes have been acknowledged.
    """
    _join(backend)
    senders = range(1, dist.get_world_size())
    own = torch.full((numel,), float(rank))
    received = [torch.zeros(numel) for _ in senders]
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        dist.barrier()
        started = time.monotonic()
        if rank == 0:
            works = [dist.irecv(received[i - 1], src=i) for i in senders]
            for work in works:
                if work is not None:
                    work.wait()
        else:
            dist.send(own, 0)
        times.append((started, time.monotonic()))
    if rank == 0 and any(float(one.sum()) != numel * i for i, one in enumerate(received, start=1)):
        raise AssertionError("wrong bytes arrived")
    dist.barrier()
    Stages(folder).reach("end", rank)
    dist.destroy_process_group()
    return times[1:]


def join_at_once(rank: int, backend: str, folder: str) -> tuple[float, float, float]:
    """Join a job when all ranks may: when this one began, had joined, and had left an all_reduce.

    Processes have been started, and torch been imported, before.
    """
    Stages(folder).reach("start", rank)
    started = time.monotonic()
    _join(backend)
    joined = time.monotonic()
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    reduced = time.monotonic()
    if tensor.item() != dist.get_world_size():
        raise AssertionError("wrong sum")
    dist.barrier()
    dist.destroy_process_group()
    return started, joined, reduced
