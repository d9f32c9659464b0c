from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from securefabric.errors import ConfigError
from securefabric.launch import main, prepare_environment, reserve_port

pytestmark = pytest.mark.usefixtures("clean_environment")

MPIRUN = Path(sys.executable).parent / "mpirun"
MPIRUN_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "2",
    "SLURM_NODELIST": "node[07-09]",
}


def test_prepare_environment__what_is_set_stays() -> None:
    environment = dict(TORCHRUN)
    assert prepare_environment(environment) is None
    assert environment == TORCHRUN


def test_prepare_environment__slurm_needs_no_mpi() -> None:
    environment = dict(SLURM)
    assert prepare_environment(environment) is None
    port = environment.pop("MASTER_PORT")
    assert 20_000 <= int(port) < 32_000
    assert environment == {
        **SLURM,
        "RANK": "3",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node07",
    }


def test_prepare_environment__all_ranks_of_a_slurm_step_agree() -> None:
    environments = [{**SLURM, "SLURM_PROCID": str(rank)} for rank in range(6)]
    for environment in environments:
        prepare_environment(environment)
    assert len({environment["MASTER_PORT"] for environment in environments}) == 1


def test_prepare_environment__without_a_launcher_it_is_a_world_of_one() -> None:
    environment: dict[str, str] = {}
    assert prepare_environment(environment) is None
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "1")
    assert environment["MASTER_ADDR"] == "127.0.0.1"


def test_prepare_environment__init_env_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT are not set"):
        prepare_environment({"RANK": "0", "WORLD_SIZE": "1"}, "env")


def test_prepare_environment__half_of_torchruns_variables_is_an_error() -> None:
    with pytest.raises(ConfigError, match="torchrun says rank 0 of 2, but MASTER_ADDR"):
        prepare_environment({"RANK": "0", "WORLD_SIZE": "2"})


def test_reserve_port__others_are_not_given_it_and_a_store_can_take_it() -> None:
    port = reserve_port("127.0.0.1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert other.getsockname()[1] != port
    store = TCPStore("127.0.0.1", port, 1, True, timedelta(seconds=5))
    assert store.port == port


def test_reserve_port__each_is_another() -> None:
    ports = [reserve_port("127.0.0.1") for _ in range(20)]
    assert len(set(ports)) == 20


SCRIPT = """
import os, sys
from helper_beside_the_script import greeting
print(greeting, __name__, sys.argv[1:], os.environ["RANK"], os.environ["WORLD_SIZE"], flush=True)
if "fail" in sys.argv and os.environ["RANK"] == "1":
    raise ValueError("rank 1 fails")
if "stop" in sys.argv:
    sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "helper_beside_the_script.py").write_text("greeting = 'hello'\n")
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return str(path)


def launch(
    *arguments: str, environment: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "securefabric.launch", *arguments]
    return subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_main__runs_the_script_as_main_with_its_arguments(script: str) -> None:
    done = launch(script, "--epochs", "3", "--init", "x")
    assert done.stdout == "hello __main__ ['--epochs', '3', '--init', 'x'] 0 1\n", done.stderr
    assert done.returncode == 0


def test_main__runs_a_module(script: str) -> None:
    folder = str(Path(script).parent)
    done = launch("-m", "train", "a", environment={"PYTHONPATH": folder})
    assert done.stdout == "hello __main__ ['a'] 0 1\n", done.stderr


def test_main__exit_status_is_the_scripts(script: str) -> None:
    assert launch(script, "stop").returncode == 3


def test_main__unusable_environment_is_an_error_without_a_traceback(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([script]) == 2
    assert "torchrun says rank 7 of 2" in capsys.readouterr().err


needs_mpirun = pytest.mark.skipif(
    not MPIRUN.exists() and shutil.which("mpirun") is None, reason="no mpirun here"
)


def mpirun(ranks: int) -> tuple[str, ...]:
    path = str(MPIRUN) if MPIRUN.exists() else "mpirun"
    return (path, "--oversubscribe", "--bind-to", "none", "-n", str(ranks))


@needs_mpirun
def test_main__under_mpirun_every_rank_gets_its_place(script: str) -> None:
    done = launch(script, "x", prefix=mpirun(3), environment=MPIRUN_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"hello __main__ ['x'] {r} 3" for r in range(3)]


@needs_mpirun
def test_main__under_mpirun_a_failing_rank_ends_the_job(script: str) -> None:
    done = launch(script, "fail", prefix=mpirun(3), environment=MPIRUN_ENVIRONMENT)
    assert done.returncode != 0
    assert "ValueError: rank 1 fails" in done.stderr
