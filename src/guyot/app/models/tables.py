"""A network for tables: a perceptron with residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two layers around which the input is added."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape, (N, width)."""
        return x + self.second(self.first(self.norm(x)).relu())


def mlp(shape: Sequence[int], num_classes: int, width: int = 128, blocks: int = 2) -> nn.Module:
    """Return a perceptron with residual blocks.

    Args:
        shape: of one sample; its entries are the features.
        num_classes: how many logits.
        width: of the trunk; blocks are twice as wide inside.
        blocks: how many.
    """
    trunk = [ResidualBlock(width, 2 * width) for _ in range(blocks)]
    head = nn.Linear(width, num_classes)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), width), *trunk, nn.BatchNorm1d(width), nn.ReLU(), head
    )
