"""What torch calls to make a process group of ours: from its request to a native backend."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from ._board import refusals_told
from ._fabric import fabric_for
from .options import options_from

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from ._C import Backend

__all__ = ["BackendRequest", "create_backend"]


class BackendRequest(Protocol):
    """torch's ``_DistributedBackendOptions``."""

    store: Store
    group_rank: int
    group_size: int
    timeout: timedelta | float
    """Of operations; a number means seconds."""
    group_id: str
    """The group's name. Repeats after destroy_process_group."""
    global_ranks_in_group: list[int]
    """Empty for the world's group."""


def create_backend(
    request: BackendRequest,
    pg_options: object,
    *,
    presented_name: str = "securefabric",
    is_by_hand: bool = False,
) -> Backend:
    """Return the backend of a group; the first call of a process also makes its fabric.

    presented_name is what the group calls itself, in ``name()`` and in the profiler: the name of
    the backend that it stands in for. is_by_hand tells groups that torch does not know of.
    """
    from ._strict import check_store  # which imports this module

    rank, world_size = _place_in_world(request)
    with refusals_told(request.store, rank):
        check_store(request.store, world_size)
        options = options_from(pg_options)
        fabric = fabric_for(
            rank=rank,
            world_size=world_size,
            options=options,
            store=request.store,
            world=None if request.global_ranks_in_group else request.group_id,
        )
    joined = fabric.join_group(
        request.store,
        group_name=request.group_id,
        group_rank=request.group_rank,
        global_ranks=list(request.global_ranks_in_group),
        is_by_hand=is_by_hand,
    )
    from ._C import Backend
    from ._C import Options as NativeOptions

    return Backend(
        fabric=fabric.native,
        group_rank=request.group_rank,
        group_size=request.group_size,
        group_name=request.group_id,
        identity=joined.identity,
        board=joined.board,
        keeper=joined.keeper,
        global_ranks=list(request.global_ranks_in_group) or list(range(request.group_size)),
        options=NativeOptions(_as_timedelta(request.timeout), presented_name),
    )


def _place_in_world(request: BackendRequest) -> tuple[int, int]:
    """Return this process's global rank and the size of the world."""
    ranks = request.global_ranks_in_group
    if not ranks:
        return request.group_rank, request.group_size
    import torch.distributed as dist

    return ranks[request.group_rank], dist.get_world_size()


def _as_timedelta(timeout: timedelta | float) -> timedelta:
    if isinstance(timeout, timedelta):
        return timeout
    return timedelta(seconds=min(timeout, timedelta.max.total_seconds() - 1))
