"""Tuning files, and the command that measures them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import FORKED
from jobs import mpirun, run_job, torchrun
from ranks import join, run_ranks
from steady import check_outcomes

from securefabric.errors import ConfigError
from securefabric.tune import best_cut, main, make_call, merge, parse_arguments
from securefabric.tuning import TUNABLE, TuningRow, read_tuning, tuning_digest, write_tuning

pytestmark = pytest.mark.usefixtures("clean_environment")

ROWS = [TuningRow("all_reduce", 2, 65536), TuningRow("all_gather", 4, 0, 16)]


# Files


def test_read_tuning__what_write_tuning_wrote(tmp_path: Path) -> None:
    path = str(tmp_path / "tuning.json")
    write_tuning(path, ROWS, "here, today")
    assert read_tuning(path) == sorted(ROWS)
    assert json.loads(Path(path).read_text())["made_on"] == "here, today"
    assert read_tuning("") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "not usable"),
        ("[]", "no tuning file of version 1"),
        ('{"version": 2, "rows": []}', "no tuning file of version 1"),
        ('{"version": 1, "rows": 3}', "no list"),
        ('{"version": 1, "rows": [3]}', "row 0"),
        ('{"version": 1, "rows": [{"operation": "send", "ranks": 2, "small_bytes": 1}]}', "'send'"),
        (
            '{"version": 1, "rows": [{"operation": "reduce", "ranks": 2, "small_bytes": -1}]}',
            "row 0: small_bytes -1",
        ),
        (
            '{"version": 1, "rows": [{"operation": "reduce", "ranks": true, "small_bytes": 1}]}',
            "row 0: ranks True",
        ),
        (json.dumps({"version": 1, "rows": [vars(ROWS[0])] * 2}), "all_reduce for 2 ranks"),
        (" " * (1 << 20) + "{}", "more than"),
    ],
)
def test_read_tuning__says_what_is_wrong(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"securefabric\.tune") as raised:
        read_tuning(str(path))
    assert str(path) in str(raised.value)
    assert why in str(raised.value)


def test_read_tuning__file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*SECUREFABRIC_TUNING_FILE"):
        read_tuning(str(tmp_path / "none.json"))


def test_tuning_digest__of_the_rows_in_any_order() -> None:
    assert tuning_digest(ROWS) == tuning_digest(ROWS[::-1])
    assert tuning_digest([]) == b""
    others = [ROWS[:1], [*ROWS, TuningRow("reduce", 2, 1)], [TuningRow("all_reduce", 2, 65537)]]
    assert len({tuning_digest(rows) for rows in [ROWS, *others]}) == 4


# Choosing


@pytest.mark.parametrize(
    ("small", "large", "cut"),
    [
        ([1, 2, 9], [2, 3, 4], 2),
        ([1, 2, 3], [2, 3, 4], 3),
        ([2, 3, 4], [1, 2, 3], 0),
        # One odd size does not decide: what it would gain is lost on the others.
        ([1, 1, 1, 8], [2, 0.9, 2, 4], 3),
        ([], [], 0),
    ],
)
def test_best_cut__least_over_all_sizes(small: list[float], large: list[float], cut: int) -> None:
    assert best_cut(small, large) == cut


def test_merge__replaces_only_what_was_measured(tmp_path: Path) -> None:
    path = str(tmp_path / "tuning.json")
    merge(path, ROWS, [TuningRow("all_reduce", 2, 1), TuningRow("all_reduce", 3, 2)])
    assert read_tuning(path) == [
        ROWS[1],
        TuningRow("all_reduce", 2, 1),
        TuningRow("all_reduce", 3, 2),
    ]


def test_parse_arguments__names_the_operations(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["out.json", "--ops", "send"])
    assert "all_reduce" in capsys.readouterr().err


def test_main__refuses_several_engines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECUREFABRIC_ENGINES", "2")
    assert main([str(tmp_path / "tuning.json")]) == 2
    assert "the rows count bytes of one engine" in capsys.readouterr().err


# Jobs


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [mpirun, torchrun])
def test_tune__writes_a_file_that_a_job_takes(launcher: Any, key_file: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    write_tuning(str(path), [TuningRow("all_reduce", 7, 5)], "before")
    tiny = ["--seconds", "0.001", "--max-kib", "2", "--large-mib", "1"]
    command = [*launcher(3), "-m", "securefabric.tune", str(path), *tiny]
    if launcher is torchrun:
        command.remove("--")
    output = run_job(command, key_file=key_file)
    rows = read_tuning(str(path))
    assert {(row.operation, row.ranks) for row in rows} == {
        ("all_reduce", 7),
        *((operation, 3) for operation in TUNABLE),
    }
    assert len(output.splitlines()) == 1 + len(TUNABLE)
    environment = {"SECUREFABRIC_TUNING_FILE": str(path)}
    check_outcomes(
        run_ranks(
            reduce_at_all_sizes, 3, key_file=key_file, environment=environment, context=FORKED
        )
    )


def test_rows_of_every_extreme__give_exact_results(key_file: str, tmp_path: Path) -> None:
    for small in (0, 65536):
        path = str(tmp_path / f"{small}.json")
        write_tuning(path, [TuningRow(one, 2, small, 3) for one in TUNABLE], "a test")
        environment = {"SECUREFABRIC_TUNING_FILE": path}
        check_outcomes(
            run_ranks(
                reduce_at_all_sizes, 4, key_file=key_file, environment=environment, context=FORKED
            )
        )


def test_rows_out_of_range__are_refused_by_name(key_file: str, tmp_path: Path) -> None:
    path = str(tmp_path / "tuning.json")
    write_tuning(path, [TuningRow("reduce_scatter", 2, 65537)], "a test")
    outcomes = run_ranks(
        reduce_at_all_sizes,
        2,
        key_file=key_file,
        environment={"SECUREFABRIC_TUNING_FILE": path},
        context=FORKED,
    )
    for outcome in outcomes:
        assert outcome.error is not None
        assert "tuning of reduce_scatter for 2 ranks: small_bytes" in outcome.error


def reduce_at_all_sizes(rank: int) -> None:
    """Every tunable operation on few and on many elements; the results are what they must be."""
    join()
    ranks = dist.get_world_size()
    total = ranks * (ranks + 1) / 2
    for numel in (1, 5, 20_000, 70_000):
        own = torch.full((numel,), float(rank + 1))
        summed = own.clone()
        dist.all_reduce(summed)
        assert (summed == total).all()
        gathered = torch.empty(numel * ranks)
        dist.all_gather_into_tensor(gathered, own)
        assert (torch.arange(1.0, ranks + 1) == gathered.view(ranks, numel).T).all()
        scattered = torch.empty(numel)
        dist.reduce_scatter_tensor(scattered, own.repeat(ranks))
        assert (scattered == total).all()
        sent = own.clone()
        dist.broadcast(sent, 1)
        assert (sent == 2).all()
        reduced = own.clone()
        dist.reduce(reduced, 0)
        assert rank != 0 or (reduced == total).all()
    for operation in TUNABLE:
        make_call(operation, 4096, ranks)()
    dist.destroy_process_group()
