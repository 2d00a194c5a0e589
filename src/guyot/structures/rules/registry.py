"""The registry of operator rules and the small interface that rules see.

A rule says, for one operator, which dims of its inputs, parameters and output are the same. It
gets the `AxisGraph` and a node of it and returns the dims of the output (a list of such tuples for
an operator with several outputs). An operator without a rule freezes the dims it touches.

    @rule(torch.ops.aten.mv.default)
    def mv(graph, node):
        weight, vector = graph.operands(node, 0, 1)
        unify(weight[1], vector[0])
        graph.contract(node, 0, dim=1)         # gates of dim 1 multiply this operand
        graph.count(node, weight[0], weight[1])
        return (weight[0],)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from guyot.core.errors import MisconfiguredError
from guyot.core.torch_private import PACKET, custom_overload, is_operator
from guyot.structures.axis_graph import Rule

_RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for one or more `torch.ops` overloads; a later rule replaces an earlier.

    Args:
        targets: operator overloads, e.g. `torch.ops.aten.conv2d.default`, what
            `torch.library.custom_op` made, a `torch.Tag`, or the name of an overload as a graph
            prints it, of a library that need not be imported.

    Raises:
        MisconfiguredError: a target is none of these.
    """
    overloads = [_overload(target) for target in targets]

    def register(function: Rule) -> Rule:
        for target in overloads:
            _RULES[target] = function
        return function

    return register


def _overload(target: Any) -> Any:
    """Return what a graph calls an operator."""
    if isinstance(target, PACKET):
        raise MisconfiguredError(
            f"rule({target}) is about an operator with the overloads "
            f"{', '.join(target.overloads())}: give one of them, e.g. {target}.default"
        )
    named = isinstance(target, str) and target.count(".") == 2
    if named or isinstance(target, torch.Tag) or is_operator(target):
        return target
    if (overload := custom_overload(target)) is None:
        raise MisconfiguredError(
            f"rule({target!r}) is about no operator: give one as torch.export names it, e.g. "
            "torch.ops.aten.relu.default, or what torch.library.custom_op returned"
        )
    return overload


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator, or None; PyTorch's own tag tells what is elementwise."""
    found = _RULES.get(target) or _RULES.get(str(target))
    if found is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return _RULES[torch.Tag.pointwise]
    return found
