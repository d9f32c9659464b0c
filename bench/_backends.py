"""What is measured: a torch process group, or MPI through mpi4py; and how the ranks meet."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import torch
import torch.distributed as dist

# DistributedDataParallel imports this anyway, but too late: its functions' defaults would then keep
# the group for good, and Gloo's threads, which must not outlive destroy_process_group.
import torch.distributed.nn.functional
from _devices import own_device
from _operations import ROOT, Case
from torch.distributed.rendezvous import rendezvous

from securefabric import _torch_autoload
from securefabric.identity import write_key_file
from securefabric.placement import discover, is_under_mpi

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

NAMES: Final = ("securefabric", "gloo", "mpi")
_TORCH_OPS: Final = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.AVG,
    "prod": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "band": dist.ReduceOp.BAND,
    "bor": dist.ReduceOp.BOR,
    "bxor": dist.ReduceOp.BXOR,
}
# 2.13 warns at each call by the old names, which takes time; 2.11 has no others.
_all_gather: Final = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Final = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
# Before MPI starts: messages over TCP. Shared memory would measure no network. Whoever wants it
# sets OMPI_MCA_btl=self,sm; the table says which it was.
_MPI_TRANSPORT: Final = "OMPI_MCA_btl"
_MPI_SETTINGS: Final = {"OMPI_MCA_pml": "ob1", _MPI_TRANSPORT: "tcp,self"}


class Backend(Protocol):
    """One way to run collectives among all ranks."""

    name: str
    rank: int
    ranks: int
    device: torch.device
    """Where its tensors lie."""

    def bind(self, case: Case) -> Callable[[], object]:
        """Return what runs the case's operation once, until its result is there.

        Raises Unsupported; so may the first call, on some ranks or on all.
        """

    def synchronise(self) -> None:
        """Wait until the device has done what this thread gave it to do."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def all_gather(self, value: T) -> list[T]:
        """Return all ranks' values; not timed."""

    def cpu_s(self) -> float:
        """Return the CPU time spent on this rank's behalf so far, by all its threads."""


class Unsupported(Exception):
    """The backend does not have this combination of operation, type and reduce op."""


class TorchBackend:
    """A torch.distributed process group."""

    def __init__(
        self,
        name: str,
        group: dist.ProcessGroup | None,
        device: torch.device = torch.device("cpu"),  # noqa: B008  it cannot change
    ) -> None:
        self.name = name
        self.device = device
        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()
        self.group = group
        """None: the default one."""

    def bind(self, case: Case) -> Callable[[], object]:
        """Return what runs the case's operation once, until its result is there."""
        call = self._call_of(case)
        if self.device.type == "cpu":
            return call
        is_gloo = self.name == "gloo"
        if is_gloo and case.operation.name == "send_recv":
            # It would take the address for one of host memory, and lose its connections.
            raise Unsupported("gloo sends and receives no tensors on a GPU")

        def run() -> None:
            try:
                call()
                self.synchronise()
            except RuntimeError as error:
                if not is_gloo:
                    raise
                raise Unsupported(f"gloo has no {case.operation.name} of it: {error}") from error

        return run

    def synchronise(self) -> None:
        """Wait for the current stream: `wait` of a work has only made it wait for the result."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _call_of(self, case: Case) -> Callable[[], object]:
        group, source, target = self.group, case.input, case.output
        op = _TORCH_OPS[case.reduce_op]
        is_root = self.rank == ROOT
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: dist.all_reduce(target, op=op, group=group),
            "all_gather": lambda: _all_gather(target, source, group=group),
            "reduce_scatter": lambda: _reduce_scatter(target, source, op=op, group=group),
            "broadcast": lambda: dist.broadcast(target, src=ROOT, group=group),
            "reduce": lambda: dist.reduce(target, dst=ROOT, op=op, group=group),
            "all_to_all": lambda: dist.all_to_all_single(target, source, group=group),
            "send_recv": lambda: self._shift(source, target),
            "barrier": self.barrier,
        }
        if case.operation.name == "gather":
            parts = list(target.view(self.ranks, -1).unbind()) if is_root else None
            return lambda: dist.gather(source, parts, dst=ROOT, group=group)
        if case.operation.name == "scatter":
            parts = list(source.view(self.ranks, -1).unbind()) if is_root else None
            return lambda: dist.scatter(target, parts, src=ROOT, group=group)
        return calls[case.operation.name]

    def _shift(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if self.ranks == 1:
            target.copy_(source)
            return
        following, preceding = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        receive = dist.irecv(target, preceding, group=self.group)
        send = dist.isend(source, following, group=self.group)
        assert receive is not None
        assert send is not None
        send.wait()
        receive.wait()

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.group)

    def all_gather(self, value: T) -> list[T]:
        """Return all ranks' values; not timed."""
        values: list[T] = [value] * self.ranks
        dist.all_gather_object(values, value, group=self.group)
        return values

    def cpu_s(self) -> float:
        """Return the CPU time of this process so far."""
        return time.process_time()


class MpiBackend:
    """MPI's communicator of all ranks, on the memory of the same tensors."""

    name = "mpi"
    device = torch.device("cpu")

    def __init__(self) -> None:
        for setting, value in _MPI_SETTINGS.items():
            os.environ.setdefault(setting, value)
        from mpi4py import MPI

        self._mpi: Any = MPI  # mpi4py is not typed for buffers
        self._world: Any = MPI.COMM_WORLD
        self.rank = int(self._world.rank)
        self.ranks = int(self._world.size)

    def bind(self, case: Case) -> Callable[[], object]:
        """Return what runs the case's operation once."""
        if case.dtype in (torch.float16, torch.bfloat16) or case.reduce_op == "avg":
            raise Unsupported(f"mpi has no {case.dtype} or no {case.reduce_op}")
        world, source, target = self._world, case.input.numpy(), case.output.numpy()
        op, in_place = self._op(case.reduce_op), self._mpi.IN_PLACE
        is_root = self.rank == ROOT
        following, preceding = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: world.Allreduce(in_place, target, op=op),
            "all_gather": lambda: world.Allgather(source, target),
            "reduce_scatter": lambda: world.Reduce_scatter_block(source, target, op=op),
            "broadcast": lambda: world.Bcast(target, root=ROOT),
            "reduce": lambda: (
                world.Reduce(in_place, target, op=op, root=ROOT)
                if is_root
                else world.Reduce(source, None, op=op, root=ROOT)
            ),
            "all_to_all": lambda: world.Alltoall(source, target),
            "gather": lambda: world.Gather(source, target if is_root else None, root=ROOT),
            "scatter": lambda: world.Scatter(source if is_root else None, target, root=ROOT),
            "send_recv": lambda: world.Sendrecv(source, following, 0, target, preceding, 0),
            "barrier": self.barrier,
        }
        return calls[case.operation.name]

    def synchronise(self) -> None:
        """Return at once: nothing runs elsewhere."""

    def _op(self, reduce_op: str) -> object:
        return getattr(self._mpi, reduce_op.upper(), None)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._world.Barrier()

    def all_gather(self, value: T) -> list[T]:
        """Return all ranks' values; not timed."""
        return list(self._world.allgather(value))

    def cpu_s(self) -> float:
        """Return the CPU time of this process so far."""
        return time.process_time()

    def describe(self) -> str:
        """Return which MPI this is, and over what it sends."""
        version = str(self._mpi.Get_library_version()).split(",")[0]
        return f"{version}, {os.environ.get(_MPI_TRANSPORT, 'its own choice')}"


def join(names: Sequence[str], device: str = "cpu") -> list[Backend]:
    """Meet the other ranks and return the backends, in this order. All ranks must ask alike."""
    # First: mpi:// would start MPI without our settings.
    backends: dict[str, Backend] = {"mpi": MpiBackend()} if "mpi" in names else {}
    torch.set_num_threads(1)  # the ranks share this host's cores
    wanted = [name for name in names if name != "mpi"]
    if wanted:
        _init_world(wanted[0])
        own = own_device(device, dist.get_rank())
        backends[wanted[0]] = TorchBackend(wanted[0], None, own)
        for name in wanted[1:]:
            backends[name] = TorchBackend(name, dist.new_group(backend=name), own)
    return [backends[name] for name in names]


def leave() -> None:
    """Part from the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return discover() is not None or is_under_mpi()


def abort_if_mpi() -> None:
    """End all ranks of an MPI job; they would wait for this one for ever."""
    if is_under_mpi():
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)


def _init_world(name: str) -> None:
    _torch_autoload.register()
    is_env_set = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    url = "mpi://" if is_under_mpi() and not is_env_set else "env://"
    store, rank, ranks = next(rendezvous(url))
    _share_throwaway_key(store, rank)
    dist.init_process_group(name, store=store, rank=rank, world_size=ranks)


def _share_throwaway_key(store: Store, rank: int) -> None:
    """Where no job key is named, rank 0 makes one for this run, which only serves one host."""
    if os.environ.get("SECUREFABRIC_KEY_FILE"):
        return
    if rank == 0:
        folder = tempfile.mkdtemp(prefix="securefabric-bench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        write_key_file(f"{folder}/job.key")
        store.set("bench/key_file", f"{folder}/job.key")
    path = store.get("bench/key_file").decode()
    if not Path(path).exists():
        raise SystemExit("ranks on several hosts need a job key: set SECUREFABRIC_KEY_FILE")
    os.environ["SECUREFABRIC_KEY_FILE"] = path
