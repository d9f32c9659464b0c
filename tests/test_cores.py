from __future__ import annotations

import os
from pathlib import Path

import pytest

from securefabric import _cores
from securefabric._cores import propose_engines, usable_cores
from securefabric.options import Options

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 6),
        ("250000 100000", 2),
        ("900000 100000", 6),  # more than there are
        ("50000 100000", 1),  # half a core is one that is not always there
        ("", 6),
        ("nonsense", 6),
        (None, 6),  # no cgroup v2
    ],
)
def test_usable_cores__affinity_and_quota(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))
    quota_file = tmp_path / "cpu.max"
    if quota is not None:
        quota_file.write_text(quota + "\n")
    assert usable_cores(quota_file) == cores


@pytest.mark.parametrize(
    ("cores", "local_world_size", "ports", "engines"),
    [
        (16, 1, "", 4),
        (16, 4, "", 4),
        (16, 8, "", 2),
        (16, 9, "", 1),
        (2, 4, "", 1),
        (16, 0, "", 1),  # nobody knows who shares them
        (16, 2, "40000-40005", 1),  # 3 sockets each
        (16, 2, "40000-40017", 3),
        (16, 2, "40000", 1),  # too few for any; the core says so
    ],
)
def test_propose_engines(
    cores: int, local_world_size: int, ports: str, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cores, "usable_cores", lambda: cores)
    monkeypatch.setattr(_cores, "_interfaces", lambda _grammar: 1)
    assert propose_engines(Options(key_file="job.key", ports=ports), local_world_size) == engines


@pytest.mark.parametrize(("interfaces", "engines"), [(1, 4), (16, 4), (20, 3), (40, 1), (100, 1)])
def test_propose_engines__an_entry_has_room_for_so_many_sockets(
    interfaces: int, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cores, "usable_cores", lambda: 16)
    monkeypatch.setattr(_cores, "_interfaces", lambda _grammar: interfaces)
    assert propose_engines(Options(key_file="job.key"), 2) == engines
