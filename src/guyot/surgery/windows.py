"""Attention in shifted windows, written out with as many heads as its weights have.

torchvision's Swin Transformers compute it in a function that takes the heads for as wide as the
input. This is the same arithmetic with lengths from the weights. What depends on the size of the
image is arithmetic, too, so that the written `forward` serves all sizes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.surgery.derive import replace_methods

KINDS = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
}


def in_windows(module: nn.Module) -> bool:
    """Say whether a module is such an attention."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in KINDS for kind in type(module).__mro__)


def write_out(module: nn.Module) -> None:
    """Let an attention compute with as many heads as its weights have; it must have all still."""
    own: Any = module
    own.head_size = own.qkv.out_features // 3 // own.num_heads
    functions = (_attention, _bias, _mask)
    methods = {function.__name__: function for function in functions}
    replace_methods(module, {"forward": attend_in_windows, **methods})


def attend_in_windows(self: Any, x: Tensor) -> Tensor:
    """Shape (batch, height, width, channels) to the same."""
    (down, across), tall, wide = self.window_size, x.shape[1], x.shape[2]
    x = F.pad(x, (0, 0, 0, (across - wide % across) % across, 0, (down - tall % down) % down))
    height, width = x.shape[1], x.shape[2]
    shifted, shift = sum(self.shift_size) > 0, (0, 0)
    if shifted:  # not where one window holds all
        shift = (self.shift_size[0] * (height > down), self.shift_size[1] * (width > across))
        x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    mask = self._mask(x, shift) if shifted else None
    x = x.unflatten(1, (height // down, down)).unflatten(3, (width // across, across))
    x = self._attention(x.permute(0, 1, 3, 2, 4, 5).flatten(0, 2).flatten(1, 2), mask)
    x = F.dropout(self.proj(x), self.dropout if self.training else 0.0)
    x = x.unflatten(1, (down, across)).unflatten(0, (-1, height // down, width // across))
    x = x.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)
    if shifted:
        x = torch.roll(x, shift, (1, 2))
    return x[:, :tall, :wide, :].contiguous()


def _attention(self: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """(windows, tokens, channels) to (windows, tokens, heads * size), before the projection."""
    bias = self.qkv.bias
    if hasattr(self, "logit_scale") and bias is not None:
        parts = bias.chunk(3)
        bias = torch.cat((parts[0], torch.zeros_like(parts[1]), parts[2]))
    heads = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, -1, self.head_size))
    heads = heads.permute(2, 0, 3, 1, 4)
    q, k, v = heads[0], heads[1], heads[2]
    if hasattr(self, "logit_scale"):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
    else:
        scores = (q * self.head_size**-0.5) @ k.transpose(-2, -1)
    scores = scores + self._bias()
    if mask is not None:
        scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask.unsqueeze(1)).flatten(0, 1)
    weights = F.dropout(scores.softmax(-1), self.attention_dropout if self.training else 0.0)
    return (weights @ v).transpose(1, 2).flatten(2)


def _bias(self: Any) -> Tensor:
    """Of every relative position, shape (1, heads, tokens, tokens)."""
    tokens = self.window_size[0] * self.window_size[1]
    if hasattr(self, "logit_scale"):
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
    else:
        table = self.relative_position_bias_table
    bias = table[self.relative_position_index].unflatten(0, (tokens, tokens))
    bias = bias.permute(2, 0, 1).unsqueeze(0)
    return 16 * torch.sigmoid(bias) if hasattr(self, "logit_scale") else bias


def _mask(self: Any, x: Tensor, shift: tuple[int, int]) -> Tensor:
    """-100 between tokens that only the shift made neighbours, shape (windows, tokens, tokens).

    The last window of a dimension holds two regions, the others one.
    """
    (down, across), (below, beside) = self.window_size, shift
    row, column = (
        torch.ones_like(line, dtype=torch.int64).cumsum(0) - 1
        for line in (x[0, :, 0, 0], x[0, 0, :, 0])
    )
    rows = (row >= x.shape[1] - down).long() + (row >= x.shape[1] - below).long()
    columns = (column >= x.shape[2] - across).long() + (column >= x.shape[2] - beside).long()
    region = rows.unsqueeze(1) * 3 + columns
    region = region.unflatten(0, (-1, down)).unflatten(2, (-1, across))
    region = region.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    return (region.unsqueeze(1) != region.unsqueeze(2)).to(x.dtype) * -100.0
