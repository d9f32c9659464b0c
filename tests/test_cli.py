from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from securefabric import __version__, cli, doctor
from securefabric._core import JobKey
from securefabric.identity import read_key_text


def test_keygen__writes_a_key_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my keys"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert cli.main(["keygen", "job.key", "--suite", "chacha20-poly1305"]) == 0
    path = str(folder / "job.key")
    key = JobKey(read_key_text(path))
    said = capsys.readouterr().out
    assert key.suite == "chacha20-poly1305"
    assert key.key_id in said
    assert f"export SECUREFABRIC_KEY_FILE='{path}'" in said


def test_keygen__a_suite_that_does_not_run_here_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "suite_refusal", lambda suite: "no AES instructions")
    assert cli.main(["keygen", str(tmp_path / "job.key")]) == 0
    assert "cannot run that suite: no AES instructions" in capsys.readouterr().err


def test_keygen__shows_no_part_of_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.key"
    cli.main(["keygen", str(path)])
    secret = path.read_text().split("key: ")[1].strip()
    shown = capsys.readouterr()
    assert not any(secret[i : i + 8] in shown.out + shown.err for i in range(len(secret) - 7))


def test_keygen__an_existing_file_is_an_error(
    key_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["keygen", key_file]) == 1
    assert "securefabric keygen: " in capsys.readouterr().err


def test_keygen__an_unknown_suite_names_the_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["keygen", str(tmp_path / "job.key"), "--suite", "none"])
    assert "aes-256-gcm" in capsys.readouterr().err


def test_help__teaches_the_first_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    for line in ("securefabric keygen job.key", "export SECUREFABRIC_KEY_FILE", "torchrun"):
        assert line in said


def test_module__runs_as_python_m() -> None:
    command = [sys.executable, "-m", "securefabric", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"securefabric {__version__}"


@pytest.mark.parametrize(("verdict", "status"), [("ok", 0), ("note", 0), ("FAIL", 1)])
def test_doctor__status_says_whether_a_job_can_start(
    verdict: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finding = doctor.Finding(topic="GSO", detail="offered", verdict=verdict)
    monkeypatch.setattr(doctor, "examine", lambda: [finding])
    assert cli.main(["doctor"]) == status
    assert capsys.readouterr().out == f"{finding}\n"
