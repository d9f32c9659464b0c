"""Groups of ours for programs that say "gloo": what stands where torch's ProcessGroupGloo stood.

torch makes Gloo groups by calling a class that it looks up by name: in its helper that makes every
group, for the mesh behind TORCH_DISTRIBUTED_DEBUG=DETAIL, for RPC. That name is what is replaced.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from ._backend import create_backend
from .errors import ConfigError
from .options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch._C._distributed_c10d import Store

    from ._C import Backend

__all__ = ["is_gloo_replaced", "replace_gloo", "warn_of_mesh", "wrap_group_making"]

_NAME: Final = "gloo"
_GLOBAL_RANK: Final = "securefabric/global_rank/{rank}"
_DIGITS_MAX: Final = 10


@dataclass
class _Request:
    """A ``BackendRequest`` for the group that torch is about to make."""

    store: Store
    group_rank: int
    group_size: int
    timeout: timedelta | float
    group_id: str
    global_ranks_in_group: list[int]


# Name, global ranks and our options of the group that torch's helper is making, which it does not
# tell Gloo.
_being_made: ContextVar[tuple[str, list[int], Options | None] | None] = ContextVar(
    "_being_made", default=None
)


class _StandsForGloo(type):
    """What is called makes our backend, and its instances are our backends by the name of gloo."""

    def __call__(
        cls,
        store: Store,
        rank: int,
        size: int,
        timeout: object = None,
        *,
        options: object = None,
        **_: object,
    ) -> Backend:
        being_made = _being_made.get()
        group_name, global_ranks, ours = being_made or (
            _NAME,
            _global_ranks(store, rank, size),
            None,
        )
        given = options if timeout is None else timeout
        request = _Request(store, rank, size, _duration(given), group_name, global_ranks)
        return create_backend(request, ours, presented_name=_NAME, is_by_hand=being_made is None)

    def __instancecheck__(cls, instance: object) -> bool:
        from ._C import Backend

        return isinstance(instance, Backend) and instance.name() == _NAME


class _Device:
    """Where Gloo would open connections. Ours are those of the fabric, for all groups alike."""


@dataclass
class _Options:
    """Gloo's settings of a group, of which only the timeout means anything here."""

    _timeout: timedelta | float = field(default_factory=lambda: _duration(None))
    _devices: list[_Device] = field(default_factory=list)
    _threads: int = 2
    backend: str = _NAME
    global_ranks_in_group: list[int] = field(default_factory=list)
    group_name: str = ""


class ProcessGroupGloo(metaclass=_StandsForGloo):
    """torch's Gloo by name; what it makes is encrypted."""

    Device = _Device
    Options = _Options
    _Options = _Options

    @staticmethod
    def create_device(
        hostname: str = "",
        interface: str = "",
        lazy_init: bool | None = None,  # noqa: ARG004  as Gloo's
    ) -> _Device:
        """Return what goes into the options' list of devices."""
        if hostname or interface:
            warnings.warn(
                f"ProcessGroupGloo.create_device(hostname={hostname!r}, interface={interface!r}) "
                "chooses nothing: after securefabric.replace_gloo() the interfaces of all groups "
                "are those of SECUREFABRIC_SOCKET_IFNAME",
                stacklevel=2,
            )
        return _Device()

    @staticmethod
    def create_default_device(lazy_init: bool | None = None) -> _Device:  # noqa: ARG004
        """Return what goes into the options' list of devices."""
        return _Device()


def is_gloo_replaced() -> bool:
    """Whether ``replace_gloo`` was called in this process."""
    from torch.distributed import distributed_c10d

    return getattr(distributed_c10d, "ProcessGroupGloo", None) is ProcessGroupGloo


def replace_gloo() -> None:
    """Make every "gloo" group of this process, from now on, an encrypted one.

    For programs that nobody wants to change: they go on saying "gloo", and so do ``get_backend()``
    and the profiler. Settings come from the environment, or from an ``Options`` as
    ``pg_options``; all ranks must do the same. Calling
    it again changes nothing.

    Raises ConfigError when a Gloo group exists already: it would go on sending in the clear.
    """
    if is_gloo_replaced():
        return
    import torch.distributed as dist
    from torch._C import _distributed_c10d as native_c10d
    from torch.distributed import distributed_c10d

    from ._torch_autoload import register

    for backend, _ in distributed_c10d._world.pg_map.values():
        if _NAME in re.split("[:,]", str(backend).lower()):
            raise ConfigError(
                "a gloo group exists already and would go on sending in the clear; call "
                "securefabric.replace_gloo() before any group is made"
            )
    register()
    for module in (native_c10d, distributed_c10d, dist):
        module.ProcessGroupGloo = ProcessGroupGloo  # type: ignore[attr-defined]
    distributed_c10d._GLOO_AVAILABLE = True  # also in builds of torch that have no Gloo
    wrap_group_making(_name_group)


def warn_of_mesh() -> None:
    """Warn when torch is about to open a Gloo mesh in the clear beside a group of ours."""
    from torch._C._distributed_c10d import DebugLevel, get_debug_level

    if get_debug_level() == DebugLevel.DETAIL and not is_gloo_replaced():
        warnings.warn(
            "TORCH_DISTRIBUTED_DEBUG=DETAIL opens a Gloo mesh beside each group, which sends the "
            "shapes and types of every call in the clear; SECUREFABRIC_STRICT=1 encrypts it",
            stacklevel=2,
        )


def wrap_group_making(prepare: Callable[[dict[str, Any]], Any]) -> None:
    """Run torch's helper that makes every group inside ``prepare``, a context manager.

    It takes the helper's arguments by name and may change them.
    """
    from torch.distributed import distributed_c10d

    original = distributed_c10d._new_process_group_helper
    signature = inspect.signature(original)

    @functools.wraps(original)
    def new_process_group_helper(*positional: object, **named: object) -> object:
        call = signature.bind(*positional, **named)
        with prepare(call.arguments):
            return original(*call.args, **call.kwargs)

    distributed_c10d._new_process_group_helper = new_process_group_helper


@contextmanager
def _name_group(arguments: dict[str, Any]) -> Iterator[None]:
    given = arguments.get("backend_options")
    options = given if isinstance(given, Options) else None  # Gloo's own mean nothing here
    global_ranks = list(arguments["global_ranks_in_group"])
    token = _being_made.set((str(arguments["group_name"]), global_ranks, options))
    try:
        yield
    finally:
        _being_made.reset(token)


def _global_ranks(store: Store, rank: int, size: int) -> list[int]:
    """Return the members' ranks in the world of a group made by hand; empty for all ranks.

    Nothing proves who wrote them. What no members can have written is refused here, with the word
    of the store; other ranks than the members' make another group, which meets nobody.
    Raises ConfigError.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return []
    own, world_size = dist.get_rank(), dist.get_world_size()
    store.set(_GLOBAL_RANK.format(rank=rank), str(own))
    ranks: list[int] = []
    for member in range(size):
        told = store.get(_GLOBAL_RANK.format(rank=member))[:_DIGITS_MAX].decode("ascii", "replace")
        is_rank = told.isascii() and told.isdecimal() and int(told) < world_size
        if not is_rank or int(told) in ranks or (member == rank and int(told) != own):
            raise ConfigError(
                f"the store says that member {member} of a group of {size} made by hand is rank "
                f"{told!r} of the job's {world_size}, which no member has written (this one, "
                f"member {rank}, is rank {own}): give each group a store or a prefix of its own"
            )
        ranks.append(int(told))
    return [] if ranks == list(range(world_size)) else ranks


def _duration(given: object) -> timedelta | float:
    """Return a timeout that was given as such, or in an options object, or not at all."""
    if isinstance(given, timedelta):
        return given
    if isinstance(given, float | int):
        return given
    from torch.distributed.constants import default_pg_timeout

    timeout: timedelta = getattr(given, "_timeout", default_pg_timeout)
    return timeout
