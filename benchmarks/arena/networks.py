"""Networks of the planted tasks, built from a shape: the widths in order, 0 for what is absent."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arena.task import Shape

CLASSES = 10
INPUTS = 32
"""Input dimensions of the perceptrons."""
PIXELS = 8
TOKENS = 12
VOCABULARY = 16
HEAD = 8
"""Dimensions of an attention head."""


def perceptron(shape: Shape) -> nn.Sequential:
    """Linear layers with ReLU between; shape: their widths."""
    layers: list[nn.Module] = []
    before = INPUTS
    for width in filter(None, shape):
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, CLASSES))


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def residual(shape: Shape) -> nn.Sequential:
    """A perceptron of residual branches; shape: the stream's width, then that inside each."""
    stream, *hidden = shape
    blocks = [
        Residual(
            nn.Linear(stream, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, stream, bias=False),
            nn.BatchNorm1d(stream),
        )
        for width in hidden
        if width
    ]
    stem = (nn.Linear(INPUTS, stream, bias=False), nn.BatchNorm1d(stream))
    return nn.Sequential(*stem, *blocks, nn.ReLU(), nn.Linear(stream, CLASSES))


def convolution(before: int, width: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution with BatchNorm."""
    return [
        nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
    ]


def convolutional(shape: Shape) -> nn.Sequential:
    """Two stages of convolutions on 8x8 pixels, each with three residual branches.

    Shape: for either stage the stream's width and those inside the branches.
    """
    layers: list[nn.Module] = []
    before = 3
    for stage in (shape[:4], shape[4:]):
        stream, *hidden = stage
        layers += [*convolution(before, stream, stride=1 if before == 3 else 2), nn.ReLU()]
        for width in filter(None, hidden):
            inside = [*convolution(stream, width), nn.ReLU(), *convolution(width, stream)]
            layers += [Residual(*inside), nn.ReLU()]
        before = stream
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


class Attention(nn.Module):
    """Multi-head attention with heads of `HEAD` dimensions; not causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, HEAD * heads)
        self.key = nn.Linear(width, HEAD * heads)
        self.value = nn.Linear(width, HEAD * heads)
        self.out = nn.Linear(HEAD * heads, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        query, key, value = (
            part(x).view(count, tokens, self.heads, HEAD).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(count, tokens, HEAD * self.heads))


class Transformer(nn.Module):
    """Token and place vectors, blocks of attention and MLP, the mean over tokens, logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, *inside = shape
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(TOKENS, width))
        blocks: list[nn.Module] = []
        for heads, hidden in zip(inside[::2], inside[1::2], strict=True):
            if heads:
                blocks.append(Residual(nn.LayerNorm(width), Attention(width, heads)))
            if hidden:
                perceptron = (nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
                blocks.append(Residual(nn.LayerNorm(width), *perceptron))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.tokens(tokens) + self.places)
        return self.head(self.norm(x).mean(1))
