"""``init_method="securefabric://host:port"``: ranks find each other through the encrypted store.

    securefabric://host:port    rank 0 serves the store there
    securefabric://             host and port from the launcher: MASTER_ADDR and MASTER_PORT
                                (torchrun, securefabric.launch), Slurm's node list, or MPI

Rank and world size come from init_process_group's arguments or the launcher. Query parameters:
rank, world_size, and bind, the address to listen on where host is not one of rank 0's own (a load
balancer); SECUREFABRIC_STORE_BIND says it as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from . import placement
from .errors import ConfigError
from .store import LONGEST_TIMEOUT, open_store

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["AGENT", "ENCRYPTED", "STORE_VARIABLE", "is_store_encrypted", "rendezvous"]

STORE_VARIABLE: Final = "SECUREFABRIC_STORE"
ENCRYPTED: Final = "encrypted"
"""Value of STORE_VARIABLE: ``env://``, torch's default, means the encrypted store as well.

_torch_autoload.py sees to that when torch is imported."""
AGENT: Final = "agent"
"""The same, and the launcher serves it; set by elastic.py for its workers."""

_PARAMETERS: Final = {"rank", "world_size", "bind", "use_libuv"}  # the last is TCPStore's


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a URL and the environment ask for."""

    host: str
    port: int
    rank: int
    world_size: int
    bind: str | None
    is_launchers_address: bool
    """Whether host and port are the launcher's, which may have a store of its own there."""


def rendezvous(url: str, timeout: timedelta | None = None) -> Iterator[tuple[Store, int, int]]:
    """Serve the rendezvous, as a generator. Raises ConfigError for what cannot work."""
    from torch.distributed import default_pg_timeout

    is_store_encrypted()  # a typing error there must not go unnoticed
    request = _parsed(url)
    store = _opened(request, min(timeout or default_pg_timeout, LONGEST_TIMEOUT))
    yield store, request.rank, request.world_size
    raise RuntimeError("securefabric:// cannot rendezvous a second time in the same process")


def is_store_encrypted() -> bool:
    """Whether STORE_VARIABLE asks for the encrypted store. Raises ConfigError for another value."""
    value = os.environ.get(STORE_VARIABLE, "")
    if value not in ("", ENCRYPTED, AGENT):
        raise ConfigError(f"{STORE_VARIABLE}={value!r}: the only setting is {ENCRYPTED!r}")
    return bool(value)


def _parsed(url: str) -> _Request:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    unknown = sorted(set(query) - _PARAMETERS)
    if unknown:
        raise ConfigError(f"{url}: unknown parameters {', '.join(unknown)}")
    try:
        port = parts.port
        rank = _number(query, "rank")
        world_size = _number(query, "world_size")
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from None
    if parts.netloc and (not parts.hostname or port is None):
        raise ConfigError(f"{url}: expected securefabric://host:port, or securefabric:// alone")
    environment = _environment(needs_address=not parts.netloc)
    with suppress(ValueError):
        place = placement.discover(environment)
        if place is not None:
            rank = place.rank if rank is None else rank
            world_size = place.world_size if world_size is None else world_size
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise ConfigError(
            f"{url}: rank {rank} of {world_size}; pass rank= and world_size= to "
            "init_process_group, or start the ranks with a launcher that sets RANK and WORLD_SIZE"
        )
    return _Request(
        host=parts.hostname or environment["MASTER_ADDR"],
        port=port if port is not None else int(environment["MASTER_PORT"]),
        rank=rank,
        world_size=world_size,
        bind=query.get("bind"),
        is_launchers_address=not parts.netloc,
    )


def _environment(*, needs_address: bool) -> dict[str, str]:
    """Return the variables with what the launcher left to be found out, as securefabric.launch."""
    environment = dict(os.environ)
    if needs_address:
        from .launch import prepare_environment

        try:
            prepare_environment(environment)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return environment


def _number(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    return None if text in (None, "-1") else int(str(text))  # torch writes -1 for "not given"


def _opened(request: _Request, timeout: timedelta) -> Store:
    if request.is_launchers_address and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        if os.environ.get(STORE_VARIABLE) != AGENT:
            return _beside_agent(request, timeout)
        return open_store(request.host, request.port, timeout=timeout)
    if request.port == 0 and request.world_size > 1:
        raise ConfigError(
            "port 0 means any free port, which other ranks cannot know; name one, or let a "
            "launcher do it with init_method='securefabric://'"
        )
    serve = request.rank == 0
    return open_store(
        request.host,
        request.port,
        serve=serve,
        timeout=timeout,
        bind=request.bind if serve else None,
    )


def _beside_agent(request: _Request, timeout: timedelta) -> Store:
    """Open a store beside the plaintext one that torchrun serves at MASTER_PORT.

    That one carries a single number, the port of ours; who changes it makes the handshake fail.
    """
    from torch._C._distributed_c10d import TCPStore

    board = TCPStore(request.host, request.port, None, False, timeout, wait_for_workers=False)
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    attempt = "/".join(os.environ.get(name, "") for name in names)
    key = f"securefabric/store_port/{attempt}"
    if request.rank == 0:
        store = open_store(request.host, 0, serve=True, timeout=timeout, bind=request.bind)
        board.set(key, str(store.port))
        return store
    text = bytes(board.get(key))
    if not text.isdigit() or not 0 < int(text[:6]) < 1 << 16:
        raise ConfigError(f"torchrun's store names {text[:32]!r} as the encrypted store's port")
    return open_store(request.host, int(text), timeout=timeout)
