"""What a stack case is: a recipe that runs on a group of ours and on one of Gloo, and compares.

A recipe takes the world and a group, makes everything it communicates with from that group, and
returns what came of it: tensors, or containers of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from contract_world import Cases
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils import _pytree as pytree

STEPS = 3
WIDTH = 16
CLASSES = 11


class StackCases(Cases):
    """Cases that compare with Gloo."""

    def compared(
        self, *, over: Sequence[Any] = (), ranks_min: int = 1
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a recipe as a case; with `over`, once for each of these as an argument."""

        def register(recipe: Callable[..., Any]) -> Callable[..., Any]:
            def compare(*arguments: Any) -> None:
                world, *variant = arguments
                ours = recipe(world, dist.group.WORLD, *variant)
                theirs = recipe(world, world.gloo, *variant)
                check_alike(ours, theirs)

            compare.__name__ = recipe.__name__
            self.case(over=over, ranks_min=ranks_min)(compare)
            return recipe

        return register


def check_alike(ours: Any, theirs: Any) -> None:
    """Compare two results of a recipe: the same shape of things, tensors but for rounding."""
    our_leaves, our_shape = pytree.tree_flatten(ours)
    their_leaves, their_shape = pytree.tree_flatten(theirs)
    assert our_shape == their_shape
    assert our_leaves, "the recipe returned nothing to compare"
    for our, their in zip(our_leaves, their_leaves, strict=True):
        if isinstance(our, Tensor):
            torch.testing.assert_close(our, their, rtol=2e-5, atol=1e-6)
        else:
            assert our == their


class Block(nn.Module):
    """A pre-norm attention block, whose parts have the names that parallel plans use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, samples: Tensor) -> Tensor:
        normed = self.norm(samples)
        samples = samples + self.attention(normed, normed, normed, need_weights=False)[0]
        return samples + self.down(torch.relu(self.up(self.mlp_norm(samples))))


class Transformer(nn.Module):
    """A small model with what real ones have: embeddings, attention, norms, a tied shape."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.unused = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, *, uses_all: bool = True) -> Tensor:
        hidden: Tensor = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        if uses_all:
            hidden = hidden + self.unused(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def make_model(seed: int = 5) -> Transformer:
    """Return the same model on every rank."""
    torch.manual_seed(seed)
    return Transformer()


def tokens_of(rank: int, step: int, samples: int = 4) -> Tensor:
    """Return a batch of token sequences that is a rank's own."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(0, CLASSES, (samples, 9), generator=generator)


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the loss of predicting each sequence's next token."""
    return nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, CLASSES), tokens[:, 1:].reshape(-1)
    )


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the whole parameters, gathered where they are sharded."""
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor, gathered where it is sharded."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().clone()


def mesh_of(group: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """Return a mesh whose groups have the backend of a group."""
    backend = dist.get_backend(group)
    return init_device_mesh(
        "cpu", shape, mesh_dim_names=names, backend_override=dict.fromkeys(names, backend)
    )
