"""Starting a benchmark's ranks with mpirun, and ending them all when one fails."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from _backends import abort_if_mpi

MPIRUN: Final = Path(__file__).parent.parent / "tools" / "mpirun.sh"


def start_ranks(script: str, numbers: Sequence[int]) -> tuple[int, list[Any]]:
    """Run a script with this command line's options, once with each number of ranks.

    Returns the first exit status that is not 0, and what each run wrote as JSON.
    """
    documents, status = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for ranks in numbers:
            report = Path(folder) / f"{ranks}.json"
            command = [str(MPIRUN), "-n", str(ranks), sys.executable, script, *sys.argv[1:]]
            ended = subprocess.run([*command, "--json", str(report)], check=False)
            status = status or ended.returncode
            if report.exists():
                documents.append(json.loads(report.read_text()))
    return status, documents


def run_as_rank(measure: Callable[[], int]) -> int:
    """Return the exit status of what one rank does; all ranks end when it fails."""
    try:
        return measure()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        abort_if_mpi()
        return 1
