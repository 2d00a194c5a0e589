"""Operators of `torch.export` as the expressions that people write.

An operator that is not listed here is written as `torch.ops.aten...`, which is always right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import fx

from guyot.core.torch_private import schema_of

BINARY = {
    "add.Tensor": "+", "add.Scalar": "+", "sub.Tensor": "-", "sub.Scalar": "-",
    "mul.Tensor": "*", "mul.Scalar": "*", "div.Tensor": "/", "div.Scalar": "/",
    "pow.Tensor_Scalar": "**", "matmul.default": "@", "__and__.Tensor": "&", "__or__.Tensor": "|",
    "eq.Scalar": "==", "ne.Scalar": "!=", "lt.Scalar": "<", "le.Scalar": "<=", "gt.Scalar": ">",
    "ge.Scalar": ">=", "eq.Tensor": "==", "ne.Tensor": "!=", "lt.Tensor": "<", "le.Tensor": "<=",
    "gt.Tensor": ">", "ge.Tensor": ">=",
}  # fmt: skip
# The same arguments in the same order as the operator.
METHODS = set(
    """
    abs.default add_.Tensor amax.default bmm.default chunk.default clamp.default clone.default
    contiguous.default cos.default cumsum.default detach.default exp.default fill_.Tensor
    flatten.using_ints gather.default log.default log_softmax.int masked_fill.Scalar max.dim
    mean.default mean.dim mul_.Tensor new_ones.default new_zeros.default relu_.default
    roll.default rsqrt.default sigmoid.default
    sin.default softmax.int split.Tensor split_with_sizes.default sqrt.default squeeze.default
    squeeze.dim squeeze.dims sum.default sum.dim_IntList tanh.default transpose.int tril.default
    unbind.int unflatten.int unsqueeze.default
    """.split()
)
FUNCTIONS = set(
    """
    adaptive_avg_pool1d.default adaptive_avg_pool2d.default avg_pool2d.default conv1d.default
    conv2d.default conv3d.default conv_transpose2d.input elu.default gelu.default glu.default
    hardsigmoid.default hardswish.default hardtanh.default leaky_relu.default linear.default
    max_pool2d.default mish.default pad.default pixel_shuffle.default prelu.default relu.default
    relu6.default rms_norm.default scaled_dot_product_attention.default silu.default
    softplus.default
    """.split()
)
TORCH = set(
    """
    arange.default arange.start cat.default einsum.default full.default ones.default stack.default
    where.self where.ScalarOther zeros.default
    """.split()
)
_NO_END = 2**63 - 1


@dataclass(frozen=True)
class Expression:
    """Source text of a value; `loose`: needs brackets inside another operator."""

    text: str
    loose: bool = False


class Names(Protocol):
    """How values are written at some point of a `forward`."""

    def __call__(self, value: Any, hint: str = "", *, tight: bool = False) -> str:
        """Write an operand, list of operands or constant; `tight`: in brackets where needed."""
        ...

    def device(self) -> str:
        """Return the device of the inputs."""
        ...


Arguments = Mapping[str, Any]


def expression(node: fx.Node, names: Names) -> Expression:
    """Write one operator in source code."""
    name = str(node.target).removeprefix("aten.")
    packet = name.partition(".")[0]
    arguments, keywords = _arguments(node)
    if name in _SPECIAL:
        return _SPECIAL[name]({**arguments, **keywords}, names)
    operands = list(arguments.values())
    if name in BINARY and not keywords:
        left, right = (names(value, tight=True) for value in operands)
        return Expression(f"{left} {BINARY[name]} {right}", loose=True)
    texts = [names(value, packet) for value in operands]
    for key, value in keywords.items():
        texts.append(f"{key}={names.device() if key == 'device' else names(value)}")
    if name in METHODS:
        method = {"split_with_sizes": "split"}.get(packet, packet)
        return Expression(f"{names(operands[0], tight=True)}.{method}({', '.join(texts[1:])})")
    if name in FUNCTIONS:
        return Expression(f"F.{packet}({', '.join(texts)})")
    where = "torch" if name in TORCH else "torch.ops.aten"
    return Expression(f"{where}.{packet if name in TORCH else name}({', '.join(texts)})")


def _arguments(node: fx.Node) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return positional and keyword arguments by name, without those that say nothing."""
    schema = schema_of(node.target)
    positional = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    keywords = {
        name: value
        for name, value in node.kwargs.items()
        if not (name in ("pin_memory", "layout") and value in (False, torch.strided))
    }
    return positional, keywords


def _sizes(values: Sequence[Any], names: Names) -> str:
    """Write lengths of dimensions; the one that the batch decides as -1."""
    free = [isinstance(value, fx.Node) for value in values]
    if sum(free) == 1 and -1 not in values:
        values = [-1 if isinstance(value, fx.Node) else value for value in values]
    return ", ".join(names(value, "size") for value in values)


def _reshape(a: Arguments, names: Names) -> Expression:
    sizes = _sizes(a.get("size", a.get("shape", ())), names)
    return Expression(f"{names(a['self'], tight=True)}.reshape({sizes})")


def _slice(a: Arguments, names: Names) -> Expression:
    dim, start, end, step = a.get("dim", 0), a.get("start"), a.get("end"), a.get("step", 1)
    start, end = None if start == 0 else start, None if end == _NO_END else end
    if start is None and end is None and step == 1:
        return Expression(names(a["self"], tight=True))
    if dim < 0:
        return _aten("slice.Tensor", a, names)
    cut = ":".join("" if end is None else names(end, "cut") for end in (start, end))
    cut += f":{names(step)}" * (step != 1)
    return Expression(f"{names(a['self'], tight=True)}[{':, ' * dim}{cut}]")


def _select(a: Arguments, names: Names) -> Expression:
    x, dim = names(a["self"], tight=True), a["dim"]
    if dim < 0:
        return Expression(f"{x}.select({names(dim)}, {names(a['index'])})")
    return Expression(f"{x}[{':, ' * dim}{names(a['index'])}]")


def _index(a: Arguments, names: Names) -> Expression:
    indices = ", ".join(":" if index is None else names(index) for index in a["indices"])
    return Expression(f"{names(a['self'], tight=True)}[{indices}]")


def _to(a: Arguments, names: Names) -> Expression:
    x = names(a["self"], tight=True)
    return Expression(x if a.get("dtype") is None else f"{x}.to({names(a['dtype'])})")


def _aten(name: str, a: Arguments, names: Names) -> Expression:
    return Expression(f"torch.ops.aten.{name}({', '.join(names(value) for value in a.values())})")


_ARGUMENT = re.compile(r"(, \w+=)?{(\*?)(\w+)}")


def _filled(pattern: str, a: Arguments, names: Names) -> Expression:
    """Write a pattern of `_PATTERNS`."""

    def written(found: re.Match[str]) -> str:
        keyword, star, key = found.groups(default="")
        if keyword and a.get(key) is None:
            return ""
        if star:
            return ", ".join(names(value, key) for value in a[key])
        return keyword + names(a[key], key, tight=key == "self")

    return Expression(_ARGUMENT.sub(written, pattern), loose=pattern.startswith("-"))


_PATTERNS = {
    "expand.default": "{self}.expand({*size})",
    "permute.default": "{self}.permute({*dims})",
    "alias.default": "{self}",
    "detach_.default": "{self}",
    "lift_fresh_copy.default": "{self}.clone()",
    "neg.default": "-{self}",
    "embedding.default": "F.embedding({indices}, {weight})",
    "dropout.default": "F.dropout({input}, {p}, self.training)",
    "layer_norm.default": "F.layer_norm({input}, {normalized_shape}, weight={weight}, bias={bias},"
    " eps={eps})",
    "group_norm.default": "F.group_norm({input}, {num_groups}, weight={weight}, bias={bias},"
    " eps={eps})",
    "batch_norm.default": "F.batch_norm({input}, {running_mean}, {running_var}, weight={weight},"
    " bias={bias}, training=self.training, momentum={momentum}, eps={eps})",
}
"""Arguments in braces; with a star item by item; `, key={key}` goes if it is None."""
_SPECIAL: dict[str, Callable[[Arguments, Names], Expression]] = {
    "view.default": _reshape,
    "reshape.default": _reshape,
    "slice.Tensor": _slice,
    "select.int": _select,
    "index.Tensor": _index,
    **dict.fromkeys(("to.dtype", "to.device", "to.dtype_layout", "_to_copy.default"), _to),
    **{name: partial(_filled, pattern) for name, pattern in _PATTERNS.items()},
}
SPECIAL = frozenset(_SPECIAL)
