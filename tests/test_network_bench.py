"""The network measurements, tiny, so that none of them rots."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jobs import run_job
from testbed.namespaces import why_not

REASON = why_not()
EXPERIMENTS = (
    "paths",
    "loss",
    "timeline",
    "incast",
    "windows",
    "neighbours",
    "rekey",
    "bulk",
    "join",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.usefixtures("clean_environment"),
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_network__measures_and_draws(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "bench/network.py", "--tiny", "--only", name, "--out", str(tmp_path)]
    output = run_job(command, timeout_s=200.0)
    assert f"==> {name}" in output
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    measured = json.loads((tmp_path / f"{name}.json").read_text())
    assert measured["conditions"]["commit"]
    if name == "loss":
        rows = {(row["backend"], row["loss"]): row["goodput_mbit"] for row in measured["rows"]}
        assert set(rows) == {(b, loss) for b in ("securefabric", "gloo") for loss in (0.0, 0.01)}
        assert min(rows.values()) > 0
    if name == "join":
        joined = {(row["backend"], row["ranks"]): row["reduced_s"] for row in measured["rows"]}
        assert set(joined) == {(b, ranks) for b in ("securefabric", "gloo") for ranks in (2, 4)}
        assert min(joined.values()) > 0
    if name in ("rekey", "bulk"):
        rows = measured["rows"]
        assert set(rows) == {"kept", "changing"}
        kept, changing = (
            [row] if isinstance(row, dict) else row for row in (rows["kept"], rows["changing"])
        )
        assert not any(one["changes"] for one in kept)
        assert any(one["changes"] for one in changing)
