"""Every benchmark, tiny, so that none of them rots."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import ROOT, mpirun, run_job, torchrun
from testbed.namespaces import why_not

TINY = ["--iters", "2", "--warmup", "1"]
COLUMNS = ["size", "count", "type", "redop", "root", "p50", "p99", "algbw", "busbw", "#wrong"]
SUITE = "chacha20-poly1305"  # not the default, and it runs on any CPU
IS_NATIVE_BUILT = (ROOT / "build/native/bench_all_reduce_null").exists()

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_environment")]


def table_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line and not line.startswith("#")]


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


@pytest.mark.parametrize("backend", ["securefabric", "gloo", "mpi"])
def test_collectives__prints_the_columns_of_nccl_tests(backend: str, tmp_path: Path) -> None:
    report = tmp_path / "rows.json"
    script = ["bench/collectives.py", "--backend", backend, "--op", "all_reduce"]
    sizes = ["--min", "8", "--max", "64K", "--factor", "64"]
    output = run_job([*mpirun(2), *script, *sizes, *TINY, "--json", str(report)])
    assert output.splitlines()[1].lstrip("# ").split() == COLUMNS
    assert [row[0] for row in table_of(output)] == ["8", "512", "32768"]
    for row in rows_of(report):
        assert row["backend"] == backend
        assert row["wrong"] == 0
        assert row["iterations"] == 2
        assert row["p99_us"] >= row["p50_us"] > 0
        assert row["cpu_s_per_call"] > 0
        assert row["algbw_gb_s"] == pytest.approx(row["size_bytes"] / row["p50_us"] / 1e3)


def test_collectives__every_operation_under_torchrun(tmp_path: Path) -> None:
    report = tmp_path / "rows.json"
    script = ["bench/collectives.py", "--op", "all", "--min", "8", "--max", "4K"]
    run_job([*torchrun(3), *script, "--factor", "512", *TINY, "--json", str(report)])
    rows = rows_of(report)
    assert len({row["operation"] for row in rows}) == 10
    assert all(row["wrong"] == 0 for row in rows)
    factors = {
        row["operation"]: row["busbw_gb_s"] / row["algbw_gb_s"] for row in rows if row["size_bytes"]
    }
    assert factors["all_reduce"] == pytest.approx(4 / 3)
    assert factors["all_gather"] == pytest.approx(2 / 3)
    assert factors["broadcast"] == pytest.approx(1)


def test_collectives__average_of_halves_is_verified(tmp_path: Path) -> None:
    report = tmp_path / "rows.json"
    script = ["bench/collectives.py", "--op", "all_reduce,reduce_scatter", "--dtype", "bfloat16"]
    sizes = ["--redop", "avg", "--min", "1K", "--max", "1K"]
    run_job([*mpirun(3), *script, *sizes, *TINY, "--json", str(report)])
    assert [row["wrong"] for row in rows_of(report)] == [0, 0]


def test_compare__starts_the_ranks_and_prints_ratios(tmp_path: Path) -> None:
    report = tmp_path / "runs.json"
    work = ["--ops", "all_reduce,broadcast", "--sizes", "8,4K", "--rounds", "2", "--iters", "2"]
    script = [mpirun(1)[-1], "bench/compare.py", "--ranks", "2", *work, "--json", str(report)]
    output = run_job(script)
    assert "# securefabric / gloo, geometric mean over the sizes:" in output
    assert "# securefabric / mpi, geometric mean over the sizes:" in output
    [run] = json.loads(report.read_text())["runs"]
    assert run["ranks"] == 2
    assert len(run["comparisons"]) == 4
    for comparison in run["comparisons"]:
        rows, ratios = comparison["rows"], comparison["ratios"]
        assert {row["wrong"] for row in rows.values()} == {0}
        assert {row["iterations"] for row in rows.values()} == {4}
        assert min(row["cpu_s_per_call"] for row in rows.values()) > 0
        for rival in ("gloo", "mpi"):
            expected = rows["securefabric"]["p50_us"] / rows[rival]["p50_us"]
            assert ratios[rival] == pytest.approx(expected)


def test_ablations__every_variant_is_exact_and_compared(tmp_path: Path) -> None:
    if not IS_NATIVE_BUILT:
        pytest.skip("needs build/native, which `make native-test` builds")
    report = tmp_path / "rows.json"
    sizes = ["--ranks", "2", "--sizes", "8,1M", "--rounds", "1", "--seconds", "0.01"]
    output = run_job([sys.executable, "bench/ablations.py", *sizes, "--json", str(report)])
    rows = rows_of(report)
    assert all(row["wrong"] == 0 and row["cpu_s_per_call"] >= 0 for row in rows)
    assert {(row["variant"], row["against"], row["size_bytes"]) for row in rows} == {
        (variant, against, size)
        for variant, against in {
            "null": "null",
            "aegis-256x2": "null",
            "aes-256-gcm": "null",
            "one-path": "aegis-256x2",
            "no-gso": "aegis-256x2",
            "no-gro": "aegis-256x2",
            "no-offload": "aegis-256x2",
        }.items()
        for size in (8, 2**20)
    }
    assert len(table_of(output)) == len(rows)


def test_ablations__engines_without_a_core_are_left_out(
    bench: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ablations = bench("ablations")
    variants = list(ablations.ABLATIONS["engines"].variants)
    fitting = ablations.fitting(variants, 4, 15)
    assert [variant.name for variant in fitting] == ["1-engine", "2-engines"]
    notes = capsys.readouterr().out.splitlines()
    assert [note.split(":")[0] for note in notes] == [
        "# 4-engines left out on 4 ranks",
        "# 8-engines left out on 4 ranks",
    ]
    one = variants[:1]
    assert ablations.fitting(one, 4, 2) == one  # what the others are compared with


def runs_of(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return runs


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of bench/ into this process."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return __import__


def parse(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, script: str, *options: str
) -> Any:
    """What a script makes of a command line."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options])
    return bench(script).parse_arguments()


@pytest.mark.parametrize("script", ["compare", "collectives", "training"])
def test_device__cuda_needs_a_torch_that_has_it(
    script: str,
    bench: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse(bench, monkeypatch, script).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parse(bench, monkeypatch, script, "--device", "cuda").device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        parse(bench, monkeypatch, script, "--device", "cuda")
    assert ended.value.code == 2
    assert f"torch {torch.__version__} finds no CUDA here" in capsys.readouterr().err


def test_device__mpi_takes_no_tensors_on_a_gpu(
    bench: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    everywhere = parse(bench, monkeypatch, "compare")
    assert (everywhere.backends, everywhere.left_out) == (["securefabric", "gloo", "mpi"], ())
    on_gpu = parse(bench, monkeypatch, "compare", "--device", "cuda")
    assert (on_gpu.backends, on_gpu.left_out) == (["securefabric", "gloo"], ("mpi",))
    for command in (["compare", "--backends", "gloo,mpi"], ["collectives", "--backend", "mpi"]):
        with pytest.raises(SystemExit):
            parse(bench, monkeypatch, *command, "--device", "cuda")
        assert "mpi takes no tensors on a GPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gloo", "securefabric"])
def test_device__a_call_ends_when_the_gpu_has_the_result(
    name: str, bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[str] = []

    def fail() -> None:
        raise RuntimeError("unsupported device type")

    class Stream:
        def synchronize(self) -> None:
            history.append("synchronised")

    backends, operations = bench("_backends"), bench("_operations")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    backend = object.__new__(backends.TorchBackend)  # its group is not asked for anything
    backend.name, backend.device = name, torch.device("cuda", 0)
    sizes = {"dtype": torch.float32, "reduce_op": "sum", "rank": 0, "ranks": 2}
    case = operations.make_case(operations.OPERATIONS["all_reduce"], 64, **sizes)
    monkeypatch.setattr(backend, "_call_of", lambda _: lambda: history.append("called"))
    backend.bind(case)()
    assert history == ["called", "synchronised"]
    monkeypatch.setattr(backend, "_call_of", lambda _: fail)
    with pytest.raises(backends.Unsupported if name == "gloo" else RuntimeError):
        backend.bind(case)()


def test_take_turns__leaves_out_what_refuses_its_first_call(
    bench: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    class Alone:
        """A backend of one rank; its neighbour on another may be the one that refuses."""

        rank, ranks, device = 0, 1, torch.device("cpu")

        def __init__(self, name: str, neighbours_refusal: str) -> None:
            self.name, self.refusal = name, neighbours_refusal

        def bind(self, _: object) -> Callable[[], object]:
            return lambda: None

        def barrier(self) -> None:
            pass

        synchronise = barrier

        def all_gather(self, value: Any) -> list[Any]:
            return [value, self.refusal] if isinstance(value, str) else [value]

        def cpu_s(self) -> float:
            return 0.0

    measure, operations = bench("_measure"), bench("_operations")
    rows = measure.take_turns(
        [Alone("able", ""), Alone("unable", "no such tensors")],
        operations.OPERATIONS["all_reduce"],
        64,
        dtype=torch.float32,
        reduce_op="sum",
        turns=measure.Turns(rounds=1, iterations=2),
    )
    assert {name: row.wrong for name, row in rows.items()} == {"able": 0}
    assert "left out: no such tensors" in capsys.readouterr().err


def check_roofline(rows: list[dict[str, Any]]) -> None:
    assert {row["suite"] for row in rows} == {"aegis-256x2", "aes-256-gcm"}
    for row in rows:
        assert row["wrong"] == 0
        assert set(row["steps_us"]) == {"seal", "send", "receive", "open", "reduce", "copy"}
        assert all(cost > 0 for cost in row["steps_us"].values())
        assert row["share"] == pytest.approx(sum(row["steps_us"].values()) / row["p50_us"])


@pytest.mark.timeout(600)
def test_run__measures_everything_and_draws_it(bench: Callable[[str], Any], tmp_path: Path) -> None:
    steps = ["compare", "training", "wireguard", "plots"]
    if IS_NATIVE_BUILT:
        steps[3:3] = ["ablations", "engines", "roofline"]
    command = [sys.executable, "bench/run.py", "--tiny", "--suite", SUITE, "--out", str(tmp_path)]
    output = run_job([*command, "--only", ",".join(steps)], timeout_s=500.0)
    assert f"==> JSON and figures are in {tmp_path}" in output
    figures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    expected = {"compare-all_reduce-2-ranks.png", "training.png"}
    if IS_NATIVE_BUILT:
        expected |= {"ablations-2-ranks.png", "engines-2-ranks.png", "roofline.png"}
        rows = rows_of(tmp_path / "engines.json")
        assert [(row["engines"], row["wrong"]) for row in rows] == [(1, 0), (2, 0)]
        check_roofline(rows_of(tmp_path / "roofline.json"))
    [compared] = runs_of(tmp_path / "compare.json")
    assert len(compared["comparisons"]) == 2
    assert compared["machine"]["suite"] == SUITE
    [trained] = runs_of(tmp_path / "training.json")
    check_training(trained)
    reason = bench("_tunnel").why_no_tunnel() or why_not()
    if reason:
        assert f"# not compared with WireGuard: {reason}" in output
        assert not (tmp_path / "wireguard.json").exists()
    else:
        [tunnelled] = runs_of(tmp_path / "wireguard.json")
        check_wireguard(tunnelled)
        expected.add("wireguard-all_reduce-2-ranks.png")
    assert set(figures) == expected
    assert min(figures.values()) > 20_000


def test_run__names_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no mpirun, nor a shell to look for it
    command = [sys.executable, "bench/run.py", "--only", "compare", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout.endswith("    failed: compare\n")


def check_training(run: dict[str, Any]) -> None:
    rows = run["rows"]
    assert set(rows) == {"securefabric", "gloo", "no communication"}
    assert run["machine"]["suite"] == SUITE
    assert run["wrong_losses"] == 0
    assert run["model"]["gradient_bytes"] == 4 * run["model"]["parameters"] > 0
    for row in rows.values():
        assert row["steps"] == 3
        assert row["p99_us"] >= row["p50_us"] > 0
        assert row["cpu_s_per_step"] > 0
    losses = {name: row["losses"] for name, row in rows.items()}
    assert losses["securefabric"] == pytest.approx(losses["gloo"], rel=1e-3)
    assert losses["securefabric"][0] == losses["no communication"][0]
    assert losses["securefabric"][1:] != losses["no communication"][1:]  # gradients were averaged
    for rival, ratio in run["ratios"].items():
        assert ratio == pytest.approx(rows["securefabric"]["p50_us"] / rows[rival]["p50_us"])


def check_wireguard(run: dict[str, Any]) -> None:
    assert run["machine"]["wireguard"].startswith("wireguard-go")
    assert run["machine"]["suite"] == SUITE
    assert run["machine"]["tunnel_mtu"] < run["machine"]["link_mtu"]
    sizes = []
    for comparison in run["comparisons"]:
        rows = comparison["rows"]
        assert set(rows) == {"securefabric", "gloo", "gloo-wireguard"}
        assert {row["wrong"] for row in rows.values()} == {0}
        assert {row["iterations"] for row in rows.values()} == {4}
        assert set(comparison["ratios"]) == {"gloo", "gloo-wireguard"}
        sizes.append(rows["securefabric"]["size_bytes"])
    assert sizes == [8, 65536]


def test_training__counts_losses_that_differ(bench: Callable[[str], Any]) -> None:
    training = bench("training")

    def row(name: str, losses: list[float]) -> Any:
        times = {"p50_us": 1.0, "p99_us": 1.0, "cpu_s_per_step": 1.0}
        return training.StepRow(backend=name, steps=3, losses=losses, **times)

    rows = {
        "securefabric": row("securefabric", [5.0, 4.0, 3.0, 2.0]),
        "gloo": row("gloo", [5.0, 4.000001, 3.1, float("nan")]),
        training.ALONE: row(training.ALONE, [9.0, 9.0, 9.0, 9.0]),
    }
    assert training.count_wrong(rows) == 2


def test_wireguard__says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = tmp_path / "wireguard.json"
    output = run_job([sys.executable, "bench/wireguard.py", "--json", str(report)])
    assert output.startswith("# not compared with WireGuard: ")
    assert not report.exists()


def test_plots__draws_ablations(bench: Callable[[str], Any], tmp_path: Path) -> None:
    plots = bench("plots")
    times = {
        "null": (100.0, "null"),
        "aegis-256x2": (110.0, "null"),
        "aes-256-gcm": (130.0, "null"),
        "no-gso": (330.0, "aegis-256x2"),
        "no-gro": (220.0, "not measured"),
    }
    rows = [
        {"variant": variant, "against": against, "ranks": 2, "size_bytes": size}
        | {"p50_us": time, "p99_us": 2 * time, "cpu_s_per_call": time**2}
        for variant, (time, against) in times.items()
        for size in (65536, 8)
    ]
    [cost, cpu, parts] = plots.ablation_panels(rows)
    assert set(cost.lines) == set(cpu.lines) == {"aegis-256x2", "aes-256-gcm"}
    assert cost.lines["aegis-256x2"] == [(8, pytest.approx(1.1)), (65536, pytest.approx(1.1))]
    assert cpu.lines["aegis-256x2"] == [(8, pytest.approx(1.21)), (65536, pytest.approx(1.21))]
    assert parts.lines == {"no-gso": [(8, pytest.approx(3.0)), (65536, pytest.approx(3.0))]}
    document = {"machine": {"cores": 2}, "rows": rows}
    (tmp_path / "ablations.json").write_text(json.dumps(document))
    run_job([sys.executable, "bench/plots.py", str(tmp_path)])
    assert (tmp_path / "ablations-2-ranks.png").stat().st_size > 20_000
