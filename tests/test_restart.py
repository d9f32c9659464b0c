"""torchrun starts the ranks anew after one of them was killed: what survives, and what must not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from jobs import ROOT, run_job, torchrun
from torch._C._distributed_c10d import TCPStore

STEPS, DEATH_STEP = 6, 3

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_environment")]

ENDED = re.compile(
    r"rank (\d) ended: began at step (\d+), sent (\d+) again, dropped (\d+), sha256 ([0-9a-f]{64})"
)


def job(folder: Path, key_file: str, death_step: int) -> tuple[list[tuple[str, ...]], str]:
    folder.mkdir()
    *launch, last = torchrun(2)
    script = [str(ROOT / "tests/restart_job.py"), str(folder), str(STEPS), str(death_step)]
    command = [*launch, "--max-restarts", "1", last, *script]
    output = run_job(command, key_file=key_file, timeout_s=200.0)
    return [match.groups() for match in ENDED.finditer(output)], output


def test_restart__goes_on_where_it_was_and_takes_no_packet_of_the_former_ranks(
    tmp_path: Path, key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECUREFABRIC_DEATH_TIMEOUT_S", "4")
    undisturbed, _ = job(tmp_path / "undisturbed", key_file, -1)
    restarted, output = job(tmp_path / "restarted", key_file, DEATH_STEP)
    assert len(undisturbed) == len(restarted) == 2, output
    (digest,) = {ended[4] for ended in undisturbed}
    for _, began, resent, dropped, own_digest in restarted:
        assert int(began) == DEATH_STEP
        assert int(resent) > 0
        assert int(dropped) >= int(resent)
        assert own_digest == digest
    assert re.search(r"rank 0 noticed: PeerLost: rank 1 .* is lost", output), output


MEMBER = """
import os, sys, torch, torch.distributed as dist
from datetime import timedelta
import securefabric
securefabric.replace_gloo()
rank, port, is_second = map(int, sys.argv[1:])
store = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=60))
def reduce(name):
    group = dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, 2, timedelta(seconds=60))
    tensor = torch.ones(2)
    group.allreduce([tensor]).wait()
    return group
if not is_second:
    group = reduce("first")
    store.set(f"ready{rank}", "1")
    store.get("killed" if rank == 0 else "never")
    group.abort()
try:
    reduce("second")
except dist.DistBackendError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_restart__of_one_rank_alone_is_an_error_that_says_what_to_do(key_file: str) -> None:
    """As fault-tolerant trainers do it: abort, then a group by hand with a process in its place."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=90), wait_for_workers=False)
    environment = {
        **os.environ,
        "SECUREFABRIC_KEY_FILE": key_file,
        "SECUREFABRIC_DEATH_TIMEOUT_S": "5",
    }

    def start(rank: int, is_second: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MEMBER, str(rank), str(store.port), str(is_second)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    survivor, victim = start(0, 0), start(1, 0)
    store.wait(["ready0", "ready1"])
    victim.kill()
    victim.communicate()
    store.set("killed", "1")
    newcomer = start(1, 1)
    told = [process.communicate(timeout=120)[0] for process in (survivor, newcomer)]
    assert "PeerLost: rank 1 " in told[0]
    assert "rank 0 still holds the link to a former process of rank 1" in told[1]
    assert all("restart all ranks" in text for text in told)
