"""Write a module's `forward` anew where it states lengths that are about to change.

`x.reshape(B, N, C)` after an attention takes the heads for as wide as the input, and
`C // self.num_heads` their size for what is left when some are gone. The `forward` is traced with
its children as leaves and every such length gets a number or an attribute that follows. PyTorch's
own `nn.MultiheadAttention`, whose arithmetic is not in its `forward`, is written out, and so is
torchvision's attention in windows.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from guyot.core.errors import UnsupportedError
from guyot.core.types import Restated
from guyot.surgery.layers import Shallow, in_both_modes
from guyot.surgery.stand_ins import copy_plain
from guyot.surgery.windows import WindowAttention, in_windows

SHAPING = ("view", "reshape", "unflatten", "expand", "split", "split_with_sizes", "narrow")
"""Methods and functions that state lengths."""


def restate(module: nn.Module, spec: Restated) -> nn.Module:
    """A module of the same parameters, children and plain attributes with a `forward` that follows.

    It may only be called with the same constants as before, which it checks.

    Raises:
        UnsupportedError: the `forward` cannot be traced or shapes its tensors in another order.

    Example:
        >>> class Pairs(nn.Module):
        ...     def forward(self, x, scale=None):
        ...         return x.view(x.shape[0], x.shape[1] // 2, 2)
        >>> spec = Restated("", (("scale", None),), (("view", (None, "width", 2)),), groups=())
        >>> pairs = restate(Pairs(), spec)
        >>> pairs.width = 3
        >>> pairs(torch.zeros(2, 6)).shape
        torch.Size([2, 3, 2])
    """
    constants = dict(spec.constants)
    if isinstance(module, nn.MultiheadAttention):
        graph = _traced(_Attention(module, constants), spec.module, constants)
    elif in_windows(module):
        graph = _traced(WindowAttention(module), spec.module, constants)
    else:
        graph = _traced(module, spec.module, constants)
        _state(graph, spec)
    for _, sizes in spec.sizes:
        for name in sizes:
            if isinstance(name, str) and not hasattr(module, name):
                setattr(module, name, 0)
    written = fx.GraphModule(module, graph, class_name=type(module).__name__)
    copy_plain(module, written)
    written.training = module.training
    if isinstance(module, nn.MultiheadAttention):
        setattr(written, "_qkv_same_embed_dim", False)  # noqa: B010  (keeps its callers off the fast path)
    return written


class _Specialised(Shallow):
    """Give some arguments of `forward` as constants; what is written checks that they are."""

    def __init__(self, constants: Mapping[str, object]) -> None:
        super().__init__()
        self._constants = constants

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for place, proxy in enumerate(args):
            name = str(getattr(getattr(proxy, "node", None), "target", ""))
            if name in self._constants:
                value = self._constants[name]
                if value is None or isinstance(value, bool):
                    same = self.create_proxy("call_function", operator.is_, (proxy, value), {})
                    message = f"{name} has to be {value}, as it was when the network was cut"
                    self.create_proxy("call_function", torch._assert, (same, message), {})  # pyright: ignore[reportPrivateUsage]
                args[place] = value
        return function, args


def _traced(module: nn.Module, name: str, constants: Mapping[str, object]) -> fx.Graph:
    """The graph of a module's own `forward` for both modes."""
    tracer = _Specialised(constants)
    training, evaluating = in_both_modes(module, name, "written anew", tracer.trace)
    _merge(training, evaluating, name)
    return training


def _merge(training: fx.Graph, evaluating: fx.Graph, name: str) -> None:
    """Let numbers that differ between the modes (dropout) depend on `self.training`."""
    if [(n.op, str(n.target)) for n in training.nodes] != [
        (n.op, str(n.target)) for n in evaluating.nodes
    ]:
        raise UnsupportedError(f"the forward of {name} does other things in training mode")
    for one, two in zip(list(training.nodes), list(evaluating.nodes), strict=True):
        with training.inserting_before(one):
            one.args, one.kwargs = _either(training, (one.args, one.kwargs), (two.args, two.kwargs))


def _either(graph: fx.Graph, training: Any, evaluating: Any) -> Any:
    if isinstance(training, dict):
        return {key: _either(graph, training[key], evaluating[key]) for key in training}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(training, (tuple, list)):
        pairs = zip(training, evaluating, strict=True)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return tuple(_either(graph, a, b) for a, b in pairs)
    if isinstance(training, (int, float)) and training != evaluating:
        mode = graph.get_attr("training")
        more = graph.call_function(operator.mul, (mode, training - evaluating))
        return graph.call_function(operator.add, (more, evaluating))
    return training


def _state(graph: fx.Graph, spec: Restated) -> None:
    """Put numbers and attributes in the place of the lengths that a graph states."""
    shaping = [
        node
        for node in graph.nodes
        if node.op in ("call_method", "call_function") and _base_name(node) in SHAPING
    ]
    called, expected = [_base_name(node) for node in shaping], [name for name, _ in spec.sizes]
    if called != expected:
        raise UnsupportedError(
            f"the forward of {spec.module} shapes tensors by {called} and its graph by {expected}"
        )
    for node, (_, sizes) in zip(shaping, spec.sizes, strict=True):
        with graph.inserting_before(node):
            stated = [graph.get_attr(size) if isinstance(size, str) else size for size in sizes]
        if any(size is not None for size in stated):
            _restate_call(node, stated, spec.module)


def _restate_call(node: fx.Node, sizes: list[Any], name: str) -> None:
    """Replace the lengths that a call states, wherever it states them one by one."""
    first = 2 if _base_name(node) == "unflatten" else 1
    given = node.args[first] if len(node.args) > first else None
    packed = isinstance(given, (list, tuple))
    listed: list[Any] = list(given) if packed else list(node.args[first : first + len(sizes)])  # pyright: ignore[reportUnknownArgumentType, reportArgumentType]
    if len(listed) != len(sizes):
        raise UnsupportedError(
            f"the forward of {name} states {len(listed)} lengths where its graph has {len(sizes)}"
        )
    new = tuple(old if size is None else size for old, size in zip(listed, sizes, strict=True))
    rest = node.args[first + 1 :] if packed else node.args[first + len(new) :]
    node.args = (*node.args[:first], *((new,) if packed else new), *rest)


def _base_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


class _Attention(nn.Module):
    """What `nn.MultiheadAttention` computes, with as many heads as its weights have."""

    def __init__(self, module: nn.MultiheadAttention, constants: Mapping[str, object]) -> None:
        super().__init__()
        plain = (
            module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
        )
        if not plain or constants.get("need_weights", True):
            raise UnsupportedError(
                "nn.MultiheadAttention loses heads only without added keys, with inputs of one "
                "width and with need_weights=False"
            )
        self.in_proj_weight, self.in_proj_bias = module.in_proj_weight, module.in_proj_bias
        self.out_proj = module.out_proj
        self.batch_first, self.head_dim, self.dropout = (
            module.batch_first,
            module.head_dim,
            module.dropout,
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention.forward`."""
        inputs = (query, key, value)
        if not self.batch_first:
            inputs = tuple(x.transpose(0, 1) for x in inputs)
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(inputs[i], weights[i], biases[i])
            .unflatten(-1, (-1, self.head_dim))
            .transpose(1, 2)
            for i in range(3)
        )
        masks = []
        if attn_mask is not None:
            masks.append(_as_float(attn_mask, q))
        if key_padding_mask is not None:
            masks.append(_as_float(key_padding_mask, q).unsqueeze(1).unsqueeze(2))
        mask = masks[0] + masks[1] if len(masks) == 2 else masks[0] if masks else None
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _as_float(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added; True in a boolean one means that a place is left out."""
    assert isinstance(mask, fx.Proxy)  # it runs only while it is traced
    options: dict[str, Any] = {
        "mask": mask,
        "mask_name": "mask",
        "other_type": None,
        "other_name": "",
        "target_type": like.dtype,
        "check_other": False,
    }
    convert = F._canonical_mask  # pyright: ignore[reportPrivateUsage]
    return mask.tracer.create_proxy("call_function", convert, (), options)  # pyright: ignore[reportReturnType]
