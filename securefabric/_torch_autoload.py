"""Registers the backend with torch.distributed. Small on purpose.

torch loads this module at the end of its own import (entry point ``torch.backends``), possibly
while ``import securefabric`` is still running further up the stack. So it imports neither torch
nor anything of this package at top level; what it needs it imports when it is called.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from torch._C._distributed_c10d import Backend as C10dBackend
    from torch._C._distributed_c10d import Store

    from ._backend import BackendRequest

NAME = "securefabric"
STRICT = "SECUREFABRIC_STRICT"
STORE = "SECUREFABRIC_STORE"
_torchs_own: list[Callable[..., Any]] = []  # what served env:// before
DEVICES = ["cpu", "cuda"]  # a list: torch 2.13 would iterate over a string letter by letter


def register() -> None:
    """Register the backend, ``securefabric://`` and ``mpi://``; may be called again."""
    import torch.distributed as dist

    if not dist.is_available():
        return
    from torch.distributed.rendezvous import _rendezvous_handlers, register_rendezvous_handler

    if _rendezvous_handlers["env"] is not _env_rendezvous:
        _torchs_own.append(_rendezvous_handlers["env"])
        _rendezvous_handlers["env"] = _env_rendezvous
    if NAME.upper() in dist.Backend._plugins:
        return
    _refuse_torchcomms()
    dist.Backend.register_backend(NAME, _create, extended_api=True, devices=DEVICES)
    for scheme, handler in ((NAME, _store_rendezvous), ("mpi", _mpi_rendezvous)):
        # RuntimeError: somebody else serves mpi://; ours stays reachable by securefabric.launch.
        with contextlib.suppress(RuntimeError):
            register_rendezvous_handler(scheme, handler)  # type: ignore[no-untyped-call]
    atexit.register(_close_stores)


def autoload() -> None:
    """Entry point that ``import torch`` calls.

    Never raises, which would break ``import torch``, except when strict mode is asked for and not
    to be had: then nothing must run.
    """
    try:
        register()
    except Exception as error:
        import warnings

        warnings.warn(f"securefabric is unavailable: {error}", stacklevel=2)
    _be_strict_if_asked()


def _be_strict_if_asked() -> None:
    if os.environ.get(STRICT, "0") not in ("", "0"):
        from ._strict import strict

        strict()


def _refuse_torchcomms() -> None:
    """Raise where torch would hand our groups to torchcomms, which does not encrypt."""
    from torch.distributed import distributed_c10d

    if getattr(distributed_c10d, "_use_torchcomms_enabled", lambda: False)():
        raise RuntimeError(
            "torch routes every backend to torchcomms, which does not encrypt; "
            "unset TORCH_DISTRIBUTED_USE_TORCHCOMMS"
        )


def _create(request: BackendRequest, pg_options: object) -> C10dBackend:
    from ._backend import create_backend
    from ._gloo import warn_of_mesh

    _be_strict_if_asked()  # the variable may have been set since torch was imported
    warn_of_mesh()
    return create_backend(request, pg_options)


def _env_rendezvous(url: str, **named: Any) -> Iterator[tuple[Store, int, int]]:
    """``env://``: the encrypted store if the variable asks for it at this moment, else torch's."""
    if os.environ.get(STORE):
        return _store_rendezvous(url, **named)
    handler: Iterator[tuple[Store, int, int]] = _torchs_own[0](url, **named)
    return handler


def _store_rendezvous(
    url: str, timeout: timedelta | None = None, **_: object
) -> Iterator[tuple[Store, int, int]]:
    from .rendezvous import rendezvous

    return rendezvous(url, timeout)


def _close_stores() -> None:
    """Registered when torch is imported, so that what users do at exit still finds its store."""
    store = sys.modules.get(f"{__package__}.store")
    if store is not None:
        store.close_all_at_exit()


def _mpi_rendezvous(
    url: str, timeout: timedelta | None = None, **_: object
) -> Iterator[tuple[Store, int, int]]:
    from ._mpi import rendezvous

    return rendezvous(url, timeout)
