"""The simulator's command line: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from securefabric import _core
from securefabric.simulate import KINDS, main
from securefabric.simulate.measures import MEASURES, Criterion, measure
from securefabric.simulate.scenario_file import load, shipped
from securefabric.simulate.workers import run_seeds

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
    assert "goodput_mbit" in line(out, "figures")
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
    hopeless = ["--ranks", "2", "--loss", "1", "--time-limit-s", "2", "--seed", "5"]
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


def test_main__many_seeds_in_processes_print_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--op", "mixed", "--count", "100", "--seeds", "5", "--workers", "2", *STORM]
    status, out, err = run(capsys, *arguments)
    assert (status, out, err) == (0, "5 of 5 seeds are right\n", "")


def test_main__many_seeds_name_those_that_fail(capsys: pytest.CaptureFixture[str]) -> None:
    hopeless = ["--ranks", "2", "--loss", "1", "--time-limit-s", "1"]
    status, out, err = run(capsys, *hopeless, "--seed", "8", "--seeds", "2", "--workers", "1")
    assert (status, out) == (1, "0 of 2 seeds are right\n")
    for seed in (8, 9):
        assert f"seed {seed} fails:" in err
        assert f"--loss 1 --seed {seed}" in err


@pytest.mark.slow
def test_soak__a_few_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "soak", "--seed", "1001", "--seeds", "40")
    assert status == 0, err
    assert out == "40 of 40 seeds are right\n"


def test_soak__a_seed_says_what_it_drew(capsys: pytest.CaptureFixture[str]) -> None:
    _, shown, _ = run(capsys, "soak", "--seed", "7", "--show")
    status, out, _ = run(capsys, "soak", "--seed", "7")
    assert status == 0
    words = shlex.split(shown)
    assert words[:3] == ["python", "-m", "securefabric.simulate"]
    _, same, _ = run(capsys, *words[3:])
    assert line(same, "trace") == line(out, "trace")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ranks", "0"], "ranks must be a whole number, 1 to 4096, not 0"),
        (["--ranks", "2.5"], "ranks must be a whole number"),
        (["--loss", "2"], "loss must be 0 to 1, not 2"),
        (["--latency-us", "0"], "latency_us must be 0.001 to"),
        (["--jitter-us", "-1"], "jitter_us must be 0 to"),
        (["--dtype", "complex64"], "no dtype is named 'complex64'"),
        (["--reduce-op", "avg"], "no reduce_op is named 'avg'"),
        (["--dtype", "int8", "--reduce-op", "AVG"], "this reduce operator has no exact result"),
        (["--generation-bits", "2"], "generation_bits must be a whole number, 5 to 22"),
        (["--jobs", "3"], "4 ranks cannot be divided into 3 equal jobs"),
        (["--event", "at_ms=1 link=9 down=1"], "there is no link 9: they are 0 to 3"),
        (["--event", "now"], "'now' is not key=value"),
        (["link-cutt"], "no scenario is named 'link-cutt' (did you mean 'link-cut'?)"),
        (["missing.toml"], "cannot read scenario missing.toml: No such file"),
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
    for word in ("--loss", "Things to try", "Exit status", "--generation-bits", "--in-rate-mbit"):
        assert word in text


def test_scenario__every_setting_reaches_the_replay_command() -> None:
    scenario = _core.Scenario()
    scenario.op = "gather"
    narrow = {"generation_bits": 6, "burst_segments": 6, "datagram_bytes": 1200, "bad_loss": 0.5}
    for _section, _name, flag, _help, usual, whole in _core.scenario_knobs():
        bare = flag.removeprefix("in_").removeprefix("out_")
        other = narrow.get(bare, usual + (1 if whole else 0.5))
        scenario[flag] = other
        assert scenario[flag] == other
        option = f" --{flag.replace('_', '-')} "
        assert option in scenario.replay_command(), option
    scenario.add_event("at_ms=5 down=1")
    assert "--event 'at_ms=5 down=1'" in scenario.replay_command()


# Scenario files


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


SMALL = """
about = "A small job"
ideal_mbit = 400
expect = ["timeouts == 0 at 0", "goodput_of_ideal < 1", "goodput_of_first == 7 at 0.1"]
[job]
ranks = 2
op = "all_reduce"
count = 20_000
dtype = "int32"
[link]
rate_mbit = 200
[[event]]
at_ms = 1
link = 1
latency_us = 100
[sweep]
loss = [0, 0.1]
"""


def test_file__points_and_criteria_are_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = run(capsys, write(tmp_path, SMALL))
    assert (status, err) == (3, "")  # results are right, a criterion is missed
    lines = out.splitlines()
    assert lines[0] == "A small job"
    assert lines[1].split()[:3] == ["loss", "result", "time_ms"]
    assert [row.split()[:2] for row in lines[2:4]] == [["0", "right"], ["0.1", "right"]]
    assert lines[4] == "met     every result exact, and no checker objects"
    assert lines[5] == "met     timeouts == 0 at 0: 0"
    assert lines[6].startswith("met     goodput_of_ideal < 1 [loss 0]: 0.")
    assert lines[8].startswith("MISSED  goodput_of_first == 7 at 0.1: 0.")


def test_file__command_line_replaces_settings_and_picks_points(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(tmp_path, SMALL)
    status, out, _ = run(capsys, path, "--loss", "0", "--json", "--seed", "4")
    assert status == 0
    report = json.loads(out)
    assert (report["scenario"], report["seed"]) == (path, 4)
    (point,) = report["points"]
    assert point["point"] == {"loss": 0}
    assert set(point["figures"]) <= set(MEASURES)
    assert point["by_link"]["0>1/0"]["bytes"] > 0
    assert [c["met"] for c in report["criteria"]] == [True, True]
    _, shown, _ = run(capsys, path, "--loss", "0.5", "--count", "77", "--show")
    assert "--count 77" in shown
    assert "--loss 0.5" in shown
    assert "--event 'at_ms=1 link=1 latency_us=100'" in shown


def test_file__failing_point_has_a_replay_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(tmp_path, '[job]\nranks = 2\nop = "barrier"\n[sweep]\nloss = [0, 1]\n')
    status, _, err = run(capsys, path, "--time-limit-s", "1")
    assert status == 1
    wanted = f"python -m securefabric.simulate {path} --time-limit-s 1 --loss 1 --seed 1"
    assert err.splitlines()[-1] == f"replay: {wanted}"
    status, _, again = run(capsys, *shlex.split(wanted)[3:])
    assert (status, again) == (1, err)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[link", "is not TOML"),
        ("[links]\nloss = 1", "nothing is named 'links' (did you mean 'link'?)"),
        ("[link]\nlos = 1", "[link] has no setting 'los' (did you mean 'loss'?)"),
        ('[link]\nloss = "1"', "link.loss must be a number, not '1'"),
        ("[job]\nop = 1", "job.op must be a word in quotes, not 1"),
        ("[job]\nop = 'gathr'", "no op is named 'gathr'"),
        ("[link]\nloss = 2", "loss must be 0 to 1, not 2"),
        ("[event]\nat_ms = 1", "events are written [[event]]"),
        ("[[event]]\nat_ms = 1\nlinks = 3", "'links' is neither at_ms, link"),
        ("[sweep]\nlos = [1]", "cannot sweep 'los' (did you mean 'loss'?)"),
        ("[sweep]\nloss = 1", "sweep.loss must be a list of numbers"),
        ("[sweep]\nloss = [0, 1]\ncount = [1]", "the lists of the sweep differ in length"),
        ("expect = ['fast']", "'fast' is no criterion; one reads 'timeouts == 0'"),
        ("expect = ['speed > 1']", "there is no measure 'speed'"),
        ("expect = ['time_ms > 1 at 3']\n[sweep]\nloss=[0]", "is at no value of the sweep"),
    ],
)
def test_file__error_says_where_and_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, wrong: str
) -> None:
    status, out, err = run(capsys, write(tmp_path, text))
    assert (status, out) == (2, "")
    assert "mine.toml" in err
    assert wrong in err


def test_list__names_and_explains_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--list")
    assert status == 0
    assert len(shipped()) >= 12
    for name in [*shipped(), "soak"]:
        assert len(line(out, name + " ")) > 20


@pytest.mark.parametrize("name", shipped())
def test_shipped__can_be_simulated_in_small(capsys: pytest.CaptureFixture[str], name: str) -> None:
    file = load(name)
    assert file.about
    status, _, err = run(capsys, name, "--show")
    assert (status, err) == (0, "")
    small = ["--count", "2000", "--operations", "1"]
    if "ranks" in file.points[0] or file.settings.get("ranks", 0) > 64:
        small += ["--ranks", "8"]
    status, _, err = run(capsys, name, *small)
    assert status in (0, 3), err


# Measures


def test_criterion__relations_and_places() -> None:
    first = {"goodput_mbit": 100.0, "time_ms": 5.0}
    figures = {"goodput_mbit": 80.0, "time_ms": 10.0}
    for text, value, met in [
        ("goodput_of_first >= 0.8", 0.8, True),
        ("time_ms_of_first < 2", 2.0, False),
        ("goodput_mbit == 80 at 0.5", 80.0, True),
        ("fairness > 0", None, False),
    ]:
        criterion = Criterion.parse(text)
        assert criterion.value(figures, first) == value
        assert criterion.is_met(value) is met
    assert Criterion.parse("time_ms < 1 at 1e-3").at == 0.001


def test_measure__failure_times_of_a_cut_and_a_repair() -> None:
    scenario = _core.Scenario()
    scenario.op, scenario.dtype, scenario.reduce_op = "all_reduce", "int32", "SUM"
    for flag, value in {
        "ranks": 2, "count": 500_000, "operations": 8, "rate_mbit": 100, "sample_ms": 1,
        "queue_bytes": 131_072,
    }.items():  # fmt: skip
        scenario[flag] = value
    scenario.add_event("at_ms=100 link=1 down=1")
    scenario.add_event("at_ms=250 link=1 down=0")
    report = _core.simulate(scenario)
    assert report.ok, report.failures
    figures = measure(report, ideal_mbit=800, events=scenario.events)
    assert 0 < figures["first_resend_ms"] < 150
    assert figures["recover_ms"] > 0
    assert figures["failback_ms"] > 0
    assert 0 < figures["goodput_of_ideal"] < 1
    assert figures["link_max_mean"] > 1
    assert figures["suspected"] >= 1


# Workers


def _task(argument: object, seed: int) -> list[str]:
    if seed == 3:
        os.kill(os.getpid(), signal.SIGABRT)
    return [f"{argument} {seed}"] if seed % 2 else []


def test_run_seeds__a_process_that_dies_is_a_failure_of_its_seed() -> None:
    outcomes = dict(run_seeds(_task, "odd", range(6), workers=2))
    assert outcomes == {
        0: [], 1: ["odd 1"], 2: [], 3: ["the process died (signal 6)"], 4: [], 5: ["odd 5"],
    }  # fmt: skip
