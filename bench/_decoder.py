"""A small decoder as GPT-2's, byte by byte, and the text that it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES: Final = 256  # the vocabulary
HEAD_WIDTH: Final = 64
TEXTS: Final = ("README.md", "CONTRIBUTING.md", "native/ARCHITECTURE.md", "native/PROTOCOL.md")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the model is, and how much each rank feeds it in a step."""

    layers: int = 6
    width: int = 384
    context: int = 64
    """Tokens of a sample."""
    batch: int = 2
    """Samples of a rank."""


class Block(nn.Module):
    """Attention over what came before, then two linear layers; each added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.after_attention = nn.Linear(width, width)
        self.before_hidden = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.after_hidden = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next layer's input: (batch, tokens, width)."""
        batch, tokens, width = x.shape
        joined: Tensor = self.queries_keys_values(self.before_attention(x))
        shaped = joined.view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = shaped.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.after_attention(seen.transpose(1, 2).reshape(batch, tokens, width))
        y: Tensor = self.after_hidden(functional.gelu(self.hidden(self.before_hidden(x))))
        return x + y


class Decoder(nn.Module):
    """Says of each byte of a text what the next one may be."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.next = nn.Linear(shape.width, BYTES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return a score of each next byte: (batch, tokens, 256)."""
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        scores: Tensor = self.next(self.norm(self.blocks(self.tokens(tokens) + places)))
        return scores


def load_text() -> Tensor:
    """Return this repository's documents, one after the other, as bytes."""
    root = Path(__file__).parent.parent
    text = b"".join((root / name).read_bytes() for name in TEXTS)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def draw_batch(text: Tensor, shape: Shape, seed: int) -> tuple[Tensor, Tensor]:
    """Return pieces of the text, and what follows each of their bytes; the seed says which."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - shape.context, (shape.batch, 1), generator=generator)
    pieces = text[starts + torch.arange(shape.context + 1)]
    return pieces[:, :-1], pieces[:, 1:]
