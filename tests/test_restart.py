"""torchrun starts the ranks anew after one of them was killed: what survives, and what must not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jobs import ROOT, run_job, torchrun

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
