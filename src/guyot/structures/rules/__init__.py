"""Teach guyot an operator: what a rule of one's own is written with.

A rule says which dims of an operator's inputs, parameters and output are the same. Here, a linear
layer as a custom operator:

    from guyot.structures.rules import AxisGraph, rule, unify

    @torch.library.custom_op("mine::project", mutates_args=())
    def project(x: Tensor, weight: Tensor) -> Tensor: ...

    @rule(project)
    def _(graph: AxisGraph, node):
        x, weight = graph.operands(node, 0, 1)   # a tuple of dims for each tensor
        unify(x[-1], weight[1])                 # the same units
        graph.contract(node, 1, dim=1)           # gates multiply this side of the weight
        graph.count(node, weight[0], weight[1], *graph.samples(x[:-1]))  # MACs of one sample
        return (*x[:-1], weight[0])             # dims of the output

`AxisGraph` documents everything that a rule can say; the other files of this folder hold the rules
for
PyTorch's own operators. A rule that is wrong does no harm: what it makes guyot find is checked
numerically, and refused with a warning.
"""

from importlib import import_module

from guyot.structures.axes import DimVar, DimVars, concat, factor, freeze, product, split, unify
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.rules.registry import rule, rule_for

__all__ = [
    "AxisGraph",
    "DimVar",
    "DimVars",
    "concat",
    "factor",
    "freeze",
    "product",
    "rule",
    "rule_for",
    "split",
    "unify",
]

for _family in (
    "attention",
    "convolution",
    "embedding",
    "experts",
    "indexing",
    "layout",
    "linear",
    "matmul",
    "normalisation",
    "pointwise",
    "pooling",
    "recurrent",
    "shape",
):
    import_module(f"{__name__}.{_family}")  # registers its rules
