"""Strict mode: nothing else in this process sends a job's data in the clear.

What says "gloo" or leaves the backend to torch gets ours; other backends are refused where torch
makes a group, and their classes cannot be instantiated any more, so that nobody gets around it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ._fabric import is_one_host
from ._gloo import is_gloo_replaced, replace_gloo, wrap_group_making
from ._torch_autoload import NAME, STRICT
from .errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch._C._distributed_c10d import Store

__all__ = ["check_store", "is_strict", "strict"]

_UNDEFINED: Final = "undefined"  # torch's word for "choose one"
_HARMLESS: Final = {NAME, "gloo", "fake"}  # gloo is ours by then, and fake moves nothing
_PLAINTEXT: Final = {  # torch's classes that send in the clear, and what the user knows them by
    "ProcessGroupGloo": "gloo",
    "ProcessGroupNCCL": "nccl",
    "ProcessGroupMPI": "mpi",
    "ProcessGroupUCC": "ucc",
    "ProcessGroupXCCL": "xccl",
}

_is_strict = False


def is_strict() -> bool:
    """Whether ``strict`` was called in this process."""
    return _is_strict


def strict() -> None:
    """Let no other backend of this process send in the clear. There is no way back.

    "gloo", the backend that torch or a DeviceMesh would choose, and the Gloo mesh behind
    TORCH_DISTRIBUTED_DEBUG=DETAIL become ours; nccl, mpi, ucc, xccl, foreign plugins, torchcomms,
    RPC and, across hosts, torch's TCPStore are refused with a ConfigError. Processes started from
    this one are strict too. ``SECUREFABRIC_STRICT=1`` does the same at ``import torch``.

    Raises ConfigError when a group that sends in the clear exists already.
    """
    global _is_strict
    import torch.distributed as dist

    if _is_strict or not dist.is_available():
        return
    _refuse_standing_groups()
    _disarm_classes()  # before "gloo" names ours
    replace_gloo()
    wrap_group_making(_check_group)
    for device in dist.Backend.default_device_backend_map:
        dist.Backend.default_device_backend_map[device] = NAME
    os.environ[STRICT] = "1"
    _is_strict = True


@contextmanager
def _check_group(arguments: dict[str, Any]) -> Iterator[None]:
    arguments["backend"] = _allowed(str(arguments["backend"]))
    yield


def _allowed(backend: str) -> object:
    """Return the backend to use instead of ``backend``; raises ConfigError if there is none."""
    from torch.distributed import Backend, distributed_c10d

    if getattr(distributed_c10d, "_use_torchcomms_enabled", lambda: False)():
        raise _refused("torchcomms", "unset TORCH_DISTRIBUTED_USE_TORCHCOMMS")
    if backend.lower() == _UNDEFINED:
        return Backend(NAME)
    for part in backend.lower().split(","):
        name = part.rpartition(":")[2]
        if name not in _HARMLESS:
            raise _refused(f"the backend {name!r}", f'make the group with backend="{NAME}"')
    return Backend(backend)


def check_store(store: Store, world_size: int) -> None:
    """Refuse, in strict mode, a store that may cross a network in the clear.

    Called for each backend of ours, whoever makes it: programs put data of theirs there too.
    """
    from torch._C._distributed_c10d import FileStore, HashStore, PrefixStore, TCPStore

    if not _is_strict:
        return
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    is_sealed = type(store).__module__ == f"{__package__}._C"
    # A HashStore never leaves its process.
    if is_sealed or isinstance(store, HashStore) or is_one_host(store, world_size):
        return
    where = ""
    if isinstance(store, TCPStore):
        where = f" at {store.host}:{store.port}"
    elif isinstance(store, FileStore):
        where = ", whose file other hosts may share,"
    raise _refused(
        f"torch's {type(store).__name__}{where}",
        'meet in the encrypted store: init_method="securefabric://", or '
        "SECUREFABRIC_STORE=encrypted, or torchrun --rdzv-backend=securefabric",
    )


def _refuse_standing_groups() -> None:
    from torch.distributed import distributed_c10d

    for backend, _ in distributed_c10d._world.pg_map.values():
        name = str(backend).lower()
        if name not in _HARMLESS or (name == "gloo" and not is_gloo_replaced()):
            raise _refused(
                f"a group with the backend {name!r} that exists already",
                f"call securefabric.strict() before any group is made, or set {STRICT}=1",
            )


def _disarm_classes() -> None:
    """Make torch's classes raise when they are instantiated, whoever holds them."""
    import torch
    import torch.distributed as dist

    for class_name, name in _PLAINTEXT.items():
        found = getattr(dist.distributed_c10d, class_name, None)
        if found is not None and not (name == "gloo" and is_gloo_replaced()):
            refuse = _refuser(f"the backend {name!r}", f'use backend="{NAME}"')
            found.__init__ = refuse
            if hasattr(found, "create"):  # MPI's way to make one
                found.create = staticmethod(refuse)
    agent = getattr(getattr(torch._C, "_distributed_rpc", None), "TensorPipeAgent", None)
    if agent is not None:
        agent.__init__ = _refuser("torch.distributed.rpc", "use collectives or send and recv")


def _refuser(what: str, instead: str) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise _refused(what, instead)

    return refuse


def _refused(what: str, instead: str) -> ConfigError:
    return ConfigError(
        f"{what} sends in the clear, and this process is strict (SECUREFABRIC_STRICT=1 or "
        f"securefabric.strict()); {instead}"
    )
