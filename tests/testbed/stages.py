"""Lets a test and the ranks of its job take turns: the ranks reach a stage, the test changes the
network, the ranks go on. Files in a folder, so that it works across processes and namespaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 90.0


def wait_until(is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition under a deadline."""
    until = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < until, f"waited {patience_s} s for {what}"
        time.sleep(0.005)


class Stages:
    """One job's stages; both sides make their own from the same folder."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    # The ranks'

    def reach(self, stage: str, rank: int) -> None:
        """Say that this rank is there, and wait until the test lets it go on."""
        (self._folder / f"{stage}.{rank}").touch()
        wait_until(lambda: (self._folder / stage).exists(), f"the test to open {stage}")

    def is_open(self, stage: str) -> bool:
        """Whether the test has let this stage begin."""
        return (self._folder / stage).exists()

    # The test's

    def wait(self, stage: str, ranks: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until so many ranks have reached a stage."""
        pattern = f"{stage}.[0-9]*"
        wait_until(
            lambda: len(list(self._folder.glob(pattern))) >= ranks,
            f"{ranks} ranks to reach {stage}",
            patience_s,
        )

    def open(self, stage: str) -> None:
        """Let the ranks that have reached a stage go on."""
        (self._folder / stage).touch()
