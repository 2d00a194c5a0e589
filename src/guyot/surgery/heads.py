"""`nn.MultiheadAttention` with as many heads as its weights have.

Its own arithmetic, which takes the heads for as wide as the input, is in no method of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.core.errors import UnsupportedError


def check(module: nn.MultiheadAttention) -> None:
    """Refuse an attention that `attend` does not compute.

    Raises:
        UnsupportedError: it adds keys, or its inputs are of several widths.
    """
    plain = module.in_proj_weight is not None and module.bias_k is None
    if not plain or module.add_zero_attn:
        raise UnsupportedError(
            "nn.MultiheadAttention loses heads only without added keys and with inputs of one width"
        )


def keep_off_fast_path(owner: nn.Module) -> None:
    """Let a `nn.TransformerEncoderLayer` without a branch never run its fused operator."""
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0


def attend(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    *_: bool,
    **__: bool,
) -> tuple[Tensor, None]:
    """As `nn.MultiheadAttention.forward`.

    Raises:
        UnsupportedError: the weights of the attention are asked for.
    """
    if need_weights:
        raise UnsupportedError(
            "nn.MultiheadAttention that has lost heads gives no weights: call it with "
            "need_weights=False"
        )
    inputs = (query, key, value)
    batched = query.dim() == 3
    if batched and not self.batch_first:
        inputs = tuple(x.transpose(0, 1) for x in inputs)
    if not batched:
        inputs = tuple(x.unsqueeze(0) for x in inputs)
    weights = self.in_proj_weight.chunk(3)
    biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(inputs[i], weights[i], biases[i])
        .unflatten(-1, (-1, self.head_dim))
        .transpose(1, 2)
        for i in range(3)
    )
    masks: list[Tensor] = []
    if attn_mask is not None:
        mask = _added(attn_mask, q)
        masks.append(mask if mask.dim() == 2 else mask.unflatten(0, (-1, q.shape[1])))
    if key_padding_mask is not None:
        masks.append(_added(key_padding_mask, q).view(len(k), 1, 1, -1))
    mask = masks[0] + masks[1] if len(masks) == 2 else masks[0] if masks else None
    dropout = self.dropout if self.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
    out = self.out_proj(out.transpose(1, 2).flatten(2))
    if not batched:
        return out.squeeze(0), None
    return (out if self.batch_first else out.transpose(0, 1)), None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added; True in a boolean one means that a place is left out."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
