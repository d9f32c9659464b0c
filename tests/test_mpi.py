from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from test_launch import MPIRUN_ENVIRONMENT, mpirun, needs_mpirun
from torch._C._distributed_c10d import TCPStore

from securefabric import _mpi
from securefabric.errors import AuthError, ConfigError

pytestmark = pytest.mark.usefixtures("clean_environment")


@dataclass
class FakeCommunicator:
    """One rank of a world in which the others say what ``told`` and ``others`` hold.

    It has no lower-case calls, which would unpickle what comes.
    """

    rank: int = 0
    size: int = 1
    others: list[list[str]] = field(default_factory=list)
    """Of each Allgather in turn, what all ranks say; what is missing is as this rank's."""
    told: list[bytes] = field(default_factory=list)
    """Of each Bcast in turn, what rank 0 says; on rank 0, what it said."""

    def Bcast(self, block: bytearray, root: int = 0) -> None:  # noqa: N802
        assert root == 0
        assert len(block) == _mpi.BLOCK_BYTES
        if self.rank == root:
            self.told.append(bytes(block).rstrip(b"\0"))
        else:
            block[:] = self.told.pop(0).ljust(_mpi.BLOCK_BYTES, b"\0")

    def Allgather(self, block: bytearray, blocks: bytearray) -> None:  # noqa: N802
        said = self.others.pop(0) if self.others else []
        all_blocks = [bytes(block)] * self.size
        for rank, text in enumerate(said):
            all_blocks[rank] = text.encode().ljust(_mpi.BLOCK_BYTES, b"\0")
        blocks[:] = b"".join(all_blocks)

    def Abort(self, code: int = 0) -> None:  # noqa: N802
        raise AssertionError(code)


def test_master_address__one_host_is_loopback() -> None:
    assert _mpi.master_address(FakeCommunicator(size=3, others=[["a", "a", "a"]])) == "127.0.0.1"


def test_master_address__variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.1.2.3")
    assert _mpi.master_address(FakeCommunicator(size=2, others=[["a", "b"]])) == "10.1.2.3"


def test_master_address__several_hosts_ask_the_routing_table() -> None:
    # "localhost" stands for another host: the route to it starts at a loopback address.
    communicator = FakeCommunicator(size=2, others=[["here", "localhost"]])
    assert _mpi.master_address(communicator) in ("127.0.0.1", "::1")


def test_master_address__others_are_told() -> None:
    communicator = FakeCommunicator(1, 2, [["a", "b"]], told=[b"10.0.0.9\n"])
    assert _mpi.master_address(communicator) == "10.0.0.9"


def test_master_address__unknown_host_is_an_error_of_all_ranks() -> None:
    hosts = ["here", "no-such-host.invalid"]
    first = FakeCommunicator(0, 2, [hosts])
    for communicator in (first, FakeCommunicator(1, 2, [hosts], told=first.told)):
        with pytest.raises(ConfigError, match=r"no-such-host\.invalid.*set MASTER_ADDR on rank 0"):
            _mpi.master_address(communicator)


def test_local_placement__counts_ranks_of_one_host() -> None:
    hosts = ["a", "b", "a", "b", "b"]
    places = [_mpi.local_placement(FakeCommunicator(r, 5, [hosts])) for r in range(5)]
    assert places == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_rendezvous__arguments_that_contradict_mpi_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_mpi, "world", lambda: FakeCommunicator())
    with pytest.raises(ConfigError, match="world_size=2, but MPI says 1"):
        next(_mpi.rendezvous("mpi://?world_size=2", None))
    with pytest.raises(ConfigError, match="rank=1, but MPI says 0"):
        next(_mpi.rendezvous("mpi://?rank=1", None))


def test_rendezvous__yields_a_store_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mpi, "world", lambda: FakeCommunicator())
    handler = _mpi.rendezvous("mpi://?rank=0&world_size=1", None)
    store, rank, world_size = next(handler)
    store.set("key", "value")
    assert (store.get("key"), rank, world_size) == (b"value", 0, 1)
    with pytest.raises(RuntimeError, match="second time"):
        next(handler)


def test_rendezvous__a_job_key_makes_it_the_encrypted_store(
    monkeypatch: pytest.MonkeyPatch, key_file: str
) -> None:
    monkeypatch.setenv("SECUREFABRIC_KEY_FILE", key_file)
    communicator = FakeCommunicator()
    monkeypatch.setattr(_mpi, "world", lambda: communicator)
    store, _, _ = next(_mpi.rendezvous("mpi://", None))
    assert type(store).__module__ == "securefabric._C"
    assert communicator.told == [b"127.0.0.1\n", b"%d\n" % store.port]  # type: ignore[attr-defined]


SETTINGS = {"plaintext": {}, "encrypted": {"SECUREFABRIC_STORE": "encrypted"}}


@pytest.mark.parametrize("own", SETTINGS)
@pytest.mark.parametrize("rank", [0, 1])
def test_rendezvous__each_rank_decides_by_itself_and_refuses_a_difference(
    monkeypatch: pytest.MonkeyPatch, own: str, rank: int
) -> None:
    for name, value in SETTINGS[own].items():
        monkeypatch.setenv(name, value)
    other = "plaintext" if own == "encrypted" else "encrypted"
    wishes = [own if rank == 0 else other] + [own] * 8 + [other]
    communicator = FakeCommunicator(rank, 10, [wishes], told=[b"127.0.0.1\n", b"1\n"])
    monkeypatch.setattr(_mpi, "world", lambda: communicator)
    with pytest.raises(ConfigError, match="settings ask for different stores") as caught:
        next(_mpi.rendezvous("mpi://", None))
    assert f"{wishes[0]}: rank 0" in str(caught.value)
    assert f"{other}: rank " in str(caught.value)
    assert "set SECUREFABRIC_KEY_FILE and SECUREFABRIC_STORE alike" in str(caught.value)


def test_rendezvous__nobody_talks_a_rank_out_of_the_encrypted_store(
    monkeypatch: pytest.MonkeyPatch, key_file: str
) -> None:
    """MPI's network claims that all agree, and names a plaintext store."""
    plain = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    monkeypatch.setenv("SECUREFABRIC_KEY_FILE", key_file)
    communicator = FakeCommunicator(1, 2, told=[b"127.0.0.1\n", b"%d\n" % plain.port])
    monkeypatch.setattr(_mpi, "world", lambda: communicator)
    with pytest.raises(AuthError, match="a plaintext TCPStore"):
        next(_mpi.rendezvous("mpi://", timedelta(seconds=20)))


def test_rendezvous__a_rank_that_cannot_decide_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    communicator = FakeCommunicator(0, 3, [["plaintext", "plaintext", "unusable settings"]])
    monkeypatch.setattr(_mpi, "world", lambda: communicator)
    with pytest.raises(ConfigError, match="unusable settings: rank 2"):
        next(_mpi.rendezvous("mpi://", None))
    monkeypatch.setenv("SECUREFABRIC_STORE", "maybe")
    communicator.others = [["plaintext", "plaintext", "plaintext"]]
    with pytest.raises(ConfigError, match="SECUREFABRIC_STORE='maybe'"):
        next(_mpi.rendezvous("mpi://", None))


@pytest.mark.parametrize(
    "told",
    [b"", b"\n", b"0\n", b"65536\n", b"-1\n", b"1e3\n", b"\xff" * 1024, pickle.dumps((1, False))],
)
def test_rendezvous__whatever_mpi_delivers_is_no_port(
    monkeypatch: pytest.MonkeyPatch, told: bytes
) -> None:
    communicator = FakeCommunicator(1, 2, told=[b"127.0.0.1\n", told])
    monkeypatch.setattr(_mpi, "world", lambda: communicator)
    with pytest.raises(ConfigError, match=r"MPI delivered .* as rank 0's port|rank 0 could not"):
        next(_mpi.rendezvous("mpi://", None))


def test_rendezvous__a_key_that_cannot_be_read_is_no_reason_for_plaintext(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECUREFABRIC_KEY_FILE", "/no/such/file")
    monkeypatch.setattr(_mpi, "world", lambda: FakeCommunicator())
    with pytest.raises(ConfigError, match=r"rank 0 could not open .* does not exist"):
        next(_mpi.rendezvous("mpi://", None))


def test_rendezvous__a_store_that_cannot_open_is_an_error_on_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [b"127.0.0.1\n", b"0\nAddress already in use"]
    communicator = FakeCommunicator(1, 2, told=told)
    monkeypatch.setattr(_mpi, "world", lambda: communicator)
    with pytest.raises(
        ConfigError, match=r"rank 0 could not open the store at 127\.0\.0\.1: Address"
    ):
        next(_mpi.rendezvous("mpi://", None))


@needs_mpirun
def test_world__an_mpirun_of_another_mpi_is_named(tmp_path: Path) -> None:
    script = "from securefabric import _mpi; _mpi.world()"
    environment = {**os.environ, "PMI_RANK": "1", "PMI_SIZE": "4"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert "PMI started 4 ranks, but mpi4py sees 1" in done.stderr


RENDEZVOUS = """
import torch.distributed as dist
from securefabric import _torch_autoload
_torch_autoload.register()
dist.init_process_group("gloo", init_method="mpi://")
import torch
total = torch.ones(1)
dist.all_reduce(total)
print(dist.get_rank(), dist.get_world_size(), int(total), flush=True)
dist.destroy_process_group()
"""


@needs_mpirun
def test_rendezvous__ranks_of_mpirun_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(RENDEZVOUS)
    done = subprocess.run(
        [*mpirun(3), sys.executable, str(script)],
        env={**os.environ, **MPIRUN_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert sorted(done.stdout.split("\n")) == ["", "0 3 3", "1 3 3", "2 3 3"], done.stderr
