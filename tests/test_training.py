"""The main job: data-parallel training whose gradients cross the network sealed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jobs import mpirun, run_job, torchrun

RANKS = 2

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_environment")]


@dataclass(frozen=True)
class Training:
    """What a run of the example left behind."""

    output: str
    parameters: dict[str, torch.Tensor]

    def value_of(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found is not None, self.output
        return found.group(1)

    @property
    def accuracy(self) -> float:
        return float(self.value_of(r"test accuracy ([\d.]+)"))

    @property
    def digest(self) -> str:
        return self.value_of(r"sha256 (\w+), the same on 2 ranks")


def train(
    launcher: Callable[[int], list[str]], folder: Path, key_file: str, backend: str
) -> Training:
    saved = folder / f"{backend}.pt"
    script = ["examples/train_digits.py", "--backend", backend, "--save", str(saved)]
    output = run_job([*launcher(RANKS), *script], key_file=key_file)
    return Training(output, torch.load(saved))


def test_training_is_sealed_exact_and_the_same_under_every_launcher(
    tmp_path: Path, key_file: str
) -> None:
    sealed = train(torchrun, tmp_path, key_file, "securefabric")
    assert sealed.accuracy > 0.95
    assert [line.split()[3] for line in sealed.output.splitlines() if " loss " in line]
    summaries = re.findall(r"rank (\d) of 2: .*\n +sealed +([\d,]+) packets", sealed.output)
    assert [rank for rank, _ in summaries] == ["0", "1"]
    assert all(int(packets.replace(",", "")) > 100 for _, packets in summaries)
    assert sealed.output.count(" 0 authentication failures") == RANKS

    in_the_clear = train(torchrun, tmp_path, key_file, "gloo")
    assert in_the_clear.accuracy == sealed.accuracy
    for name, parameter in sealed.parameters.items():
        torch.testing.assert_close(
            parameter, in_the_clear.parameters[name], rtol=1e-4, atol=1e-5, msg=name
        )

    under_mpi = train(mpirun, tmp_path, key_file, "securefabric")
    assert under_mpi.digest == sealed.digest


ENDS_ITS_THREADS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, "examples")
import train_digits
sys.argv = ["train_digits.py", "--backend", "gloo", "--epochs", "1"]
train_digits.main()
def left():
    for task in Path("/proc/self/task").iterdir():
        try:
            name = task.joinpath("comm").read_text().strip()
        except OSError:
            continue  # it has just ended
        if "gloo" in name:
            yield name
until = time.monotonic() + 5  # a thread that was joined is listed for a moment
while list(left()) and time.monotonic() < until:
    time.sleep(0.05)
print("left:", sorted(left()))
"""


def test_training_in_the_clear_ends_its_threads(tmp_path: Path) -> None:
    """A thread of Gloo's that needs the interpreter while the process ends aborts it."""
    script = tmp_path / "rank.py"
    script.write_text(ENDS_ITS_THREADS)
    assert "left: []" in run_job([*torchrun(1), str(script)])
