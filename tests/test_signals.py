"""Ctrl-C, and what else Python handles as a signal, while a rank waits for others."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import await_meeting, join, meet, run_ranks
from testbed.stages import wait_until

STANDS = 30  # looks at which the main thread was where it is


def _interrupt_when_it_waits(main: int, where: str) -> None:
    """Send SIGINT when the main thread has stood at one place of such a file for a while: so long
    that it waits in a call, and was not merely kept from running by a busy machine."""
    until = time.monotonic() + 60
    places: list[object] = []
    while time.monotonic() < until:
        frame = sys._current_frames()[main]
        places.append((frame.f_code, frame.f_lasti))
        if where in frame.f_code.co_filename and places[-STANDS:] == [places[-1]] * STANDS:
            break
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def _interrupted(where: str) -> Iterator[None]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    arguments = (threading.get_ident(), where)
    helper = threading.Thread(target=_interrupt_when_it_waits, args=arguments)
    helper.start()
    try:
        yield
    except KeyboardInterrupt:
        helper.join()
    else:
        raise AssertionError("nothing was interrupted")


def _wait_and_be_interrupted(rank: int, kind: str, wanted: float) -> float:
    join()
    dist.barrier()
    group: Any = dist.group.WORLD
    tensor = torch.full((4,), float(rank + 1))
    sparse = torch.eye(4).to_sparse()
    calls: dict[str, Any] = {
        "all_reduce": lambda: dist.all_reduce(tensor),
        "sparse": lambda: dist.all_reduce(sparse),
        "recv": lambda: dist.recv(tensor, 1) if rank == 0 else dist.send(tensor, 0),
    }
    call = calls[kind]
    if rank == 1:
        await_meeting("interrupted", 1)  # so it was not this rank's coming that ended the wait
        call()
    else:
        with _interrupted("distributed_c10d"):
            call()
        meet("interrupted", 1)
    # The call goes on without its caller, and later ones come after it.
    dist.barrier(group=group)
    total = torch.ones(1)
    dist.all_reduce(total)

    def result() -> float:
        return float(sparse.to_dense()[0, 0] if kind == "sparse" else tensor[0])

    # Nobody tells who was interrupted when it is done, and a sparse call is several operations.
    wait_until(lambda: result() == wanted, f"{kind} to be done")
    dist.destroy_process_group()
    return result() + float(total)


@pytest.mark.parametrize(("kind", "value"), [("all_reduce", 3.0), ("sparse", 2.0), ("recv", 2.0)])
def test_ctrl_c__ends_the_wait_and_leaves_the_group_as_it_is(
    key_file: str, kind: str, value: float
) -> None:
    for outcome in run_ranks(_wait_and_be_interrupted, 2, kind, value, key_file=key_file):
        assert outcome.error is None, outcome.details
        assert outcome.value == value + 2.0


def _interrupted_monitored_barrier(rank: int) -> str:
    join()
    dist.barrier()
    group: Any = dist.group.WORLD
    if rank == 0:
        with _interrupted("test_signals"):
            group.monitored_barrier(timedelta(seconds=60))
    with pytest.raises(dist.DistBackendError) as raised:
        dist.all_reduce(torch.ones(4))
    meet("done", 2)
    return str(raised.value)


def test_ctrl_c__in_a_monitored_barrier_ends_the_group(key_file: str) -> None:
    for outcome in run_ranks(_interrupted_monitored_barrier, 2, key_file=key_file):
        assert outcome.error is None, outcome.details
        assert "GroupAborted" in outcome.value
        assert "interrupted in monitoredBarrier" in outcome.value
