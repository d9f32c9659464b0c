"""The network measurements, tiny, so that none of them rots."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jobs import run_job
from testbed.namespaces import why_not

REASON = why_not()
EXPERIMENTS = ("paths", "loss", "timeline", "incast", "windows")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.usefixtures("clean_environment"),
]


def test_network__measures_and_draws_everything(tmp_path: Path) -> None:
    output = run_job(
        [sys.executable, "bench/network.py", "--tiny", "--out", str(tmp_path)], timeout_s=280.0
    )
    for name in EXPERIMENTS:
        assert f"==> {name}" in output
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
        assert (tmp_path / f"{name}.svg").stat().st_size > 5_000
    rows = json.loads((tmp_path / "loss.json").read_text())["rows"]
    assert {(row["backend"], row["loss"]) for row in rows} == {
        (backend, loss) for backend in ("securefabric", "gloo") for loss in (0.0, 0.01)
    }
    assert all(row["goodput_mbit"] > 0 for row in rows)
