"""A network for texts: a small transformer that predicts the next character."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalAttention(nn.Module):
    """Attention of several heads to this character and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape, (N, T, width)."""
        count, length, _ = x.shape
        split = (count, length, self.heads, self.head_size)
        parts = (part(x).view(split) for part in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in parts)
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(read.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each after a norm and around it the input is added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape, (N, T, width)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Transformer(nn.Module):
    """Predict the next character at every place of a window.

    Args:
        characters: how many different ones there are.
        context: longest window.
        width: of the trunk.
        heads: of attention.
        blocks: how many.
    """

    def __init__(
        self, characters: int, context: int, width: int = 128, heads: int = 4, blocks: int = 4
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits (N, T, characters) of the characters after each of codes int64 (N, T)."""
        places = torch.arange(codes.shape[1], device=codes.device)
        return self.head(self.norm(self.blocks(self.characters(codes) + self.places(places))))
