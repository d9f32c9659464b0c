"""Runs scripts of this repository as jobs of several ranks, started by each launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def torchrun(ranks: int) -> list[str]:
    """The start of a command line that runs a script on so many ranks of this host."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # "--": torchrun would take the script's --max for an abbreviation of one of its own options.
    return [*command, "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks), "--"]


def mpirun(ranks: int) -> list[str]:
    """The same, by MPI."""
    return [str(ROOT / "tools" / "mpirun.sh"), "-n", str(ranks), sys.executable]


def run_job(command: list[str], *, key_file: str = "", timeout_s: float = 120.0) -> str:
    """Run a command in the repository and return what it printed; fails with it otherwise."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if key_file:
        environment["SECUREFABRIC_KEY_FILE"] = key_file
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout
