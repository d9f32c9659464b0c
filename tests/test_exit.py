"""Processes that end with groups, quietly, in time, without a crash; groups that leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import FORKED
from ranks import SPAWNED, join, run_ranks
from torch._C._distributed_c10d import TCPStore

BEGIN = """
import sys, threading, time
from datetime import timedelta
import torch, torch.distributed as dist
dist.init_process_group("securefabric", timeout=timedelta(seconds=60))
peer = 1 - dist.get_rank()
dist.all_reduce(torch.ones(100))
"""
ENDINGS = {
    "with its groups": "groups = [dist.new_group([0, 1]) for _ in range(3)]",
    "with works that nobody waits for": """
works = [dist.all_reduce(torch.ones(1000), async_op=True) for _ in range(20)]
""",
    "with a receive that nobody serves, and its callback": """
work = dist.irecv(torch.ones(3), peer)
work.get_future().then(lambda future: None)
""",
    "with callbacks that have not run": """
for _ in range(50):
    work = dist.all_reduce(torch.ones(10), async_op=True)
    work.get_future().then(lambda future: [value.sum() for value in future.value()])
""",
    "with a thread that waits": """
def wait():
    try:
        dist.irecv(torch.ones(3), peer).wait()
    except RuntimeError:
        pass
thread = threading.Thread(target=wait)
thread.start()
dist.barrier()
dist.destroy_process_group()
""",
    "by an exception": """
dist.all_reduce(torch.ones(1000), async_op=True)
sys.exit(0)
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_process_ends(ending: str, key_file: str, tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    script = tmp_path / "rank.py"
    script.write_text(BEGIN + ENDINGS[ending])
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "SECUREFABRIC_KEY_FILE": key_file,
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(ranks):
            output = process.communicate(timeout=90)[0]
            assert process.returncode == 0, f"rank {rank} ended with {process.returncode}\n{output}"
            assert "terminate called" not in output
    finally:
        for process in ranks:
            process.kill()
            process.wait()


LAST_REFERENCE = """
import os, threading, time
from datetime import timedelta
from pathlib import Path
import torch
from securefabric import _C

entered = threading.Event()

def resolve(board, rank, is_needed):
    entered.set()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:  # needs the GIL, again and again
        time.sleep(0.01)

fabric = _C.Fabric(
    rank=0, world_size=2, local_world_size=2, suite="aes-256-gcm",
    job_key_text=bytearray(Path(os.environ["SECUREFABRIC_KEY_FILE"]).read_bytes()),
    engines=1, addresses=["127.0.0.1"], interfaces="", sockets_per_interface=1,
    port_first=0, port_last=0, paths_per_peer=1,
    join_timeout_s=60.0, death_timeout_s=10.0, heartbeat_s=1.0,
    epoch_age_s=3600.0, epoch_bytes=1 << 40, gso=True, gro=True, spin="never", eager_connect=True,
    generation_bits=22, tuning=[], resolve=resolve,
)
fabric.set_entry(b"an entry")
group = _C.Backend(
    fabric=fabric, group_rank=0, group_size=2, group_name="g", identity="g", global_ranks=[0, 1],
    options=_C.Options(timedelta(seconds=60)),
)
assert entered.wait(60)
del group
del fabric  # waits for resolve to return
print("ended")
"""


def test_fabric__its_last_reference_may_go_while_its_threads_need_the_gil(key_file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAST_REFERENCE],
        env={**os.environ, "SECUREFABRIC_KEY_FILE": key_file},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ended\n"


def make_and_destroy_groups(rank: int) -> list[int]:
    """Descriptors after each group of ours in a world of Gloo's, ended in both ways."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    left = []
    for turn in range(6):
        group = dist.new_group(backend="securefabric")
        half = group.split_group([0, 1]) if turn % 2 else None
        tensor = torch.tensor([float(rank)])
        dist.all_reduce(tensor, group=group)
        assert float(tensor) == 1
        dist.destroy_process_group(group)
        del group, half
        left.append(len(os.listdir("/proc/self/fd")))
    dist.destroy_process_group()
    return left


def test_groups__that_ended_leave_no_descriptors_where_the_world_is_anothers(key_file: str) -> None:
    for outcome in run_ranks(make_and_destroy_groups, 2, key_file=key_file):
        assert outcome.error is None, outcome.details
        assert len(set(outcome.value[2:])) == 1, outcome.value


# --- The last messages arrive --------------------------------------------------------------------


def leave_after_a_barrier(_rank: int) -> None:
    join()
    dist.barrier()


@pytest.mark.parametrize("context", [FORKED, SPAWNED], ids=["forkserver", "spawn"])
def test_multiprocessing__a_rank_may_end_right_after_its_last_collective(
    context: Any, key_file: str
) -> None:
    """Those that are forked end without atexit. Links are new, so the last messages are late."""
    for outcome in run_ranks(leave_after_a_barrier, 4, key_file=key_file, context=context):
        assert outcome.error is None, outcome.error
        assert outcome.exit_code == 0


def drop_a_group(rank: int, size: int) -> None:
    import securefabric

    securefabric.replace_gloo()
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]))
    make: Any = dist.ProcessGroupGloo
    group = make(store, rank, size, timedelta(seconds=60))
    group.barrier().wait()
    del group
    store.set(f"passed/{rank}", "")
    store.wait([f"passed/{other}" for other in range(size)], timedelta(seconds=60))


def test_group__may_go_out_of_scope_right_after_its_last_collective(key_file: str) -> None:
    """Its process lives on: nothing else would send what others wait for."""
    for outcome in run_ranks(drop_a_group, 4, 4, key_file=key_file, context=FORKED):
        assert outcome.error is None, outcome.error
