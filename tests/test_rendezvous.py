from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from jobs import mpirun, run_job, torchrun
from ranks import run_ranks

from securefabric.errors import ConfigError
from securefabric.launch import reserve_port
from securefabric.rendezvous import STORE_VARIABLE, rendezvous

pytestmark = pytest.mark.usefixtures("clean_environment")

LONG = timedelta(seconds=60)
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


@pytest.fixture
def environment(clean_environment: pytest.MonkeyPatch, key_file: str) -> pytest.MonkeyPatch:
    clean_environment.setenv("SECUREFABRIC_KEY_FILE", key_file)
    return clean_environment


def joined(url: str) -> tuple[Any, int, int]:
    return next(rendezvous(url, LONG))


def all_join(url: str, ranks: int) -> list[tuple[Any, int, int]]:
    """Every rank in a thread of its own."""
    places: list[tuple[Any, int, int]] = []

    def join(rank: int) -> None:
        places.append(joined(f"{url}?rank={rank}&world_size={ranks}"))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sorted(places, key=lambda place: place[1])


def test_rendezvous__rank_0_serves_whenever_it_comes(environment: pytest.MonkeyPatch) -> None:
    port = reserve_port("127.0.0.1")
    places = all_join(f"securefabric://127.0.0.1:{port}", 3)
    assert [place[1:] for place in places] == [(0, 3), (1, 3), (2, 3)]
    places[2][0].set("from", "2")
    assert places[1][0].get("from") == b"2"
    assert places[0][0].port == port
    assert [place[0].client.server is not None for place in places] == [True, False, False]


def test_rendezvous__once_only(environment: pytest.MonkeyPatch) -> None:
    handler = rendezvous("securefabric://127.0.0.1:0?rank=0&world_size=1", LONG)
    assert next(handler)[1:] == (0, 1)
    with pytest.raises(RuntimeError, match="cannot rendezvous a second time"):
        next(handler)


def test_rendezvous__the_launchers_variables_suffice(environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(reserve_port("127.0.0.1")),
    }.items():
        environment.setenv(name, value)
    store, rank, world_size = joined("securefabric://")
    assert (rank, world_size, store.host) == (0, 1, "127.0.0.1")


def test_rendezvous__without_a_launcher_it_is_a_world_of_one(
    environment: pytest.MonkeyPatch,
) -> None:
    assert joined("securefabric://")[1:] == (0, 1)


def test_rendezvous__slurm_tells_rank_host_and_port(environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_NODELIST": "localhost",
    }.items():
        environment.setenv(name, value)
    store, rank, world_size = joined("securefabric://")
    assert (rank, world_size, store.host, store.port) == (
        0,
        1,
        "localhost",
        20000 + 4711 * 7 % 12000,
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("securefabric://host:1?rank=0", "rank 0 of None; pass rank= and world_size="),
        ("securefabric://host:1?rank=2&world_size=2", "rank 2 of 2"),
        ("securefabric://host?rank=0&world_size=1", "expected securefabric://host:port"),
        ("securefabric://:1?rank=0&world_size=1", "expected securefabric://host:port"),
        ("securefabric://host:99999?rank=0&world_size=1", "[Pp]ort"),
        ("securefabric://host:1?rank=0&world_size=1&encrypt=0", "unknown parameters encrypt"),
        ("securefabric://127.0.0.1:0?rank=0&world_size=2", "port 0 means any free port"),
    ],
)
def test_rendezvous__unusable_urls_are_named(
    environment: pytest.MonkeyPatch, url: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        joined(url)


def test_rendezvous__a_misspelt_setting_is_no_silent_plaintext(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv(STORE_VARIABLE, "encrypt")
    with pytest.raises(ConfigError, match="SECUREFABRIC_STORE='encrypt': the only setting is"):
        joined("securefabric://127.0.0.1:0?rank=0&world_size=1")


def test_rendezvous__beside_a_plaintext_agent_store(environment: pytest.MonkeyPatch) -> None:
    """torchrun's own rendezvous has MASTER_PORT; the encrypted store's port is read from there."""
    agent = dist.TCPStore("127.0.0.1", 0, None, True, LONG, wait_for_workers=False)
    environment.setenv("MASTER_ADDR", "127.0.0.1")
    environment.setenv("MASTER_PORT", str(agent.port))
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "1")
    environment.setenv(AGENT_STORE, "True")
    store, _, _ = joined("securefabric://")
    assert store.port != agent.port
    assert agent.get("securefabric/store_port//") == str(store.port).encode()
    agent.set("securefabric/store_port//", "no port")
    environment.setenv("RANK", "1")
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="names b'no port' as the encrypted store's port"):
        joined("securefabric://")


# Whole jobs


def _train(_rank: int, folder: str) -> tuple[str, str]:
    """DDP, FSDP, a checkpoint and groups of their own, over groups that met in the store."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed import distributed_c10d
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("securefabric", timeout=LONG)
    replica = DistributedDataParallel(torch.nn.Linear(4, 2))
    replica(torch.ones(3, 4)).sum().backward()
    sharded = fully_shard(torch.nn.Linear(4, 2), mesh=init_device_mesh("cpu", (2,)))
    sharded(torch.ones(3, 4)).sum().backward()
    before = sharded.weight.full_tensor().clone()
    dcp.save({"model": sharded.state_dict()}, checkpoint_id=folder)
    torch.nn.init.zeros_(sharded.weight)
    state = {"model": sharded.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    assert torch.equal(state["model"]["weight"].full_tensor(), before)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dist.get_rank(), group=dist.new_group([0, 1]))
    assert gathered == list(range(dist.get_world_size()))
    dist.monitored_barrier(dist.new_group([0, 1], backend="gloo"))
    store: Any = distributed_c10d._get_default_store()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    dist.destroy_process_group()
    return type(store).__module__, str(store.host)


def test_env__is_the_encrypted_store_where_asked_for(tmp_path: Path, key_file: str) -> None:
    port = str(reserve_port("127.0.0.1"))
    outcomes = run_ranks(
        _train,
        2,
        str(tmp_path / "checkpoint"),
        key_file=key_file,
        environment={
            "MASTER_PORT": port,
            STORE_VARIABLE: "encrypted",
            AGENT_STORE: "False",
            "TORCH_DISTRIBUTED_DEBUG": "DETAIL",  # ProcessGroupWrapper and DDP's logger, in C++
            "GLOO_SOCKET_IFNAME": "lo",
        },
    )
    assert [outcome.error for outcome in outcomes] == [None, None], outcomes
    assert {outcome.value for outcome in outcomes} == {("securefabric._C", "127.0.0.1")}


SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
dist.init_process_group("securefabric", init_method=sys.argv[1] if len(sys.argv) > 1 else None)
total = torch.ones(1)
dist.all_reduce(total)
store = distributed_c10d._get_default_store()
while hasattr(store, "underlying_store"):
    store = store.underlying_store
line = f"rank {dist.get_rank()} {int(total)} {type(store).__module__}\\n"
sys.stdout.write(line)  # at once: launchers switch buffers off, and the other rank writes as well
sys.stdout.flush()
dist.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return str(path)


def check_ranks(output: str, ranks: int) -> None:
    lines = sorted(line for line in output.splitlines() if line.startswith("rank "))
    assert lines == [f"rank {rank} {ranks} securefabric._C" for rank in range(ranks)], output


def test_launchers__torchrun_with_its_own_rendezvous(script: str, key_file: str) -> None:
    check_ranks(run_job([*torchrun(2), script, "securefabric://"], key_file=key_file), 2)


def test_launchers__mpirun(script: str, key_file: str) -> None:
    check_ranks(run_job([*mpirun(2), script, "mpi://"], key_file=key_file), 2)


def test_launchers__mpirun_with_an_unchanged_script(script: str, key_file: str) -> None:
    launch = ["-m", "securefabric.launch", "--store", "encrypted", script]
    check_ranks(run_job([*mpirun(2), *launch], key_file=key_file), 2)


def test_launch__refuses_another_store(script: str) -> None:
    command = [sys.executable, "-m", "securefabric.launch", "--store", "plain", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'plain'" in done.stderr
