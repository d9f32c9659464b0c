"""Programs that name other backends: they run encrypted, or they do not run."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import FORKED
from ranks import Outcome, run_ranks
from torch.distributed.device_mesh import init_device_mesh

import securefabric
from securefabric import _strict
from securefabric.errors import ConfigError
from securefabric.launch import reserve_port

pytestmark = pytest.mark.usefixtures("clean_environment")


def run(function: Callable[..., Any], ranks: int, key_file: str, **settings: str) -> list[Any]:
    """Run a function on so many ranks and return what each of them returned."""
    outcomes: list[Outcome] = run_ranks(
        function, ranks, key_file=key_file, environment=settings, context=FORKED
    )
    for outcome in outcomes:
        assert outcome.error is None, outcome.details
    return [outcome.value for outcome in outcomes]


def check_sealed(group: Any = None) -> None:
    """Reduce over a group and check that it went by our fabric, and that nobody else is heard."""
    before = securefabric.stats().packets_sealed if dist.is_initialized() else 0
    tensor = torch.arange(50_000.0)
    dist.all_reduce(tensor, group=group)
    torch.testing.assert_close(tensor, torch.arange(50_000.0) * dist.get_world_size(group))
    assert securefabric.stats().packets_sealed > before
    assert tcp_ports() <= {int(os.environ["MASTER_PORT"])}


def tcp_ports() -> set[int]:
    """Return the ports that this process listens on or is connected to over TCP."""
    sockets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = descriptor.readlink().as_posix()
        except OSError:  # the one that listed the folder
            continue
        if target.startswith("socket:["):
            sockets.add(target[len("socket:[") : -1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split()[:10]
            if inode in sockets:
                is_listening = state == "0A"
                ports.add(int((local if is_listening else remote).rsplit(":", 1)[1], 16))
    return ports


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    for word in (*words, "in the clear", "strict"):
        assert word in str(caught.value)


# replace_gloo


def as_gloo(rank: int) -> None:
    securefabric.replace_gloo()
    securefabric.replace_gloo()  # once more changes nothing
    dist.init_process_group("gloo")
    assert dist.get_backend() == "gloo"
    assert isinstance(dist.group.WORLD._get_backend(torch.device("cpu")), dist.ProcessGroupGloo)
    check_sealed()
    check_sealed(dist.new_group([1, 0], backend="gloo"))
    alone = dist.new_group([1])
    if rank == 1:
        dist.barrier(group=alone)
    with torch.profiler.profile() as profile:
        dist.barrier()
    assert "gloo:barrier" in {event.name for event in profile.events()}
    dist.destroy_process_group()


def test_replace_gloo__an_unchanged_program_is_encrypted(key_file: str) -> None:
    run(as_gloo, 2, key_file)


def with_options(rank: int) -> None:
    securefabric.replace_gloo()
    options = securefabric.Options(key_file="/no/such/key")
    with pytest.raises(ConfigError, match="/no/such/key"):
        dist.init_process_group("gloo", pg_options=options)


def test_replace_gloo__our_options_count(key_file: str) -> None:
    run(with_options, 1, key_file)


def gloo_settings(rank: int) -> None:
    securefabric.replace_gloo()
    gloo: Any = dist.ProcessGroupGloo
    for options in (gloo.Options(), gloo._Options()):
        assert options._timeout == timedelta(minutes=30)
        assert options._devices == []
        assert options.global_ranks_in_group == []
    options._devices = [gloo.create_default_device(), gloo.create_device()]
    with pytest.warns(UserWarning, match=r"interface='lo'.*SECUREFABRIC_SOCKET_IFNAME"):
        options._devices.append(gloo.create_device(interface="lo"))
    assert all(isinstance(device, gloo.Device) for device in options._devices)
    options._threads, options._timeout = 8, timedelta(seconds=50)
    dist.init_process_group("gloo", pg_options=options)
    store = dist.PrefixStore("by hand", dist.distributed_c10d._get_default_store())
    group = gloo(store, rank, 2, options)
    assert group.options._timeout == timedelta(seconds=50)
    tensor = torch.ones(3)
    group.allreduce([tensor]).wait()
    assert float(tensor[0]) == 2.0
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=40))
    backend: Any = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.options._timeout == timedelta(seconds=40)
    assert isinstance(backend.create_device(), gloo.Device)
    assert isinstance(backend.create_default_device(), gloo.Device)
    check_sealed()
    dist.destroy_process_group()


def test_replace_gloo__its_options_and_devices_are_there(key_file: str) -> None:
    run(gloo_settings, 2, key_file)


def too_late(rank: int) -> None:
    dist.init_process_group("gloo")
    with pytest.raises(ConfigError, match="a gloo group exists already and would go on"):
        securefabric.replace_gloo()
    with pytest.raises(ConfigError, match="'gloo' that exists already"):
        securefabric.strict()
    dist.destroy_process_group()


def test_replace_gloo__is_refused_once_there_is_a_group(key_file: str) -> None:
    run(too_late, 1, key_file)


def by_hand(rank: int) -> None:
    securefabric.replace_gloo()
    dist.init_process_group("gloo")
    if rank > 0:
        store = dist.PrefixStore("by hand", dist.distributed_c10d._get_default_store())
        group = dist.ProcessGroupGloo(store, rank - 1, 2)
        tensor = torch.tensor([float(rank)])
        group.allreduce([tensor]).wait()
        assert float(tensor) == 3.0
        assert group.options.global_ranks_in_group == [1, 2]
    dist.barrier()
    assert tcp_ports() <= {int(os.environ["MASTER_PORT"])}
    dist.destroy_process_group()


def test_replace_gloo__a_group_made_by_hand_finds_its_members(key_file: str) -> None:
    run(by_hand, 3, key_file)


# strict


def strict_defaults(rank: int) -> None:
    securefabric.strict()
    assert securefabric.is_strict()
    mesh = init_device_mesh("cpu", (2,))  # makes the default group, without a backend's name
    assert dist.get_backend() == "securefabric"
    check_sealed()
    check_sealed(mesh.get_group())
    check_sealed(dist.new_group(backend="gloo"))
    mixed = dist.new_group(backend="cpu:gloo,cuda:securefabric")
    check_sealed(mixed)
    dist.destroy_process_group()


def test_strict__what_nobody_chose_is_encrypted(key_file: str) -> None:
    run(strict_defaults, 2, key_file)


def strict_detail(rank: int) -> None:
    securefabric.strict()
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    dist.init_process_group("securefabric")
    check_sealed()  # after the wrapper has compared the call's arguments over its own group
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, {"rank": rank})
    assert gathered == [{"rank": 0}, {"rank": 1}]
    dist.destroy_process_group()


def test_strict__the_mesh_behind_detail_is_encrypted(key_file: str) -> None:
    run(strict_detail, 2, key_file)


def strict_refusals(rank: int) -> None:
    real_gloo = dist.ProcessGroupGloo
    dist.Backend.register_backend("foreign", lambda *_: None, devices=["cpu"])
    securefabric.strict()
    for backend in ("nccl", "mpi", "ucc", "foreign", "cpu:gloo,cuda:nccl"):
        name = backend.rpartition(":")[2]
        refused(lambda backend=backend: dist.init_process_group(backend), name, "securefabric")
    refused(lambda: real_gloo(dist.HashStore(), 0, 1), "gloo")
    from torch.distributed import rpc

    refused(lambda: rpc.init_rpc("worker", rank=0, world_size=1), "rpc")
    dist.init_process_group("fake", rank=0, world_size=8)  # moves nothing
    dist.destroy_process_group()
    dist.init_process_group("securefabric")
    refused(lambda: dist.new_group(backend="nccl"), "nccl")
    dist.destroy_process_group()


def test_strict__refuses_what_would_send_in_the_clear(key_file: str) -> None:
    run(strict_refusals, 1, key_file)


def strict_store(rank: int) -> None:
    securefabric.strict()
    _strict.is_one_host = lambda *_: False  # as if the others were elsewhere
    refused(lambda: dist.init_process_group("securefabric"), "TCPStore", "securefabric://")
    url = f"securefabric://127.0.0.1:{reserve_port('127.0.0.1')}"
    dist.init_process_group("securefabric", init_method=url)
    dist.destroy_process_group()


def test_strict__refuses_a_store_in_the_clear_between_hosts(key_file: str) -> None:
    run(strict_store, 1, key_file)


def strict_by_other_ways(rank: int) -> None:
    securefabric.strict()
    _strict.is_one_host = lambda *_: False  # as if the others were elsewhere
    plain = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    made = dist.ProcessGroupGloo
    from torch.distributed import _dist2

    file = dist.FileStore(str(Path(os.environ["SECUREFABRIC_KEY_FILE"]).parent / "store"), 1)
    refused(lambda: _dist2.new_group("gloo", timedelta(seconds=20), "cpu"), "TCPStore at ")
    refused(lambda: made(dist.PrefixStore("by hand", plain), 0, 1), "TCPStore at 127.0.0.1")
    refused(
        lambda: dist.init_process_group("securefabric", store=file, rank=0, world_size=1),
        "FileStore",
        "other hosts may share",
    )
    dist.init_process_group("securefabric", store=dist.HashStore(), rank=0, world_size=1)
    refused(lambda: made(plain, 0, 1), "TCPStore")
    dist.destroy_process_group()


def test_strict__a_store_in_the_clear_is_refused_whoever_makes_the_group(key_file: str) -> None:
    run(strict_by_other_ways, 1, key_file)


def strict_since_the_import(rank: int) -> None:
    os.environ["SECUREFABRIC_STRICT"] = "1"
    dist.init_process_group("securefabric")
    assert securefabric.is_strict()
    refused(lambda: dist.new_group(backend="nccl"), "nccl")
    dist.destroy_process_group()


def test_strict__set_after_the_import_counts_from_our_first_group(key_file: str) -> None:
    run(strict_since_the_import, 1, key_file)


def strict_too_late(rank: int) -> None:
    dist.init_process_group("gloo")
    refused(securefabric.strict, "gloo", "before any group")
    assert not securefabric.is_strict()


def test_strict__refuses_to_come_after_a_group_in_the_clear(key_file: str) -> None:
    run(strict_too_late, 1, key_file)


SCRIPT = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import securefabric
assert securefabric.is_strict()
assert dist.group.WORLD._get_backend(torch.device("cpu")).__class__.__module__ == "securefabric._C"
"""


@pytest.mark.parametrize("autoload", ["1", "0"])
@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        "import securefabric",
        "import securefabric.errors",
        "import securefabric.launch",
        "import securefabric.cli",
    ],
)
def test_strict__from_the_environment(first: str, autoload: str, key_file: str) -> None:
    if (first, autoload) == ("import torch", "0"):
        first = "import torch, securefabric"  # without that, nothing of ours runs
    done = subprocess.run(
        [sys.executable, "-c", first + SCRIPT],
        env={
            **os.environ,
            "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload,
            "SECUREFABRIC_STRICT": "1",
            "SECUREFABRIC_KEY_FILE": key_file,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def detail_in_the_clear(rank: int) -> list[str]:
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dist.init_process_group("securefabric")
    dist.destroy_process_group()
    return [str(warning.message) for warning in caught]


def test_detail__without_strict_mode_warns_of_its_mesh(key_file: str) -> None:
    (messages,) = run(detail_in_the_clear, 1, key_file)
    assert any("TORCH_DISTRIBUTED_DEBUG=DETAIL" in text for text in messages), messages
