"""Contract cases: what autograd sees of a call does not depend on layouts, modes and threads.

Every operation writes to every layout of a tensor that requires a gradient, of one that was
computed from one, of one that does neither, and of one of inference mode; with gradients enabled,
in no_grad and in inference mode. The judges are the same call on contiguous tensors, the gradients
that there would be without a call, and Gloo for the versions that a call counts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from contract_world import Cases, World, check_equal
from torch import Tensor

CASES = Cases()

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
# Views of 16 elements per rank, with two rows per rank.
LAYOUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "contiguous": lambda flat, n: flat[: 8 * n].view(2 * n, 4),
    "transposed": lambda flat, n: flat[: 8 * n].view(4, 2 * n).t(),
    "channels_last": lambda flat, n: flat[: 8 * n].view(2 * n, 1, 2, 2).permute(0, 3, 1, 2),
    "every second": lambda flat, n: flat.view(2 * n, 8)[:, ::2],
    "scalar": lambda flat, _: flat[0],
}


class Call:
    """Where an operation runs, what it writes to and what it reads besides."""

    def __init__(self, world: World, group: Any, target: Tensor, source: Tensor) -> None:
        self.n, self.me, self.group = world.size, world.rank, group
        self.target, self.source = target, source

    def targets(self) -> list[Tensor]:
        """Return a tensor per rank, of which this rank's is the target."""
        others = [torch.zeros(self.target.shape) for _ in range(self.n)]
        return [*others[: self.me], self.target, *others[self.me + 1 :]]

    def whole(self) -> Tensor:
        """Return what holds the source for each rank."""
        return self.source.reshape(-1).repeat(self.n)

    def part(self) -> Tensor:
        """Return one rank's share of the source."""
        return self.source.reshape(-1)[: self.source.numel() // self.n]

    def of_root(self, tensors: list[Tensor]) -> list[Tensor] | None:
        return tensors if self.me == 0 else None


def _coalesced(call: Call, function: Callable[..., Any], *tensors: Tensor) -> Any:
    with dist._coalescing_manager(call.group, async_ops=True) as manager:
        function(*tensors, group=call.group)
    return manager


def _pass_on(call: Call) -> Any:
    sent: Any = dist.isend(call.source.contiguous(), (call.me + 1) % call.n, group=call.group)
    work = dist.irecv(call.target, (call.me - 1) % call.n, group=call.group)
    sent.wait()
    return work


def _several(call: Call) -> Any:
    options = dist.BroadcastOptions()
    options.rootTensor = 1
    tensors = [call.target, call.source.contiguous().clone()]
    return call.group._get_backend(torch.device("cpu")).broadcast(tensors, options)


OPERATIONS: dict[str, Callable[[Call], Any]] = {
    "broadcast": lambda c: dist.broadcast(c.target, c.n - 1, c.group, True),
    "broadcast of several": _several,
    "all_reduce": lambda c: dist.all_reduce(c.target, group=c.group, async_op=True),
    "all_reduce_coalesced": lambda c: _coalesced(c, dist.all_reduce, c.target),
    "reduce": lambda c: dist.reduce(c.target, c.n - 1, group=c.group, async_op=True),
    "all_gather": lambda c: dist.all_gather(c.targets(), c.source, c.group, True),
    "all_gather_into_tensor": lambda c: dist.all_gather_into_tensor(
        c.target, c.part(), c.group, True
    ),
    "all_gather_coalesced": lambda c: _coalesced(
        c, dist.all_gather_into_tensor, c.target, c.part()
    ),
    "gather": lambda c: dist.gather(c.source, c.of_root(c.targets()), 0, c.group, True),
    "scatter": lambda c: dist.scatter(c.target, c.of_root([c.source] * c.n), 0, c.group, True),
    "reduce_scatter": lambda c: dist.reduce_scatter(
        c.target, [c.source] * c.n, group=c.group, async_op=True
    ),
    "reduce_scatter_tensor": lambda c: dist.reduce_scatter_tensor(
        c.target, c.whole(), group=c.group, async_op=True
    ),
    "reduce_scatter_coalesced": lambda c: _coalesced(
        c, dist.reduce_scatter_tensor, c.target, c.whole()
    ),
    "all_to_all": lambda c: dist.all_to_all(c.targets(), [c.source] * c.n, c.group, True),
    "all_to_all_single": lambda c: dist.all_to_all_single(
        c.target, c.source, group=c.group, async_op=True
    ),
    "recv": _pass_on,
}
OF_ROWS = {"all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single"}


def _run(operation: str, call: Call, turn: int) -> None:
    """Run it; every second one ends on a thread of the backend, with that thread's modes."""
    work = OPERATIONS[operation](call)
    until = time.monotonic() + 60
    while turn % 2 and hasattr(work, "is_completed") and not work.is_completed():
        assert time.monotonic() < until
        time.sleep(0.0002)
    work.wait()


def _counts_versions(world: World, operation: str) -> bool:
    """Whether autograd notices that Gloo has written."""
    target, source = torch.zeros(8 * world.size), torch.ones(8 * world.size)
    before = target._version
    _run(operation, Call(world, world.gloo, target, source), 0)
    return target._version > before


def _sources(like: Tensor) -> list[Tensor]:
    """Return inputs of several kinds, with the same elements."""
    dense = torch.full(like.shape, 3.0)
    return [
        dense,
        torch.tensor(3.0).expand(like.shape),
        dense.t().contiguous().t() if like.dim() == 2 else dense,
        dense.clone().requires_grad_(),
    ]


@CASES.case(over=tuple(OPERATIONS))
def autograd_is_kept_out(world: World, operation: str) -> None:
    if operation == "recv" and world.size == 1:
        return
    warnings.simplefilter("ignore")  # torch's, of backward() through a call
    counts = _counts_versions(world, operation)
    turn = 0
    for layout, view in LAYOUTS.items():
        if layout == "scalar" and operation in OF_ROWS and world.size > 1:
            continue
        flat = torch.arange(16.0 * world.size) + world.rank
        expected = view(2 * flat, world.size).clone(memory_format=torch.contiguous_format)
        call = Call(world, dist.group.WORLD, expected, _sources(expected)[0])
        _run(operation, call, 0)
        for kind in ("none", "leaf", "computed", "inference"):
            for mode in MODES:
                turn += 1
                what = f"{operation} on a {layout} tensor, {kind}, in mode {mode}"
                _check(world, operation, view, flat, kind, mode, turn, expected, counts, what)


def _check(
    world: World,
    operation: str,
    view: Callable[[Tensor, int], Tensor],
    flat: Tensor,
    kind: str,
    mode: str,
    turn: int,
    expected: Tensor,
    counts: bool,
    what: str,
) -> None:
    start = flat.clone().requires_grad_(kind == "computed")
    with torch.inference_mode(kind == "inference"):
        target = view(start * 2, world.size)
    if kind == "leaf":
        target = target.detach().requires_grad_()
    node = target.grad_fn
    version = None if target.is_inference() else target._version
    sources = _sources(expected)
    with MODES[mode]():
        call = Call(world, dist.group.WORLD, target, sources[turn % len(sources)])
        _run(operation, call, turn)
    check_equal(target.detach().contiguous(), expected, what)
    if not counts:  # else autograd makes a new node of the same meaning
        assert target.grad_fn is node, f"{what}: {target.grad_fn} is not {node}"
    if version is not None:
        assert target._version == version + counts, f"{what}: {target._version} from {version}"
    if kind == "computed":
        target.sum().backward()
        alone = flat.clone().requires_grad_()
        view(alone * 2, world.size).sum().backward()
        assert start.grad is not None
        assert alone.grad is not None
        check_equal(start.grad, alone.grad, what)


@CASES.case()
def autograd_is_kept_out_of_sparse_tensors(world: World) -> None:
    for kind in ("none", "leaf", "inference"):
        for mode in MODES:
            with torch.inference_mode(kind == "inference"):
                tensor = torch.eye(3).to_sparse()
            tensor.requires_grad_(kind == "leaf")
            version = None if tensor.is_inference() else tensor._version
            with MODES[mode]():
                dist.all_reduce(tensor)
            check_equal(tensor.detach().to_dense(), torch.eye(3) * world.size, (kind, mode))
            assert tensor.grad_fn is None
            assert version is None or tensor._version == version + 1
