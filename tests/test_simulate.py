"""The simulator's command line: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from securefabric import _core
from securefabric.simulate import KINDS, main

STORM = ["--loss", "0.2", "--reorder", "0.2", "--duplicate", "0.2", "--corrupt", "0.01"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def line(text: str, name: str) -> str:
    return next(rest for rest in text.splitlines() if rest.startswith(name))[len(name) :].strip()


def test_main__storm_is_right_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--ranks", "4", "--op", "all_reduce", "--count", "20000", *STORM)
    assert (status, err) == (0, "")
    assert line(out, "result") == "right on every rank"
    assert float(line(out, "virtual time").split()[0]) > 0
    assert int(line(out, "packets").split()[0]) > 0
    assert "lost" in line(out, "network")
    assert "replay_duplicate" in line(out, "dropped")
    assert len(line(out, "trace")) == 16


def test_main__same_seed_same_output(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--op", "mixed", "--operations", "5", "--count", "5000", *STORM, "--seed"]
    first = run(capsys, *arguments, "3")
    assert first == run(capsys, *arguments, "3")
    assert first != run(capsys, *arguments, "4")


@pytest.mark.parametrize("op", [*KINDS, "mixed"])
def test_main__every_operation(capsys: pytest.CaptureFixture[str], op: str) -> None:
    status, out, err = run(capsys, "--ranks", "3", "--op", op, "--count", "1000", "--loss", "0.1")
    assert (status, err) == (0, "")
    assert line(out, "result") == "right on every rank"


def test_main__failure_exits_1_and_can_be_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    hopeless = ["--ranks", "2", "--loss", "1", "--time-limit", "2", "--seed", "5"]
    status, out, err = run(capsys, *hopeless)
    assert status == 1
    assert line(out, "result") == "WRONG"
    assert err.startswith("seed 5 fails:\n  rank ")
    assert "Timed out" in err
    replay = shlex.split(err.splitlines()[-1].removeprefix("replay: "))
    assert replay[:3] == ["python", "-m", "securefabric.simulate"]
    again = subprocess.run(
        [sys.executable, *replay[1:]], capture_output=True, text=True, check=False, timeout=60
    )
    assert (again.returncode, again.stdout, again.stderr) == (1, out, err)


def test_main__many_seeds_print_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--op", "mixed", "--count", "100", "--seeds", "5", *STORM)
    assert (status, out) == (0, "5 of 5 seeds are right\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ranks", "0"], "ranks must be 1 to 4096"),
        (["--ranks", "-1"], "incompatible function arguments"),
        (["--loss", "2"], "probabilities must be between 0 and 1"),
        (["--latency-us", "0"], "the latency must be more than 0"),
        (["--jitter-us", "-1"], "bad duration"),
        (["--dtype", "complex64"], "no dtype is named 'complex64'"),
        (["--reduce-op", "avg"], "no reduce_op is named 'avg'"),
        (["--dtype", "int8", "--reduce-op", "AVG"], "this reduce operator has no exact result"),
        (["--generation-bits", "2"], "generation bits must be 5 to 22"),
    ],
)
def test_main__bad_option_exits_2_and_says_why(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert text in err


def test_main__help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    text = capsys.readouterr().out
    for word in ("--loss", "Things to try", "Exit status", "--generation-bits"):
        assert word in text


def test_scenario__every_option_reaches_the_replay_command() -> None:
    scenario = _core.Scenario()
    assert scenario.replay_command() == (
        "python -m securefabric.simulate --ranks 2 --op mixed --count 10000 --seed 1"
    )
    scenario.op = "gather"
    scenario.loss_burst_us = 12.5
    scenario.mtu = 1500
    command = scenario.replay_command()
    for part in ("--op gather", "--loss-burst-us 12.5", "--mtu 1500"):
        assert part in command
