"""Which parameters make a tensor exactly zero when they are zero: the gates of a branch.

A branch is gated where it ends. Going back from its end, an operator that maps zero to zero passes
the question on, a product is zero if one factor is, a sum if all terms are, and an affine operator
if its weight and bias are: `gamma * x` (LayerScale), `BatchNorm(x)`, `linear(x)`, and
`conv(x, standardised weight, bias)` through the weight's own computation.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from guyot.structures.rules.pointwise import overloads

aten = torch.ops.aten

_CONTRACTING = dict.fromkeys(
    overloads(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear".split()
    ),
    (1, 2),
)
MULTIPLYING = set(overloads("mul mul_ matmul bmm mm _grouped_mm".split()))
_BY_NAME = {"transformers.grouped_mm_fallback.default"}
"""Products by operators of libraries that need not be imported."""
WEIGHTED = {*_CONTRACTING, aten.mm.default, aten.matmul.default, aten.addmm.default}
"""Operators that have a weight and multiply-accumulates."""

_AFFINE = _CONTRACTING | {
    aten.batch_norm.default: (1, 2),
    aten.layer_norm.default: (2, 3),
    aten.group_norm.default: (2, 3),
    aten.rms_norm.default: (2, 3),
}
"""Convolutions, linear layers and normalisations -> positions of weight and bias."""

_KEEPING = (
    "dropout dropout_ feature_dropout relu relu_ relu6 relu6_ gelu silu silu_ hardswish hardswish_ "
    "mish mish_ tanh tanh_ elu elu_ leaky_relu leaky_relu_ contiguous clone view reshape flatten "
    "unflatten permute transpose squeeze unsqueeze expand roll slice narrow select split chunk "
    "split_with_sizes unbind index_select to _to_copy alias detach neg abs mean sum avg_pool1d "
    "avg_pool2d avg_pool3d max_pool2d adaptive_avg_pool1d adaptive_avg_pool2d pixel_shuffle "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d constant_pad_nd repeat flip "
    "channel_shuffle t numpy_T mT div div_ reshape_as view_as expand_as pad "
    "_unsafe_view index"
).split()
KEEPS_ZERO: set[object] = {*overloads(_KEEPING), operator.getitem}
"""Operators that give zero when their first operand is zero."""

ADDING = set(overloads("add add_ sub sub_".split()))
JOINS = {aten.cat.default, aten.stack.default}


class Writers:
    """Finds the parameters that end a branch.

    Args:
        names: placeholder -> parameter (or buffer), by the first name of the tensor.
        inside: the operators of the branch.
        fed: the operators that depend on an input; all others compute from parameters alone.
    """

    def __init__(
        self, names: Mapping[str, str], inside: Container[object], fed: Container[object]
    ) -> None:
        self._names, self._inside, self._fed = names, inside, fed

    def of(self, node: Any, zero: frozenset[str] = frozenset()) -> frozenset[str] | None:
        """Return the tensors that make the result of a node zero; None when there are none.

        Args:
            node: an operand of the branch.
            zero: tensors that are zero anyway, since other terms of a sum need them to be.
        """
        if not isinstance(node, fx.Node):
            return None
        if node.op == "placeholder":
            return frozenset([self._names[node.name]]) if node.name in self._names else None
        if node in self._fed and node not in self._inside:
            return None
        target = node.target
        if target in _AFFINE:
            return self._affine(node, _AFFINE[target], zero)
        if target in MULTIPLYING or str(target) in _BY_NAME:
            return self._factor(node.args[:2], zero)
        if target is aten._weight_norm.default:
            return self.of(node.args[1], zero)
        if target is aten.addmm.default:
            added = self.of(node.args[0], zero)
            if added is None:
                return None
            product = self._factor(node.args[1:3], zero | added)
            return None if product is None else added | product
        if target in KEEPS_ZERO:
            return self.of(node.args[0], zero)
        if target in ADDING:
            return self._every([arg for arg in node.args[:2] if arg != 0], zero)
        if target in JOINS:
            return self._every(node.all_input_nodes, zero)
        return None

    def _factor(self, factors: tuple[Any, ...], zero: frozenset[str]) -> frozenset[str] | None:
        """Choose a factor that is a parameter (LayerScale), else the one with fewer."""
        found = [(arg in self._fed, part) for arg in factors if (part := self.of(arg, zero))]
        if not found:
            return None
        return min(found, key=lambda pair: (pair[0], len(pair[1] - zero)))[1]

    def _every(self, terms: Iterable[Any], zero: frozenset[str]) -> frozenset[str] | None:
        """Return the tensors that make all terms zero."""
        names = frozenset[str]()
        for term in terms:
            part = self.of(term, zero | names)
            if part is None:
                return None
            names |= part
        return names or None

    def _affine(
        self, node: fx.Node, positions: tuple[int, int], zero: frozenset[str]
    ) -> frozenset[str] | None:
        given = [node.args[p] for p in positions if p < len(node.args)]
        tensors = [arg for arg in given if isinstance(arg, fx.Node)]
        if given and isinstance(given[0], fx.Node):
            return self._every(tensors, zero)
        if tensors or (node.target is aten.batch_norm.default and node.args[3] is not None):
            return None
        return self.of(node.args[0], zero)
